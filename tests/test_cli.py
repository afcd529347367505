"""The command line as a person uses it."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from backend import cli
from backend.settings import Settings, flag, variable

from .e2e.processes import Server, free_port, wait_until
from .labelstudio.running import save_checkpoint

ROOT = Path(__file__).parent.parent
# Two processes import torch, on a machine that may do other things too.
START_S = 90


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Status, standard output and standard error of a command that ends by itself."""
    try:
        status = cli.main(arguments)
    except SystemExit as end:
        status = int(end.code or 0)
    out, err = capsys.readouterr()
    return status, out, err


def test_help_of_serve_explains_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, "serve", "--help")
    assert status == 0
    words = " ".join(out.split())
    for name, field in Settings.model_fields.items():
        assert f"{flag(name)} {variable(name)}" in words
        assert re.sub(r"\W", "", str(field.description)) in re.sub(r"\W", "", words), name


def test_no_command_is_an_error_that_lists_them(capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = run(capsys)
    assert status == 2
    assert "COMMAND" in err


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


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny")


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

    assert len(server.descendants()) >= 3, "serve, the web process, the store"
    assert server.interrupt() == 0, server.log_tail()
    wait_until("the last process to end", lambda: not server.descendants(), timeout_s=10)
    assert "Traceback" not in server.log_tail()
