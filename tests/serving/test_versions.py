"""Which version a project is served: the promoted one, once it is loaded; else the one before."""

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError

import pytest
import redis

from backend.errors import ModelNotReady
from backend.metrics import Metrics
from backend.serving import versions as served_module
from backend.serving.batcher import Batcher
from backend.serving.cache import CacheLimits, PredictionCache
from backend.serving.versions import Served, ServedVersions
from backend.serving.windows import BatchLimits, Priority
from tests.support.fakes import BASE, TIMEOUT_S, FakeEngine, FakeRegistry, codec, refusal

LIMITS = BatchLimits(100_000, 100)


@pytest.fixture
def registry() -> FakeRegistry:
    return FakeRegistry()


@pytest.fixture
def engine() -> FakeEngine:
    engine = FakeEngine()
    engine.decoder.gate.set()
    return engine


@pytest.fixture
def batcher(engine: FakeEngine) -> Iterator[Batcher]:
    batcher = Batcher(lambda: engine, LIMITS, Metrics())
    batcher.start()
    yield batcher
    engine.decoder.gate.set()
    batcher.stop()


@pytest.fixture
def cache(valkey: redis.Redis) -> PredictionCache:
    return PredictionCache(valkey, CacheLimits(1000, 1000), Metrics())


@pytest.fixture
def begin(registry: FakeRegistry, batcher: Batcher, cache: PredictionCache) -> Callable[[], ServedVersions]:
    """A process that starts, to which every project is new."""
    return lambda: ServedVersions(BASE, registry, batcher, cache)


def test_a_project_without_versions_is_served_the_base(begin: Callable[[], ServedVersions]) -> None:
    versions = begin()
    versions.refresh()
    assert versions.of("1") == versions.of(None) == Served(BASE)
    assert versions.problems() == {}


def test_a_promoted_version_is_served_once_it_is_loaded_and_to_its_project_alone(
    registry: FakeRegistry, engine: FakeEngine, begin: Callable[[], ServedVersions]
) -> None:
    versions = begin()
    assert versions.of("1") == Served(BASE)
    registry.publish("1", "v1")
    assert versions.of("1") == Served(BASE), "it was promoted, but not loaded"
    versions.refresh()
    assert engine.activated == ["v1"]
    assert versions.of("1") == Served("v1", BASE)
    assert versions.of("2") == versions.of(None) == Served(BASE)
    registry.publish("1", "v2", "v1")
    versions.refresh()
    assert versions.of("1") == Served("v2", "v1")


def test_nothing_is_loaded_again_at_every_look(
    registry: FakeRegistry, engine: FakeEngine, begin: Callable[[], ServedVersions]
) -> None:
    versions = begin()
    registry.publish("1", "v1")
    for _ in range(5):
        versions.refresh()
    assert engine.activated == ["v1"]


def test_while_a_batch_is_in_flight_the_version_before_goes_on(
    registry: FakeRegistry, engine: FakeEngine, batcher: Batcher, begin: Callable[[], ServedVersions]
) -> None:
    versions = begin()
    versions.of("1")
    engine.decoder.gate.clear()
    in_flight = batcher.submit(codec().encode(("person",), ["Ada"]), Priority.BULK, BASE)
    engine.decoder.wait_for_batch()
    registry.publish("1", "v1")
    swapping = threading.Thread(target=versions.refresh)
    swapping.start()
    assert versions.of("1") == Served(BASE)
    assert not in_flight.done()
    engine.decoder.gate.set()
    swapping.join(TIMEOUT_S)
    assert engine.activated == [BASE, "v1"]
    assert versions.of("1") == Served("v1", BASE)


def test_after_a_rollback_the_later_version_drafts(registry: FakeRegistry, begin: Callable[[], ServedVersions]) -> None:
    versions = begin()
    for version in ("v1", "v2"):
        registry.publish("1", version)
        versions.refresh()
    registry.pointers["1"] = "v1"
    versions.refresh()
    assert versions.of("1") == Served("v1", "v2")
    registry.pointers["1"] = ""
    versions.refresh()
    assert versions.of("1") == Served(BASE, "v1")


def test_what_was_current_is_served_from_the_start(
    registry: FakeRegistry, engine: FakeEngine, begin: Callable[[], ServedVersions]
) -> None:
    registry.publish("1", "v1")
    versions = begin()
    assert versions.of("1") == Served("v1", BASE), "before the model has loaded it, or anything: nothing else was told"
    assert engine.activated == []
    versions.refresh()
    assert engine.activated == ["v1"]


def test_after_a_restart_the_drafts_are_those_of_the_version_before(
    registry: FakeRegistry, begin: Callable[[], ServedVersions]
) -> None:
    first = begin()
    for version in ("v1", "v2"):
        registry.publish("1", version)
        first.refresh()
    assert begin().of("1") == Served("v2", "v1")


def test_after_a_change_of_the_checkpoint_too(
    registry: FakeRegistry, batcher: Batcher, cache: PredictionCache, begin: Callable[[], ServedVersions]
) -> None:
    registry.publish("1", "v1")
    versions = begin()
    assert (versions.of("1").version, versions.of(None).version) == ("v1", BASE)
    other_checkpoint = ServedVersions("base-1", FakeRegistry(), batcher, cache)
    assert other_checkpoint.of("1") == Served("base-1", "v1")
    assert other_checkpoint.of(None) == Served("base-1", BASE)


def test_a_store_that_hangs_holds_nobody_up(
    registry: FakeRegistry, batcher: Batcher, cache: PredictionCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = threading.Event()
    monkeypatch.setattr(served_module, "_EARLIER_WAIT_S", 0.0)
    monkeypatch.setattr(cache, "earlier_version", lambda *_: answers.wait(TIMEOUT_S) and "late")
    registry.publish("1", "v1")
    versions = ServedVersions(BASE, registry, batcher, cache)
    assert (versions.of("1"), versions.of(None)) == (Served("v1", BASE), Served(BASE))
    answers.set()
    versions.stop()


# --- what cannot be served


@pytest.mark.parametrize("error", [refusal("v2"), RuntimeError("out of memory")])
def test_a_version_that_cannot_be_loaded_is_reported_once_and_the_one_before_goes_on(
    registry: FakeRegistry,
    engine: FakeEngine,
    begin: Callable[[], ServedVersions],
    caplog: pytest.LogCaptureFixture,
    error: Exception,
) -> None:
    versions = begin()
    registry.publish("1", "v1")
    registry.publish("2", "w1")
    versions.refresh()
    engine.refuses["v2"] = error
    registry.publish("1", "v2", "v1")
    for _ in range(3):
        versions.refresh()
    assert versions.of("1") == Served("v1", BASE)
    [problem] = versions.problems().values()
    assert problem == f"v2 cannot be served: {error}; v1 is served"
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR] == [
        f"project 1: {problem}"
    ]
    registry.publish("2", "w2", "w1")
    versions.refresh()
    assert versions.of("2") == Served("w2", "w1"), "other projects are not held up"


def test_a_version_that_was_repaired_is_served_after_all(
    registry: FakeRegistry,
    engine: FakeEngine,
    begin: Callable[[], ServedVersions],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(served_module, "_RETRY_AFTER_S", 0.0)
    versions = begin()
    versions.of("1")
    engine.refuses["v1"] = refusal("v1")
    registry.publish("1", "v1")
    for _ in range(3):
        versions.refresh()
    assert versions.of("1") == Served(BASE)
    assert len([record for record in caplog.records if record.levelno == logging.ERROR]) == 1
    engine.refuses.clear()
    versions.refresh()
    assert versions.of("1") == Served("v1", BASE)
    assert versions.problems() == {}


def test_a_problem_ends_with_a_rollback(
    registry: FakeRegistry, engine: FakeEngine, begin: Callable[[], ServedVersions]
) -> None:
    versions = begin()
    registry.publish("1", "v1")
    versions.refresh()
    engine.refuses["v2"] = refusal("v2")
    registry.publish("1", "v2")
    versions.refresh()
    assert set(versions.problems()) == {"1"}
    registry.pointers["1"] = "v1"
    versions.refresh()
    assert versions.problems() == {}


@pytest.mark.parametrize(
    ("damaged", "served"), [(set(), "v3"), ({"v3"}, "v2"), ({"v3", "v2"}, "v1"), ({"v1", "v2", "v3"}, BASE)]
)
def test_at_the_start_the_nearest_intact_ancestor_is_served(
    registry: FakeRegistry, begin: Callable[[], ServedVersions], damaged: set[str], served: str
) -> None:
    for version, parent in (("v1", BASE), ("v2", "v1"), ("v3", "v2")):
        registry.publish("1", version, parent)
    registry.damaged = damaged
    versions = begin()
    assert versions.of("1").version == served
    versions.refresh()
    assert versions.of("1").version == served
    assert set(versions.problems()) == ({"1"} if damaged else set())
    if damaged:
        assert "v3 cannot be served: version v3 is damaged" in versions.problems()["1"]
        assert f"{served} is served" in versions.problems()["1"]


def test_at_the_start_the_nearest_ancestor_that_loads_is_served(
    registry: FakeRegistry, engine: FakeEngine, begin: Callable[[], ServedVersions]
) -> None:
    for version, parent in (("v1", BASE), ("v2", "v1"), ("v3", "v2")):
        registry.publish("1", version, parent)
        engine.refuses[version] = refusal(version)
    del engine.refuses["v1"]
    versions = begin()
    for _ in range(3):  # each look finds out about one
        versions.refresh()
    assert versions.of("1").version == "v1"
    for part in (str(refusal("v3")), str(refusal("v2")), "v1 is served"):
        assert part in versions.problems()["1"]


def test_a_version_without_a_folder_and_a_circle_of_parents_end_at_the_base(
    registry: FakeRegistry, begin: Callable[[], ServedVersions]
) -> None:
    registry.publish("1", "v1", "v2")
    registry.publish("1", "v2", "v1")
    registry.damaged = {"v1", "v2"}
    registry.publish("2", "w1")
    registry.pointers["2"] = "gone"
    versions = begin()
    assert versions.of("1").version == versions.of("2").version == BASE
    assert "no version gone" in versions.problems()["2"]


def test_a_pointer_that_cannot_be_read_changes_nothing_until_it_can(
    registry: FakeRegistry, begin: Callable[[], ServedVersions]
) -> None:
    registry.publish("1", "v1")
    early = begin()
    early.refresh()
    registry.unreadable = {"1"}
    late = begin()
    for versions in (early, late):
        versions.refresh()
        assert "cannot be read" in versions.problems()["1"]
    assert (early.of("1").version, late.of("1").version) == ("v1", BASE)
    registry.unreadable = set()
    for versions in (early, late):
        versions.refresh()
        assert versions.of("1").version == "v1"
        assert versions.problems() == {}


def test_a_project_whose_versions_were_removed_is_served_the_base(
    registry: FakeRegistry, begin: Callable[[], ServedVersions]
) -> None:
    registry.publish("1", "v1")
    versions = begin()
    versions.refresh()
    del registry.parents["1"], registry.pointers["1"]
    versions.refresh()
    assert versions.of("1").version == BASE
    assert versions.problems() == {}


def test_a_request_that_meets_a_bad_version_is_given_the_nearest_good_one(
    registry: FakeRegistry, begin: Callable[[], ServedVersions]
) -> None:
    for version, parent in (("v1", BASE), ("v2", "v1")):
        registry.publish("1", version, parent)
    versions = begin()
    met = versions.of("1")
    assert versions.replace("1", met, refusal("v2")) == versions.of("1")
    assert versions.of("1").version == "v1"
    assert versions.replace("1", met, refusal("v2")).version == "v1", "who met it at the same time gets the same"
    assert "v2 cannot be served" in versions.problems()["1"]
    assert versions.replace("1", versions.of("1"), refusal("v1")).version == BASE
    with pytest.raises(type(refusal(BASE))):
        versions.replace("1", versions.of("1"), refusal(BASE))


# --- the thread


def test_the_thread_follows_what_other_processes_promote(
    registry: FakeRegistry, engine: FakeEngine, batcher: Batcher, cache: PredictionCache
) -> None:
    loaded = threading.Semaphore(0)
    engine.activate = lambda version: loaded.release()  # type: ignore[method-assign]  # noqa: ARG005
    versions = ServedVersions(BASE, registry, batcher, cache, poll_s=0.01)
    versions.of("1")
    versions.start()
    try:
        for version in ("v1", "v2"):
            registry.publish("1", version)
            assert loaded.acquire(timeout=TIMEOUT_S)
        versions.refresh()  # after the thread's own look, which it waits for
        assert versions.of("1") == Served("v2", "v1")
    finally:
        batcher.stop()
        versions.stop()
    assert "versions" not in {thread.name for thread in threading.enumerate()}


def test_wake_does_not_wait_for_the_next_look(
    registry: FakeRegistry, engine: FakeEngine, batcher: Batcher, cache: PredictionCache
) -> None:
    looked = threading.Semaphore(0)
    projects = registry.projects

    def noted_projects() -> Sequence[str]:
        looked.release()
        return projects()

    registry.projects = noted_projects  # type: ignore[method-assign]
    versions = ServedVersions(BASE, registry, batcher, cache, poll_s=1e6)
    versions.start()
    assert looked.acquire(timeout=TIMEOUT_S)
    versions.wake()
    assert looked.acquire(timeout=TIMEOUT_S)
    batcher.stop()
    versions.stop()
    assert engine.activated == []


def test_the_thread_survives_a_registry_that_fails(
    registry: FakeRegistry, batcher: Batcher, cache: PredictionCache, caplog: pytest.LogCaptureFixture
) -> None:
    failed = threading.Semaphore(0)

    def fail() -> list[str]:
        failed.release()
        raise OSError("the disk is away")

    registry.projects = fail  # type: ignore[method-assign]
    versions = ServedVersions(BASE, registry, batcher, cache, poll_s=0.01)
    versions.start()
    for _ in range(3):
        assert failed.acquire(timeout=TIMEOUT_S)
    batcher.stop()
    versions.stop()
    assert "the disk is away" in caplog.text


def test_stop_does_not_wait_for_a_model_that_loads(registry: FakeRegistry, cache: PredictionCache) -> None:
    may_load = threading.Event()
    loading = threading.Event()

    def load() -> FakeEngine:
        loading.set()
        assert may_load.wait(TIMEOUT_S)
        return FakeEngine()

    batcher = Batcher(load, LIMITS, Metrics())
    registry.publish("1", "v1")
    versions = ServedVersions(BASE, registry, batcher, cache)
    batcher.start()
    versions.start()
    assert loading.wait(TIMEOUT_S)
    stopping = threading.Thread(target=batcher.stop)
    stopping.start()
    while not batcher._stopping:
        assert stopping.is_alive()
    may_load.set()
    stopping.join(TIMEOUT_S)
    versions.stop()
    with pytest.raises(CancelledError):
        versions.refresh()


def test_without_a_model_nothing_is_followed(registry: FakeRegistry, cache: PredictionCache) -> None:
    def load() -> FakeEngine:
        raise OSError("weights are gone")

    batcher = Batcher(load, LIMITS, Metrics())
    batcher.start()
    registry.publish("1", "v1")
    versions = ServedVersions(BASE, registry, batcher, cache)
    with pytest.raises(ModelNotReady):
        versions.refresh()
    assert versions.problems() == {}
    batcher.stop()
