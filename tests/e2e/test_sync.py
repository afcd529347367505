"""What webhooks did not bring is fetched: `gner-backend sync` against a real Label Studio, with both kinds of token."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.conftest import ready_backend
from tests.support import labelled_sentences as labelled
from tests.support.backend import Backend
from tests.support.label_studio import LabelStudio

pytestmark = pytest.mark.e2e

CONFIG = labelled.label_config(["Dish", "Spice"])


def sync(backend: Backend, label_studio: LabelStudio, token: str, project: int) -> str:
    """What the command prints."""
    program = Path(sys.executable).with_name("gner-backend")
    environment = {
        "PATH": os.environ["PATH"],
        "MODEL_DIR": str(backend.model_dir),
        "LABEL_STUDIO_URL": label_studio.url,
        "LABEL_STUDIO_API_KEY": token,
    }
    done = subprocess.run(
        [str(program), "sync", "--project", str(project)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("kind", ["personal", "legacy"])
def test_annotations_that_no_webhook_told_of(label_studio: LabelStudio, backend: Backend, kind: str) -> None:
    token = label_studio.personal_access_token() if kind == "personal" else label_studio.legacy_token()
    project = label_studio.create_project(f"Synchronised, {kind}", CONFIG)  # no backend is connected
    sentences = labelled.RECIPES[:5]
    tasks = label_studio.import_tasks(project, [{"text": sentence.text} for sentence in sentences])
    annotations = [
        label_studio.annotate(task, sentence.regions()) for task, sentence in zip(tasks, sentences, strict=True)
    ]
    print(sync(backend, label_studio, token, project))
    key = label_studio.project_key(project)
    found = {
        annotation.task_id: [(span.start, span.end, span.label) for span in annotation.texts[0].spans]
        for annotation in backend.accepted(key)
    }
    assert found == {task: list(sentence.spans) for task, sentence in zip(tasks, sentences, strict=True)}

    label_studio.call("DELETE", f"/api/annotations/{annotations[0]['id']}")
    label_studio.call("DELETE", f"/api/tasks/{tasks[1]}")
    label_studio.call("PATCH", f"/api/annotations/{annotations[2]['id']}", {"result": []})
    print(sync(backend, label_studio, token, project))
    left = {annotation.task_id: len(annotation.texts[0].spans) for annotation in backend.accepted(key)}
    assert left == {tasks[2]: 0, tasks[3]: len(sentences[3].spans), tasks[4]: len(sentences[4].spans)}


def test_a_training_asks_label_studio_first(label_studio: LabelStudio, tmp_path: Path, artifacts: Path) -> None:
    project = label_studio.create_project("Trained without webhooks", CONFIG)  # no backend is connected
    sentences = labelled.RECIPES[:3]  # too few to train on: the error tells how many there are by then
    tasks = label_studio.import_tasks(project, [{"text": sentence.text} for sentence in sentences])
    for task, sentence in zip(tasks, sentences, strict=True):
        label_studio.annotate(task, sentence.regions())
    access = {"LABEL_STUDIO_URL": label_studio.url, "LABEL_STUDIO_API_KEY": label_studio.personal_access_token()}
    with ready_backend(tmp_path, artifacts / "backend-sync.log", **access) as backend:
        described = label_studio.call("GET", f"/api/projects/{project}")
        event = {"action": "START_TRAINING", "project": described}
        status = backend.wait_for_job(backend.post("/webhook", event, status=201)["job"], timeout_s=120)
        assert status["job_status"] == "failed"
        assert "3 accepted annotations" in status["error"]
        assert {annotation.task_id for annotation in backend.accepted(label_studio.project_key(project))} == set(tasks)
