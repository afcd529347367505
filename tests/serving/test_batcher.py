"""The owner of the model: which windows go first, which share a batch, and that none gets lost."""

import logging
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from typing import Any

import pytest

from backend.engine.codec import Decoded, EncodedPrompt
from backend.engine.decode import ExactDecoder, Work
from backend.engine.decoding_state import GiveWay, go_on
from backend.errors import AdapterError, ModelNotReady
from backend.metrics import Metrics
from backend.serving.batcher import Batcher, State
from backend.serving.windows import BatchLimits, Priority, Share
from tests.support import tiny
from tests.support.fakes import BASE, TIMEOUT_S, FakeEngine, answer, codec, refusal

ROOMY = BatchLimits(tokens=1_000_000, rows=1000)


def prompt(*words: str) -> EncodedPrompt:
    return codec().encode(("person",), words)


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def start() -> Iterator[Callable[..., Batcher]]:
    """Start a batcher over an engine; stopped at the end, whatever happens."""
    running: list[tuple[FakeEngine, Batcher]] = []

    def start(engine: FakeEngine, limits: BatchLimits = ROOMY, metrics: Metrics | None = None) -> Batcher:
        batcher = Batcher(lambda: engine, limits, metrics or Metrics())
        running.append((engine, batcher))
        batcher.start()
        return batcher

    yield start
    for of_test, batcher in running:
        of_test.decoder.gate.set()
        batcher.stop()


def occupy(engine: FakeEngine, batcher: Batcher) -> None:
    """Keep the model busy with a first window, so that later ones wait."""
    batcher.submit(prompt("first"), Priority.BULK, BASE)
    engine.decoder.wait_for_batch()


def test_answers_come_to_those_who_asked(engine: FakeEngine, start: Callable[..., Batcher]) -> None:
    engine.decoder.gate.set()
    batcher = start(engine)
    prompts = [prompt("Ada", *["x"] * length) for length in range(20)]
    futures = [batcher.submit(one, Priority.BULK, BASE) for one in prompts]
    assert [future.result(TIMEOUT_S) for future in futures] == [answer(one.labels, one.words) for one in prompts]


def test_an_idle_model_starts_at_once_and_what_comes_meanwhile_shares_the_next_batch(
    engine: FakeEngine, start: Callable[..., Batcher]
) -> None:
    batcher = start(engine)
    occupy(engine, batcher)
    futures = [batcher.submit(prompt(word), Priority.BULK, BASE) for word in "abcde"]
    engine.decoder.gate.set()
    for future in futures:
        future.result(TIMEOUT_S)
    assert engine.decoder.batches == [[("first",)], [(word,) for word in "abcde"]]


def test_the_most_urgent_go_first(engine: FakeEngine, start: Callable[..., Batcher]) -> None:
    batcher = start(engine, BatchLimits(tokens=1_000_000, rows=1))
    occupy(engine, batcher)
    order = [Priority.BACKGROUND, Priority.BULK, Priority.INTERACTIVE, Priority.OPEN_TASK, Priority.BULK]
    futures = [batcher.submit(prompt(f"{p.name}{i}"), p, BASE) for i, p in enumerate(order)]
    engine.decoder.gate.set()
    for future in futures:
        future.result(TIMEOUT_S)
    assert [batch[0][0] for batch in engine.decoder.batches[1:]] == [
        "INTERACTIVE2",
        "OPEN_TASK3",
        "BULK1",
        "BULK4",
        "BACKGROUND0",
    ]


def test_windows_move_up_and_down(engine: FakeEngine, start: Callable[..., Batcher]) -> None:
    batcher = start(engine, BatchLimits(tokens=1_000_000, rows=1))
    occupy(engine, batcher)
    futures = [batcher.submit(prompt(word), Priority.BACKGROUND, BASE) for word in "abc"]
    futures.append(batcher.submit(prompt("bulk"), Priority.BULK, BASE))
    batcher.set_priority([futures[2]], Priority.OPEN_TASK, Share())
    engine.decoder.gate.set()
    for future in futures:
        future.result(TIMEOUT_S)
    assert [batch[0][0] for batch in engine.decoder.batches[1:]] == ["c", "bulk", "a", "b"]


def test_a_poison_prompt_does_not_take_its_batch_mates_along(
    engine: FakeEngine, start: Callable[..., Batcher], caplog: pytest.LogCaptureFixture
) -> None:
    engine.decoder.fails = lambda one: "poison" in one.words
    batcher = start(engine)
    occupy(engine, batcher)
    futures = {word: batcher.submit(prompt(word), Priority.BULK, BASE) for word in ("Ada", "poison", "Bea")}
    engine.decoder.gate.set()
    assert futures["Ada"].result(TIMEOUT_S) == answer(("person",), ("Ada",))
    assert futures["Bea"].result(TIMEOUT_S) == answer(("person",), ("Bea",))
    with pytest.raises(RuntimeError, match="poison"):
        futures["poison"].result(TIMEOUT_S)
    assert batcher.submit(prompt("Cleo"), Priority.BULK, BASE).result(TIMEOUT_S), "and the thread goes on"
    assert any(record.levelno == logging.ERROR and record.exc_info for record in caplog.records)


def test_a_window_that_nobody_waits_for_any_more_is_not_decoded(
    engine: FakeEngine, start: Callable[..., Batcher]
) -> None:
    batcher = start(engine)
    occupy(engine, batcher)
    unwanted, wanted = (batcher.submit(prompt(word), Priority.BULK, BASE) for word in ("unwanted", "wanted"))
    assert unwanted.cancel()
    engine.decoder.gate.set()
    wanted.result(TIMEOUT_S)
    assert engine.decoder.batches[1:] == [[("wanted",)]]


def test_stop_lets_the_batch_in_flight_finish_and_cancels_what_waits(
    engine: FakeEngine, start: Callable[..., Batcher]
) -> None:
    batcher = start(engine, BatchLimits(tokens=1_000_000, rows=1))
    in_flight = batcher.submit(prompt("Ada"), Priority.BULK, BASE)
    engine.decoder.wait_for_batch()
    waiting = [batcher.submit(prompt(word), Priority.BULK, BASE) for word in "abc"]
    stopping = threading.Thread(target=batcher.stop)
    stopping.start()
    engine.decoder.gate.set()
    stopping.join(TIMEOUT_S)
    assert not stopping.is_alive()
    assert in_flight.result(TIMEOUT_S) == answer(("person",), ("Ada",))
    for future in waiting:
        with pytest.raises(CancelledError):
            future.result(TIMEOUT_S)
    assert "model" not in {thread.name for thread in threading.enumerate()}


def test_what_is_submitted_after_stop_is_cancelled_too(engine: FakeEngine, start: Callable[..., Batcher]) -> None:
    batcher = start(engine)
    batcher.stop()
    assert batcher.submit(prompt("Ada"), Priority.BULK, BASE).cancelled()


# --- the states of the model


def test_loading_then_ready() -> None:
    may_load = threading.Event()
    engine = FakeEngine()
    engine.decoder.gate.set()

    def load() -> FakeEngine:
        assert may_load.wait(TIMEOUT_S)
        return engine

    batcher = Batcher(load, ROOMY, Metrics())
    batcher.start()
    assert (batcher.state, batcher.failure) == (State.LOADING, None)
    with pytest.raises(ModelNotReady, match="still loading"):
        batcher.codec(0.0)
    early = batcher.submit(prompt("Ada"), Priority.BULK, BASE)
    may_load.set()
    assert batcher.codec(TIMEOUT_S) is engine.codec
    assert batcher.state is State.READY
    assert early.result(TIMEOUT_S) == answer(("person",), ("Ada",)), "who asked while it was loading is answered"
    batcher.stop()


def test_a_model_that_cannot_be_loaded_says_why_to_everyone() -> None:
    heard: list[BaseException] = []
    told = threading.Event()

    def load() -> FakeEngine:
        raise OSError("weights are gone")

    def on_failure(error: BaseException) -> None:
        heard.append(error)
        told.set()

    batcher = Batcher(load, ROOMY, Metrics(), on_failure)
    batcher.start()
    with pytest.raises(ModelNotReady, match="weights are gone"):
        batcher.codec(TIMEOUT_S)
    assert (batcher.state, batcher.failure) == (State.FAILED, "weights are gone")
    assert told.wait(TIMEOUT_S)
    assert [str(error) for error in heard] == ["weights are gone"]
    batcher.stop()


def test_stop_frees_who_waits_for_a_model_that_loads() -> None:
    may_load = threading.Event()

    def load() -> FakeEngine:
        assert may_load.wait(TIMEOUT_S)
        return FakeEngine()

    batcher = Batcher(load, ROOMY, Metrics())
    batcher.start()
    stopping = threading.Thread(target=batcher.stop)
    stopping.start()
    with pytest.raises(ModelNotReady):
        batcher.codec(TIMEOUT_S)
    may_load.set()
    stopping.join(TIMEOUT_S)
    assert not stopping.is_alive()


def test_batches_of_a_real_model_are_counted() -> None:
    family, real = tiny.bert()

    class Engine:
        codec = real
        decoder = ExactDecoder(family, 48)

        def activate(self, version: str) -> None:
            pass

    metrics = Metrics()
    batcher = Batcher(Engine, BatchLimits(tokens=300, rows=4), metrics)
    rng = random.Random(0)
    prompts = [
        real.encode(("person", "city"), rng.choices(["Marie", "in", "Paris"], k=rng.randint(1, 9))) for _ in range(20)
    ]
    batcher.start()
    futures = [batcher.submit(one, Priority.BULK, BASE) for one in prompts]
    found = [future.result(TIMEOUT_S) for future in futures]
    batcher.stop()
    assert [one.tags for one in found] == [one.tags for one in ExactDecoder(family, 48).decode(prompts)]

    def count(name: str) -> float:
        return metrics.registry.get_sample_value(name) or 0.0

    work = Engine.decoder.work
    assert count("gner_windows_decoded_total") == work.windows == 20
    assert count("gner_decoder_passes_total") == work.passes > 0
    assert count("gner_decoder_tokens_total") == work.decoder_tokens > 0
    assert count("gner_output_tokens_total") == work.output_tokens > 0
    assert 5 <= count("gner_batches_total") <= 20
    assert count("gner_queued_windows") == 0


# --- who need not wait for the batch in flight


class SlowDecoder:
    """Works in steps, as real decoders do: gives way after each. Notes the order in which batches begin and end."""

    def __init__(self, batcher: Callable[[], Batcher]) -> None:
        self.work = Work()
        self.seen: list[str] = []
        self.during: dict[str, Callable[[Batcher], object]] = {}  # what arrives while a batch is in its first step
        self._batcher = batcher

    def decode(self, prompts: Sequence[EncodedPrompt], give_way: GiveWay = go_on) -> list[Decoded]:
        name = prompts[0].words[0]
        self.seen.append(f"{name} begins")
        arrival = self.during.pop(name, None)
        if arrival is not None:
            arrival(self._batcher())
        for _ in range(3):
            give_way()
        self.seen.append(f"{name} ends")
        return [answer(prompt.labels, prompt.words) for prompt in prompts]


class SlowEngine(FakeEngine):
    """With a SlowDecoder."""

    decoder: SlowDecoder  # type: ignore[assignment]


def slow(limits: BatchLimits = ROOMY) -> tuple[SlowEngine, Batcher]:
    engine = SlowEngine()
    batcher = Batcher(lambda: engine, limits, Metrics())
    engine.decoder = SlowDecoder(lambda: batcher)
    return engine, batcher


def submits(word: str, priority: Priority, length: int = 1, version: str = BASE) -> Callable[[Batcher], object]:
    return lambda batcher: batcher.submit(prompt(word, *["x"] * (length - 1)), priority, version)


@pytest.mark.parametrize(
    ("running", "arriving", "gives_way"),
    [
        (submits("a", Priority.BULK), submits("b", Priority.OPEN_TASK), True),
        (submits("a", Priority.BACKGROUND), submits("b", Priority.BULK), True),
        (submits("a", Priority.OPEN_TASK), submits("b", Priority.INTERACTIVE, version="V"), True),
        (submits("a", Priority.OPEN_TASK), submits("b", Priority.BULK), False),
        (submits("a", Priority.BULK, 200), submits("b", Priority.BULK), False),
        (submits("a", Priority.OPEN_TASK, 200), submits("b", Priority.OPEN_TASK), True),
        (submits("a", Priority.OPEN_TASK, 20), submits("b", Priority.OPEN_TASK, 20), False),
    ],
)
def test_a_batch_gives_way_to_what_is_more_urgent_or_much_shorter(
    running: Callable[[Batcher], Any], arriving: Callable[[Batcher], Any], gives_way: bool
) -> None:
    engine, batcher = slow()
    arrived: list[Any] = []
    engine.decoder.during["a"] = lambda batcher: arrived.append(arriving(batcher))
    first = running(batcher)
    batcher.start()
    assert first.result(TIMEOUT_S)
    assert arrived[0].result(TIMEOUT_S)
    batcher.stop()
    assert engine.decoder.seen == (
        ["a begins", "b begins", "b ends", "a ends"] if gives_way else ["a begins", "a ends", "b begins", "b ends"]
    )
    if gives_way:
        assert engine.activated[-1] == BASE, "the batch that gave way goes on with its own version"


def test_those_who_give_way_may_have_been_given_way() -> None:
    engine, batcher = slow()
    arrived: list[Any] = []
    engine.decoder.during = {
        "a": lambda batcher: arrived.append(submits("b", Priority.OPEN_TASK)(batcher)),
        "b": lambda batcher: arrived.append(submits("c", Priority.INTERACTIVE)(batcher)),
    }
    first: Any = submits("a", Priority.BULK)(batcher)
    batcher.start()
    first.result(TIMEOUT_S)
    for future in arrived:
        future.result(TIMEOUT_S)
    batcher.stop()
    assert [seen.split()[0] for seen in engine.decoder.seen] == ["a", "b", "c", "c", "b", "a"]


@pytest.mark.parametrize("kind", ["bert", "t5"])
def test_a_real_decoder_may_be_used_between_its_steps(kind: str) -> None:
    family, real = tiny.bert() if kind == "bert" else tiny.t5()
    decoder = ExactDecoder(family, 8)
    long, short = (real.encode(("person", "city"), ["Marie", "in", "Paris"] * length) for length in (20, 1))
    alone = [decoder.decode([one])[0].tags for one in (long, short)]
    between: list[tuple[str, ...]] = []
    meanwhile = decoder.decode([long], lambda: between.append(decoder.decode([short])[0].tags))
    assert [meanwhile[0].tags, between[0]] == alone
    assert len(between) > 2
    assert len({*between}) == 1


# --- versions, and what else is done in the model's thread


def test_a_batch_never_mixes_versions(start: Callable[..., Batcher]) -> None:
    engine = FakeEngine()
    batcher = start(engine)
    occupy(engine, batcher)
    wanted = [(f"{version}{index}", version) for index in range(4) for version in ("A", "B", BASE)]
    futures = [batcher.submit(prompt(word), Priority.BULK, version) for word, version in wanted]
    engine.decoder.gate.set()
    for future in futures:
        future.result(TIMEOUT_S)
    assert engine.activated == [BASE, "A", "B", BASE], "the longest waiting first, and as few changes as can be"
    assert engine.decoder.batches[1:] == [[(word,) for word, of in wanted if of == v] for v in ("A", "B", BASE)]


def test_more_urgent_windows_of_another_version_go_first(engine: FakeEngine, start: Callable[..., Batcher]) -> None:
    batcher = start(engine)
    occupy(engine, batcher)
    futures = [batcher.submit(prompt("bulk"), Priority.BULK, "A")]
    futures.append(batcher.submit(prompt("drawing"), Priority.INTERACTIVE, "B"))
    engine.decoder.gate.set()
    for future in futures:
        future.result(TIMEOUT_S)
    assert engine.decoder.batches[1:] == [[("drawing",)], [("bulk",)]]


@pytest.mark.parametrize("error", [refusal("A"), RuntimeError("out of memory")])
def test_a_version_that_cannot_be_loaded_fails_its_own_windows(
    engine: FakeEngine, start: Callable[..., Batcher], caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    engine.refuses["A"] = error
    engine.decoder.gate.set()
    batcher = start(engine)
    futures = [batcher.submit(prompt("x"), Priority.BULK, "A") for _ in range(3)]
    for future in futures:
        with pytest.raises(type(error), match=str(error)):
            future.result(TIMEOUT_S)
    assert batcher.submit(prompt("Ada"), Priority.BULK, BASE).result(TIMEOUT_S) == answer(("person",), ("Ada",))
    assert "version A cannot be used" in caplog.text


def test_an_action_runs_between_two_batches(engine: FakeEngine, start: Callable[..., Batcher]) -> None:
    batcher = start(engine, BatchLimits(tokens=1_000_000, rows=1))
    occupy(engine, batcher)
    windows = [batcher.submit(prompt(word), Priority.BULK, BASE) for word in "ab"]
    seen: list[tuple[str, int]] = []
    action = batcher.run(lambda _: seen.append((threading.current_thread().name, len(engine.decoder.batches))))
    assert not action.done()
    engine.decoder.gate.set()
    action.result(TIMEOUT_S)
    for window in windows:
        window.result(TIMEOUT_S)
    assert seen == [("model", 1)], "after the batch in flight, before those that wait"


def test_an_action_that_fails_tells_who_asked_and_nobody_else(
    engine: FakeEngine, start: Callable[..., Batcher]
) -> None:
    engine.decoder.gate.set()
    batcher = start(engine)

    def fail(_: object) -> None:
        raise refusal("A")

    with pytest.raises(AdapterError, match="A was not made"):
        batcher.run(fail).result(TIMEOUT_S)
    assert batcher.submit(prompt("Ada"), Priority.BULK, BASE).result(TIMEOUT_S)
    assert batcher.run(lambda _: 7).result(TIMEOUT_S) == 7


def test_actions_are_cancelled_by_stop(engine: FakeEngine, start: Callable[..., Batcher]) -> None:
    batcher = start(engine)
    occupy(engine, batcher)
    waiting_action = batcher.run(lambda _: 7)
    stopping = threading.Thread(target=batcher.stop)
    stopping.start()
    while not batcher._stopping:
        assert stopping.is_alive()
    engine.decoder.gate.set()
    stopping.join(TIMEOUT_S)
    assert waiting_action.cancelled()
    assert batcher.run(lambda _: 7).cancelled()


def test_without_a_model_there_are_no_actions() -> None:
    may_fail = threading.Event()

    def load() -> FakeEngine:
        assert may_fail.wait(TIMEOUT_S)
        raise OSError("weights are gone")

    batcher = Batcher(load, ROOMY, Metrics())
    batcher.start()
    early = batcher.run(lambda _: 7)
    may_fail.set()
    for action in (early, batcher.run(lambda _: 7)):
        with pytest.raises(ModelNotReady, match="weights are gone"):
            action.result(TIMEOUT_S)
    batcher.stop()
