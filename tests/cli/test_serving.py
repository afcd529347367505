"""serve and worker as a person uses them."""

import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import requests

from backend.settings import Settings, flag, variable
from tests.support.command_line import run
from tests.support.processes import Server, free_port, wait_until
from tests.support.running import CONFIG

ROOT = Path(__file__).parent.parent.parent
# Two processes import torch, on a machine that may do other things too.
START_S = 90


def test_help_of_serve_explains_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, "serve", "--help")
    assert status == 0
    words = " ".join(out.split())
    for name, field in Settings.model_fields.items():
        assert f"{flag(name)} {variable(name)}" in words
        assert re.sub(r"\W", "", str(field.description)) in re.sub(r"\W", "", words), name


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--port", "0"], "PORT='0' (--port)"),
        (["--redis-url", "localhost"], "REDIS_URL='localhost' (--redis-url)"),
        (["--decoding", "fast"], "GNER_DECODING='fast' (--decoding)"),
        (["--basic-auth-user", "ada"], "BASIC_AUTH_PASS"),
        (["--model", "no-such-model"], "'no-such-model'"),
        (["--model", "/no/such/folder"], "'/no/such/folder'"),
        (["--no-such-flag"], "--no-such-flag"),
    ],
)
def test_a_wrong_setting_is_refused_in_a_sentence_that_names_it(
    capsys: pytest.CaptureFixture[str], arguments: list[str], named: str
) -> None:
    status, out, err = run(capsys, "serve", *arguments)
    assert status == 2
    assert named in err
    assert out == ""
    assert "Traceback" not in err


def test_a_wrong_device_is_refused(capsys: pytest.CaptureFixture[str], checkpoint: Path, tmp_path: Path) -> None:
    arguments = ["serve", "--model", str(checkpoint), "--model-dir", str(tmp_path), "--device", "cuda:99"]
    status, _, err = run(capsys, *arguments)
    assert status == 2
    assert "GNER_DEVICE='cuda:99'" in err
    assert err.count("\n") == 1


def test_a_model_dir_that_cannot_be_one_is_refused(
    capsys: pytest.CaptureFixture[str], checkpoint: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    status, _, err = run(capsys, "serve", "--model", str(checkpoint), "--model-dir", str(tmp_path / "file"))
    assert status == 2
    assert "MODEL_DIR" in err
    assert str(tmp_path / "file") in err


@pytest.fixture
def serving(checkpoint: Path, tmp_path: Path) -> Iterator[tuple[Server, list[str], str]]:
    """`gner-backend serve`, its command and its URL; killed at the end if it still runs."""
    port = free_port()
    command = [sys.executable, "-m", "backend.cli", "serve", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--model", str(checkpoint), "--model-dir", str(tmp_path / "data")]
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    server = Server(command, environment, tmp_path / "serve.log")
    try:
        yield server, command, f"http://127.0.0.1:{port}"
    finally:
        server.kill()


def state(url: str) -> str | None:
    try:
        answer: str = requests.get(f"{url}/health", timeout=5).json()["state"]
    except requests.ConnectionError:
        return None
    return answer


def workers_of(server: Server) -> list[psutil.Process]:
    return [process for process in server.descendants() if process.cmdline()[-1:] == ["worker"]]


@pytest.mark.slow  # starts the backend twice, which loads torch
def test_serve_starts_holds_its_folder_and_ends_with_ctrl_c_leaving_nothing(
    serving: tuple[Server, list[str], str], checkpoint: Path
) -> None:
    server, command, url = serving
    server.wait_until("the model is ready", lambda: state(url) == "ready", START_S)
    banner = server.log_tail()
    for said in (url.rpartition(":")[2], str(checkpoint.name), "embedded Valkey", "--model", "Ctrl-C"):
        assert said in banner

    second = subprocess.run(
        [*command, "--port", str(free_port())],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=START_S,
    )
    assert second.returncode == 2
    assert "in use by another backend" in second.stderr
    assert "--model-dir" in second.stderr
    assert state(url) == "ready", "the first goes on"

    assert len(server.descendants()) >= 4, "serve, the web process, the worker, the store"
    assert "after 20 changed annotations" in banner
    [worker] = workers_of(server)
    worker.kill()
    server.wait_until("another worker", lambda: set(workers_of(server)) - {worker}, START_S)
    assert state(url) == "ready"
    assert server.interrupt() == 0, server.log_tail()
    wait_until("the last process to end", lambda: not server.descendants(), timeout_s=10)
    assert "Traceback" not in server.log_tail()


@pytest.mark.slow  # starts the backend, which loads torch
def test_who_waits_for_predictions_is_answered_when_the_backend_stops(serving: tuple[Server, list[str], str]) -> None:
    server, _, url = serving
    server.wait_until("the model is ready", lambda: state(url) == "ready", START_S)
    tasks = [{"id": number, "data": {"text": f"Marie {number} in Paris. " * 200}} for number in range(300)]
    with ThreadPoolExecutor(1) as threads:
        body = {"tasks": tasks, "project": "1.1", "label_config": CONFIG, "params": {}}
        asked = threads.submit(requests.post, f"{url}/predict", json=body, timeout=60)
        server.wait_until("the model to be busy", lambda: waiting_windows(url) > 0, START_S)
        assert server.interrupt() == 0, server.log_tail()
        answer = asked.result(60)
    assert answer.status_code == 200
    results = answer.json()["results"]
    assert len(results) == len(tasks)
    assert [] in results, "not all could be done"


def waiting_windows(url: str) -> float:
    metrics = requests.get(f"{url}/metrics", timeout=5).text
    return float(metrics.split("\ngner_queued_windows ")[1].split()[0])


@pytest.mark.slow  # starts the backend twice, which loads torch
def test_a_serve_that_is_killed_takes_all_others_along(serving: tuple[Server, list[str], str]) -> None:
    server, command, url = serving
    server.wait_until("the model is ready", lambda: state(url) == "ready", START_S)
    server.wait_until("the worker", lambda: workers_of(server), START_S)
    server.kill_alone()
    port = int(url.rpartition(":")[2])
    wait_until("the port to be free", lambda: not _is_taken(port), timeout_s=5)
    wait_until("the last process to end", lambda: not server.descendants(), timeout_s=15)
    again = Server(command, {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, server.log.with_name("again.log"))
    try:
        again.wait_until("the model is ready", lambda: state(url) == "ready", START_S)
    finally:
        again.kill()


def _is_taken(port: int) -> bool:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as gunicorn does
        try:
            listener.bind(("127.0.0.1", port))
        except OSError:
            return True
    return False


def test_a_worker_needs_a_backend_or_a_store(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in Settings.model_fields:  # the command writes its settings there, for its children
        monkeypatch.setenv(variable(name), "")
    status, _, err = run(capsys, "worker", "--model-dir", str(tmp_path))
    assert status == 2
    assert str(tmp_path) in err
    assert "REDIS_URL" in err
