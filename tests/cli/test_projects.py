"""Subcommands about projects as a person uses them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import redis

from backend import store
from backend.engine import checkpoint as checkpoints
from backend.learning.annotations import AnnotatedText, Annotation, ControlLabels, LabelledSpan, Project
from backend.learning.example_store import ExampleStore
from backend.learning.registry import Registry, VersionInfo
from backend.ner.labels import PromptLabels
from backend.ner.spans import Passage
from backend.settings import Settings
from tests.support.command_line import run
from tests.support.running import CONFIG

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
        (["promote", "--project", "99", "x"], f"'99' is not known here; there are: {KEY} ('title of 1'), {OTHER}"),
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


def test_a_version_and_a_whole_project_can_be_forgotten(
    capsys: pytest.CaptureFixture[str], here: list[str], examples: ExampleStore, versions: tuple[str, str]
) -> None:
    base, trained = versions
    status, _, err = run(capsys, "forget", "--project", "1", "--version", trained, *here)
    assert (status, "promote another first" in err) == (2, True)
    run(capsys, "promote", "--project", "1", base, *here)
    status, out, _ = run(capsys, "forget", "--project", "1", "--version", trained, *here)
    assert (status, out) == (0, f"project {KEY}: version {trained} is deleted\n")
    status, out, _ = run(capsys, "forget", "--project", "1", "--everything", *here)
    assert (status, "2 annotations" in out, "versions deleted: none" in out) == (0, True, True)
    assert [project.key for project in examples.projects()] == [OTHER]
    status, _, err = run(capsys, "forget", "--everything", *here)
    assert (status, "--project" in err) == (2, True)


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
