"""The services put together over a real tiny checkpoint: trained versions come into use while requests run."""

import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from backend.app import Services
from backend.engine import checkpoint as checkpoints
from backend.engine.adapter_files import CONFIG_FILE, WEIGHTS_FILE
from backend.labelstudio import wire
from backend.labelstudio.model import GNERModel
from backend.learning.registry import Registry
from tests.support.running import CONFIG, TIMEOUT_S, count, publish_random, running, save_checkpoint

A, B = "1.1795333437", "2.1795333999"
TEXTS = [
    "Marie Curie worked in Paris , x",
    "the University of Paris",
    "x of art in Paris a b c",
    "2024 person in the city !",
    "University of art , city of work",
]
TASKS = [wire.Task(index, {"text": text}) for index, text in enumerate(TEXTS)]

# per task its spans; not the scores, whose last digits depend on who else is in the batch
Said = list[list[tuple[Any, ...]]]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny")


@pytest.fixture
def services(checkpoint: Path, tmp_path: Path, valkey_url: str) -> Iterator[Services]:
    with running(model=str(checkpoint), redis_url=valkey_url, cache="off", model_dir=tmp_path) as services:
        yield services


def predictions_of(services: Services, project: str) -> list[wire.Prediction]:
    model = GNERModel(label_config=CONFIG, predictor=services.predictor, served_versions=services.served)
    predictions = model.predict_tasks(TASKS, None, TIMEOUT_S, project)
    done = [prediction for prediction in predictions if prediction is not None]
    assert len(done) == len(TASKS), "a task was not answered"
    return done


def ask(services: Services, project: str) -> tuple[str, Said]:
    """All tasks -> the version that answered, and what it said."""
    done = predictions_of(services, project)
    [version] = {prediction.model_version for prediction in done}
    return version, [
        [(v["start"], v["end"], *v["labels"]) for v in (region["value"] for region in prediction.result)]
        for prediction in done
    ]


def wait_until_served(services: Services, project: str, version: str) -> None:
    deadline_s = time.monotonic() + TIMEOUT_S
    while services.served.of(project).version != version:
        assert time.monotonic() < deadline_s, services.served.problems()
        services.served.wake()
        time.sleep(0.01)


@pytest.mark.slow  # loads several versions under load
def test_a_version_comes_into_use_while_requests_of_two_projects_run(checkpoint: Path, services: Services) -> None:
    answers: dict[str, list[tuple[str, Said]]] = {A: [], B: []}
    stop = threading.Event()
    begun = threading.Barrier(5)

    def keep_asking(project: str) -> None:
        answers[project].append(ask(services, project))
        begun.wait(TIMEOUT_S)
        while not stop.is_set():
            answers[project].append(ask(services, project))

    base, said_by_base = ask(services, A)
    assert base == services.checkpoint.version
    with ThreadPoolExecutor(4) as threads:
        asking = [threads.submit(keep_asking, project) for project in (A, B, A, B)]
        begun.wait(TIMEOUT_S)
        elsewhere = Registry(services.settings.model_dir, services.checkpoint.version)  # a worker's
        first = publish_random(elsewhere, checkpoint, A, seed=1).version
        wait_until_served(services, A, first)
        before_second = len(answers[A])
        second = publish_random(elsewhere, checkpoint, A, seed=2, parent=first).version
        wait_until_served(services, A, second)
        stop.set()
        for future in asking:
            future.result(TIMEOUT_S)  # no request has failed
    assert ask(services, A)[0] == second
    said_by = {base: said_by_base, second: ask(services, A)[1]}
    elsewhere.rollback(A)
    wait_until_served(services, A, first)
    said_by[first] = ask(services, A)[1]
    assert len({str(said) for said in said_by.values()}) == 3, "the versions must say different things"
    assert before_second > 0
    for version, said in answers[A]:
        assert said == said_by[version], "an answer is of one version, the one that it names"
    assert {version for version, _ in answers[A]} >= {base}
    assert {version for version, _ in answers[B]} == {base}
    assert all(said == said_by_base for _, said in answers[B])
    assert services.served.problems() == {}


@pytest.mark.slow  # loads several versions under load
def test_versions_of_several_projects_are_in_use_at_the_same_time(checkpoint: Path, services: Services) -> None:
    projects = [f"{number}.1795333437" for number in range(1, 6)]
    versions = {
        project: publish_random(services.registry, checkpoint, project, seed).version
        for seed, project in enumerate(projects)
    }
    for project, version in versions.items():
        wait_until_served(services, project, version)
    alone = {project: ask(services, project) for project in [*projects, B]}
    assert {project: version for project, (version, _) in alone.items() if project in versions} == versions
    assert len({str(said) for _, said in alone.values()}) > 3
    with ThreadPoolExecutor(6) as threads:
        asked = [(project, threads.submit(ask, services, project)) for _ in range(3) for project in alone]
        for project, future in asked:
            assert future.result(TIMEOUT_S) == alone[project]


def test_the_cache_keeps_what_each_version_said(checkpoint: Path, tmp_path: Path, valkey_url: str) -> None:
    with running(model=str(checkpoint), redis_url=valkey_url, model_dir=tmp_path) as services:
        version, said = ask(services, A)
        published = publish_random(services.registry, checkpoint, A, seed=1).version
        wait_until_served(services, A, published)
        assert (services.served.of(A).version, services.served.of(A).earlier) == (published, version)
        windows = count(services, "gner_windows_decoded_total")
        assert ask(services, A)[0] == published
        assert count(services, "gner_windows_decoded_total") == windows + len(TASKS), "nothing old was answered"
        assert ask(services, B) == (version, said)
        assert count(services, "gner_windows_decoded_total") == windows + len(TASKS), "the base's are still cached"


# --- what goes wrong on disk


def _garble_weights(folder: Path) -> None:
    path = folder / WEIGHTS_FILE
    path.write_bytes(path.read_bytes()[:-10])


def _lose_weights(folder: Path) -> None:
    (folder / WEIGHTS_FILE).unlink()


def _garble_config(folder: Path) -> None:
    (folder / CONFIG_FILE).write_text("{", encoding="utf-8")


DAMAGES = [_garble_weights, _lose_weights, _garble_config]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_version_that_is_damaged_is_reported_and_the_one_before_goes_on(
    checkpoint: Path, services: Services, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    good = publish_random(services.registry, checkpoint, A, seed=1).version
    wait_until_served(services, A, good)
    said = ask(services, A)
    bad = publish_random(services.registry, checkpoint, A, seed=2, parent=good, promote=False).version
    folder = services.registry.folder(A, bad)
    damage(folder)
    # by hand, as promote refuses it: the file has gone bad on its way to this machine
    (folder.parent / "current.json").write_text(json.dumps({"current": bad, "history": [good]}), encoding="utf-8")
    services.served.refresh()
    assert ask(services, A) == said
    assert bad in services.served.problems()[A]
    assert good in services.served.problems()[A]
    assert any(bad in record.getMessage() for record in caplog.records if record.levelname == "ERROR")


@pytest.mark.parametrize("damage", DAMAGES)
def test_after_a_restart_over_a_damaged_version_its_parent_is_served(
    checkpoint: Path, tmp_path: Path, valkey_url: str, damage: Callable[[Path], None]
) -> None:
    registry = Registry(tmp_path, checkpoints.resolve(str(checkpoint)).version)
    good = publish_random(registry, checkpoint, A, seed=1).version
    bad = publish_random(registry, checkpoint, A, seed=2, parent=good).version
    damage(registry.folder(A, bad))
    with running(model=str(checkpoint), redis_url=valkey_url, cache="off", model_dir=tmp_path) as services:
        assert ask(services, A)[0] == good, "the request may be the first to find out, and is answered all the same"
        services.served.refresh()
        assert services.served.of(A).version == good
        assert bad in services.served.problems()[A]


def test_a_version_that_went_bad_after_it_left_the_memory_is_replaced_within_the_request(
    checkpoint: Path, services: Services
) -> None:
    good = publish_random(services.registry, checkpoint, A, seed=1).version
    wait_until_served(services, A, good)
    newest = publish_random(services.registry, checkpoint, A, seed=2, parent=good).version
    wait_until_served(services, A, newest)

    def forget(engine: Any) -> None:
        engine.activate(good)
        engine.adapters.drop(newest)

    _garble_weights(services.registry.folder(A, newest))
    assert ask(services, A)[0] == newest, "what is in memory is good"
    services.batcher.run(forget).result(TIMEOUT_S)
    assert ask(services, A)[0] == good
    assert newest in services.served.problems()[A]


@pytest.mark.parametrize("decoding", ["exact", "sequential", "generate"])
def test_every_way_of_decoding_follows_the_version(
    checkpoint: Path, tmp_path: Path, valkey_url: str, decoding: str
) -> None:
    brief = shutil.copytree(checkpoint, tmp_path / "brief")  # generate() writes on up to the limit
    described = json.loads((brief / "gner.json").read_text(encoding="utf-8"))
    (brief / "gner.json").write_text(json.dumps({**described, "max_target_tokens": 100}), encoding="utf-8")
    settings = {"model": str(brief), "redis_url": valkey_url, "cache": "off", "model_dir": tmp_path}
    with running(decoding=decoding, **settings) as services:
        # a random model's free-running answers have no spans to speak of: the scores tell who answered
        by_base = [one.score for one in predictions_of(services, A)]
        version = publish_random(services.registry, brief, A, seed=1).version
        wait_until_served(services, A, version)
        by_version = predictions_of(services, A)
        assert {one.model_version for one in by_version} == {version}
        assert [one.score for one in by_version] != pytest.approx(by_base, rel=1e-2)
        services.registry.promote(A, services.checkpoint.version)
        wait_until_served(services, A, services.checkpoint.version)
        assert [one.score for one in predictions_of(services, A)] == pytest.approx(by_base, rel=1e-4)
