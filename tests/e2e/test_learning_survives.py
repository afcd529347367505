"""Nothing that was acknowledged is lost, and nothing half-written is served, whoever is killed."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import count
from pathlib import Path

import psutil
import pytest
import requests

from tests.e2e.conftest import ready_backend
from tests.support import labelled_sentences as labelled
from tests.support.backend import Backend
from tests.support.label_studio import Json
from tests.support.processes import is_alive, wait_until

pytestmark = pytest.mark.e2e

KEY = "31.1795333437"  # of the project that `labelled.events` come from
CONFIG = labelled.label_config(["Dish", "Spice"])
EVENTS = labelled.events(31, CONFIG, labelled.RECIPES)
ASKED = [{"id": 1, "data": {"text": "Grandmother stirs nutmeg into the goulash."}}]
TRAINING_S = 900


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    return tmp_path


Start = Callable[..., Backend]


@pytest.fixture
def start(model_dir: Path, artifacts: Path, request: pytest.FixtureRequest) -> Iterator[Start]:
    """Starts a backend over the test's folder, any number of times; all are stopped in the end."""
    logs = (artifacts / f"{request.node.name}-{number}.log" for number in count())
    with ExitStack() as started:
        yield lambda **settings: started.enter_context(ready_backend(model_dir, next(logs), **settings))


def processes(backend: Backend, word: str) -> list[psutil.Process]:
    """The backend's descendants whose command line holds a word."""
    return [process for process in backend.server.descendants() if word in " ".join(process.cmdline())]


def teach(backend: Backend) -> None:
    for event in EVENTS:
        backend.post("/webhook", event)


def stored_tasks(backend: Backend) -> set[int]:
    return {annotation.task_id for annotation in backend.accepted(KEY)}


def start_training(backend: Backend) -> str:
    event = {"action": "START_TRAINING", "project": EVENTS[0]["project"]}
    answer = requests.post(f"{backend.url}/webhook", json=event, timeout=10)
    assert answer.ok, answer.text
    return str(answer.json()["job"])


def wait_for_step(backend: Backend, job: str) -> Json:
    """Until the training has made a step."""

    def stepped() -> Json:
        status = backend.job(job)
        assert status["job_status"] != "failed", status
        return (status.get("progress") or {}).get("step")

    return backend.server.wait_until("the first step", stepped, 300)


def test_accepted_annotations_outlive_a_killed_store(start: Start) -> None:
    backend = start(GNER_TRAIN_AFTER="0")
    for event in EVENTS[:-1]:
        backend.post("/webhook", event)
    (server,) = processes(backend, "valkey-server")
    backend.post("/webhook", EVENTS[-1])
    server.kill()  # right after the 2xx
    wait_until("the store to be dead", lambda: not is_alive(server), timeout_s=10)

    # the store is away, or has been started again by then: never a 2xx for nothing
    late = dict(EVENTS[0], annotation={**EVENTS[0]["annotation"], "id": 9, "task": 99}, task={"id": 99, "data": {}})
    answer = requests.post(f"{backend.url}/webhook", json=late, timeout=10)
    assert answer.status_code in (200, 503), answer.text
    assert set(answer.json()) >= ({"error", "detail"} if answer.status_code == 503 else {"status"})
    acknowledged = {event["task"]["id"] for event in EVENTS} | ({99} if answer.status_code == 200 else set())
    backend.server.interrupt()

    assert stored_tasks(start(GNER_TRAIN_AFTER="0")) == acknowledged


def test_accepted_annotations_outlive_a_killed_backend(start: Start) -> None:
    backend = start(GNER_TRAIN_AFTER="0")
    teach(backend)
    backend.server.kill()  # all of it: supervisor, web process, worker, store
    assert stored_tasks(start(GNER_TRAIN_AFTER="0")) == {event["task"]["id"] for event in EVENTS}


@pytest.mark.parametrize("whom", ["the work horse", "the worker and all it started"])
def test_a_killed_training_runs_again_or_fails_visibly(start: Start, model_dir: Path, whom: str) -> None:
    backend = start(GNER_TRAIN_AFTER="0")
    teach(backend)
    before = backend.setup(KEY, CONFIG)["model_version"]
    job = start_training(backend)
    wait_for_step(backend, job)
    victims = processes(backend, "work-horse")
    assert victims, "no process does the job"
    if whom == "the worker and all it started":
        victims += processes(backend, "backend.cli worker")
    for process in victims:
        process.kill()

    assert backend.setup(KEY, CONFIG)["model_version"] == before
    assert backend.predict(KEY, CONFIG, ASKED)[0]["model_version"] == before
    status = backend.wait_for_job(job, TRAINING_S)
    print(f"after the kill: {status}")
    assert status["job_status"] == "finished" or status["error"]
    told = backend.versions(KEY)["versions"]
    # whole versions or none: every folder that can be loaded is one that is told of
    whole = [folder for folder in labelled.version_folders(model_dir) if not folder.name.startswith(".")]
    assert sorted(folder.name for folder in whole) == sorted(version["version"] for version in told)
    if status["job_status"] == "finished":
        assert status["result"]["version"] in {version["version"] for version in told}


def test_the_twelfth_new_example_starts_a_training_and_what_it_made_can_be_rolled_back(start: Start) -> None:
    backend = start(GNER_TRAIN_AFTER="0")
    before = backend.setup(KEY, CONFIG)["model_version"]
    settings = {
        "project": KEY,
        "schema": CONFIG,
        "hostname": "",
        "access_token": "",
        "extra_params": {"train_after": 12},
    }
    backend.post("/setup", settings)
    answers = [backend.post("/webhook", event) for event in EVENTS]
    assert [answer.get("job") for answer in answers[:11]] == [None] * 11
    job = answers[11]["job"]
    assert job
    status = backend.wait_for_job(job, TRAINING_S)
    assert status["job_status"] == "finished", status

    # the gate decides by itself; by hand any version can be served, and be taken back
    version = status["result"]["version"]
    backend.post("/promote", {"project": KEY, "version": version})
    wait_until("the version to be served", lambda: backend.setup(KEY, CONFIG)["model_version"] == version, 30)
    assert backend.predict(KEY, CONFIG, ASKED)[0]["model_version"] == version
    assert backend.setup("32.1795333437", CONFIG)["model_version"] == before  # another project
    assert backend.predict("32.1795333437", CONFIG, ASKED)[0]["model_version"] == before
    backend.post("/promote", {"project": KEY, "version": before})
    wait_until("the base to be served", lambda: backend.setup(KEY, CONFIG)["model_version"] == before, 30)
    assert backend.post("/rollback", {"project": KEY})["current"] == version
    wait_until("the version to be back", lambda: backend.setup(KEY, CONFIG)["model_version"] == version, 30)


def test_a_corrupt_adapter_is_an_error_and_the_version_before_goes_on(start: Start, model_dir: Path) -> None:
    backend = start(GNER_TRAIN_AFTER="0")
    teach(backend)
    before = backend.setup(KEY, CONFIG)["model_version"]
    status = backend.wait_for_job(start_training(backend), TRAINING_S)
    version = status["result"]["version"]
    backend.post("/promote", {"project": KEY, "version": version})
    wait_until("the version to be served", lambda: backend.setup(KEY, CONFIG)["model_version"] == version, 30)
    backend.server.interrupt()
    (folder,) = [f for f in labelled.version_folders(model_dir) if f.name == version]
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])

    backend = start(GNER_TRAIN_AFTER="0")
    wait_until("the problem to be told", lambda: version in str(backend.versions(KEY)["problems"]), 30)
    assert backend.setup(KEY, CONFIG)["model_version"] == before
    assert backend.predict(KEY, CONFIG, ASKED)[0]["model_version"] == before
    assert requests.post(
        f"{backend.url}/promote", json={"project": KEY, "version": version}, timeout=10
    ).status_code == 409  # fmt: skip


def test_what_is_forgotten_is_gone(start: Start) -> None:
    backend = start(GNER_TRAIN_AFTER="0")
    teach(backend)
    backend.predict(KEY, CONFIG, [EVENTS[2]["task"]])
    answer = backend.post("/forget", {"project": KEY, "task": EVENTS[2]["task"]["id"]})
    (forgotten,) = answer["forgotten"]
    assert forgotten["annotation_ids"] == [EVENTS[2]["annotation"]["id"]]
    assert forgotten["predictions"] == 1
    assert EVENTS[2]["task"]["id"] not in stored_tasks(backend)
    before = backend.counters()
    backend.predict(KEY, CONFIG, [EVENTS[2]["task"]])
    assert backend.counters().windows_decoded == before.windows_decoded + 1  # no prediction of it was left
    backend.post("/webhook", EVENTS[2])  # an event that comes late brings nothing back
    assert EVENTS[2]["task"]["id"] not in stored_tasks(backend)
