"""The command line as a person uses it."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis
import requests

from backend import cli, store
from backend.engine import checkpoint as checkpoints
from backend.learning.annotations import AnnotatedText, Annotation, ControlLabels, LabelledSpan, Project
from backend.learning.example_store import ExampleStore
from backend.learning.registry import Registry, VersionInfo
from backend.ner.labels import PromptLabels
from backend.ner.spans import Passage
from backend.settings import Settings, flag, variable
from tests.support.processes import Server, free_port, wait_until
from tests.support.running import CONFIG, save_checkpoint

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


def workers_of(server: Server) -> list[psutil.Process]:
    return [process for process in server.descendants() if process.cmdline()[-1:] == ["worker"]]


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


# --- commands about learning

KEY, TWIN, OTHER = "1.1795333437", "1.1795333999", "3.1795333438"


@pytest.fixture
def here(checkpoint: Path, valkey_url: str, tmp_path: Path) -> list[str]:
    """Flags for the store of the tests and a fresh MODEL_DIR."""
    return ["--model", str(checkpoint), "--redis-url", valkey_url, "--model-dir", str(tmp_path)]


@pytest.fixture
def examples(valkey: redis.Redis) -> ExampleStore:
    """Two projects, the first with two examples."""
    examples = ExampleStore(valkey)
    fill(examples, KEY, [1, 2])
    fill(examples, OTHER, [])
    return examples


def fill(examples: ExampleStore, key: str, numbers: Sequence[int]) -> None:
    labels = ControlLabels("label", PromptLabels.of([("person", "Person")]))
    examples.save_project(Project(key, int(key.partition(".")[0]), f"title of {key[0]}", "digest", (labels,)))
    text = AnnotatedText("label", Passage("Marie Curie"), ("Person",), (LabelledSpan(0, 11, "Person", "manual"),))
    examples.put(key, [Annotation(number, number, 1, True, False, (text,), None, (), {}) for number in numbers])


@pytest.fixture
def versions(checkpoint: Path, tmp_path: Path) -> tuple[str, str]:
    """The base version, and one that was trained from it on task 1."""
    base = checkpoints.resolve(str(checkpoint)).version
    registry = Registry(tmp_path, base)
    with registry.new_folder(KEY) as folder:
        for name in ("adapter_model.safetensors", "adapter_config.json"):
            (folder / name).write_text("some weights", encoding="utf-8")
        info = VersionInfo(
            "tiny-p1-0123456789",
            KEY,
            base,
            base,
            "2026-11-22T08:00:00Z",
            "published",
            "it is better",
            examples=((1, 1),),
            scores={"held_out_f1": 0.75},
        )
        registry.publish(folder, info, promote=True)
    return base, "tiny-p1-0123456789"


@pytest.mark.usefixtures("examples")
def test_versions_promote_and_rollback(
    capsys: pytest.CaptureFixture[str], here: list[str], versions: tuple[str, str]
) -> None:
    base, trained = versions
    status, out, _ = run(capsys, "versions", *here)
    assert status == 0
    for said in (f"project {KEY}: {trained}", f"* {trained}", "published", "it is better", "0.750", f"project {OTHER}"):
        assert said in out
    assert run(capsys, "promote", "--project", "1", base, *here)[:2] == (0, f"project {KEY}: {base}\n")
    assert run(capsys, "rollback", "--project", KEY, *here)[:2] == (0, f"project {KEY}: {trained}\n")
    status, out, _ = run(capsys, "versions", "--project", "1", "--json", *here)
    [listed] = json.loads(out)
    assert (listed["project"], listed["current"]) == (KEY, trained)
    assert listed["versions"][0]["scores"] == {"held_out_f1": 0.75}


@pytest.mark.usefixtures("examples", "versions")
@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["promote", "--project", "1", "nonsense"], "'nonsense'"),
        (["promote", "--project", "99", "x"], f"'99' is not known here; there are: {KEY} (title of 1), {OTHER}"),
        (["rollback", "--project", "3"], OTHER),
        (["versions", "--project", "x"], "'x'"),
        (["forget", "--task", "77"], "task 77"),
        (["train", "--project", "1"], "2 accepted annotations"),
        (["train", "--project", "99"], "'99'"),
        (["sync", "--project", "1"], "LABEL_STUDIO_API_KEY"),
        (["sync", "--project", "one"], "'one'"),
        (["train", "--project", "1", "--data", "/no/such.conll"], "/no/such.conll"),
        (["train", "--project", "1", "--data", "/no/such.json"], "/no/such.json"),
    ],
)
def test_what_cannot_be_done_is_said(
    capsys: pytest.CaptureFixture[str], here: list[str], arguments: list[str], named: str
) -> None:
    status, _, err = run(capsys, *arguments, *here)
    assert status == 2
    assert named in err
    assert "Traceback" not in err


@pytest.mark.usefixtures("versions")
def test_an_id_that_two_projects_share_asks_for_the_key(
    capsys: pytest.CaptureFixture[str], here: list[str], examples: ExampleStore
) -> None:
    fill(examples, TWIN, [1])
    status, _, err = run(capsys, "rollback", "--project", "1", *here)
    assert status == 2
    assert KEY in err
    assert TWIN in err


def test_forget_tells_who_saw_it(
    capsys: pytest.CaptureFixture[str], here: list[str], examples: ExampleStore, versions: tuple[str, str]
) -> None:
    status, out, _ = run(capsys, "forget", "--task", "1", "--retrain", *here)
    assert status == 0
    for said in (KEY, "1 annotations", versions[1], "requested: train-1-"):
        assert said in out
    assert [annotation.id for annotation in examples.annotations(KEY)] == [2]


@pytest.mark.parametrize("with_config", [True, False])
def test_an_export_of_label_studio_is_added_to_the_examples(
    capsys: pytest.CaptureFixture[str], here: list[str], examples: ExampleStore, tmp_path: Path, with_config: bool
) -> None:
    value = {"start": 0, "end": 5, "labels": ["Person"]}
    region = {"id": "r", "from_name": "label", "to_name": "text", "type": "labels", "value": value}
    tasks: Any = [{"id": 9, "data": {"text": "Marie"}, "annotations": [{"id": 90, "result": [region]}]}]
    (tmp_path / "export.json").write_text(json.dumps(tasks), encoding="utf-8")
    (tmp_path / "config.xml").write_text(CONFIG, encoding="utf-8")
    arguments = ["train", "--project", "1", "--data", str(tmp_path / "export.json")]
    if with_config:
        arguments += ["--label-config", str(tmp_path / "config.xml")]
    status, out, err = run(capsys, *arguments, *here)
    assert status == 2
    if with_config:
        assert "1 annotations" in out
        assert "3 accepted annotations" in err, "two were there, and a training needs more"
    else:
        assert "--label-config" in err
    assert len(examples.annotations(KEY)) == 2 + with_config


@pytest.mark.parametrize("content", ["", "{}", "[1]", "[]", '[{"id": 1, "data": {}}]', '[{"id": 1, "text": "min"}]'])
def test_what_is_no_export_is_refused(
    capsys: pytest.CaptureFixture[str], here: list[str], examples: ExampleStore, tmp_path: Path, content: str
) -> None:
    (tmp_path / "export.json").write_text(content, encoding="utf-8")
    status, _, err = run(capsys, "train", "--project", "1", "--data", str(tmp_path / "export.json"), *here)
    assert status == 2
    assert "export.json" in err
    assert len(examples.annotations(KEY)) == 2


def test_commands_start_the_embedded_store_where_no_backend_runs_and_use_it_where_one_does(
    capsys: pytest.CaptureFixture[str], checkpoint: Path, tmp_path: Path
) -> None:
    here = ["--model", str(checkpoint), "--model-dir", str(tmp_path)]
    store_dir = Settings(model_dir=tmp_path).store_dir
    with store.embedded(store_dir) as url, store.connect(url) as client:
        fill(ExampleStore(client), KEY, [1])
        status, out, _ = run(capsys, "versions", *here)
        assert (status, f"project {KEY}: " in out) == (0, True)
        assert client.ping(), "it goes on"
    status, out, _ = run(capsys, "versions", *here)
    assert (status, f"project {KEY}: " in out) == (0, True)
    with store.connect(store.embedded_url(store_dir)) as client:
        assert not store.answers(client), "it has ended with the command"


def test_a_worker_needs_a_backend_or_a_store(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in Settings.model_fields:  # the command writes its settings there, for its children
        monkeypatch.setenv(variable(name), "")
    status, _, err = run(capsys, "worker", "--model-dir", str(tmp_path))
    assert status == 2
    assert str(tmp_path) in err
    assert "REDIS_URL" in err
