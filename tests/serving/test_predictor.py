"""Texts -> predictions: each text goes through the model once, whoever asks for it, and nobody waits too long."""

import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pytest
import redis

from backend import store
from backend.engine.codec import Codec, Limits
from backend.engine.decode import ExactDecoder
from backend.errors import AdapterError, LabelsIndistinguishable, ModelNotReady, PromptTooLong
from backend.metrics import Metrics
from backend.ner import segment
from backend.ner.prompt import PromptFormat
from backend.ner.spans import Passage, Question, Span, TaggedWord
from backend.serving.batcher import Batcher
from backend.serving.cache import CacheLimits, PredictionCache
from backend.serving.engine import Engine
from backend.serving.predictor import Predictor
from backend.serving.versions import Served
from backend.serving.windows import BatchLimits, Priority
from tests.support import tiny
from tests.support.fakes import TIMEOUT_S, FakeEngine, refusal

PERSON = ("person",)
V1 = Served("v1")
V2 = Served("v2", "v1")


@dataclass
class Serving:
    """A running predictor over an engine."""

    engine: Engine
    client: redis.Redis | None
    limits: BatchLimits = field(default_factory=lambda: BatchLimits(100_000, 100))
    load: Callable[[], None] = lambda: None

    def __post_init__(self) -> None:
        def load() -> Engine:
            self.load()
            return self.engine

        self.metrics = Metrics()
        self.batcher = Batcher(load, self.limits, self.metrics)
        self.cache = PredictionCache(self.client, CacheLimits(10_000, 1000), self.metrics)
        self.predictor = Predictor(self.batcher, self.cache, self.metrics, decoding="exact")
        self.batcher.start()
        self.predictor.start()

    def predict(
        self,
        *texts: str,
        labels: tuple[str, ...] = PERSON,
        timeout_s: float = TIMEOUT_S,
        served: Served = V1,
    ) -> list[list[tuple[str, str]] | None]:
        """Per text the spans as (label, text); None for a text that is not finished."""
        answers = self.predictor.predict(
            [Question(Passage(text), labels) for text in texts], timeout_s, Priority.BULK, served
        )
        return [
            None if answer is None else [(span.label, text[span.start : span.end]) for span in answer.spans]
            for text, answer in zip(texts, answers, strict=True)
        ]

    def count(self, name: str) -> float:
        value = self.metrics.registry.get_sample_value(name)
        assert value is not None, name
        return value

    def stop(self) -> None:
        self.batcher.stop()
        self.predictor.stop()


@dataclass
class RealEngine:
    """An engine with a real, tiny model."""

    codec: Codec
    decoder: ExactDecoder

    def activate(self, version: str) -> None:
        """Every version is the same model."""


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def serve(valkey: redis.Redis) -> Iterator[Callable[..., Serving]]:
    running: list[Serving] = []

    def serve(engine: Engine, **options: object) -> Serving:
        serving = Serving(engine, **{"client": valkey, **options})  # type: ignore[arg-type]
        running.append(serving)
        return serving

    yield serve
    for serving in running:
        if isinstance(serving.engine, FakeEngine):
            serving.engine.decoder.gate.set()
        serving.stop()


def test_one_answer_per_text_in_order(engine: FakeEngine, serve: Callable[..., Serving]) -> None:
    engine.decoder.gate.set()
    found = serve(engine).predict("in Ada , x", "", "nothing", " \n", "Bea Cleo", "in Ada , x")
    assert found == [[("person", "Ada")], [], [], [], [("person", "Bea"), ("person", "Cleo")], [("person", "Ada")]]


def test_spans_and_scores_are_those_of_the_text(engine: FakeEngine, serve: Callable[..., Serving]) -> None:
    engine.decoder.gate.set()
    [answer] = serve(engine).predictor.predict([Question(Passage("x  Ada\r\n."), PERSON)], TIMEOUT_S, Priority.BULK, V1)
    assert answer is not None
    assert answer.spans == (Span(3, 6, "person", 0.5),)
    assert answer.num_words == 3
    assert answer.score == pytest.approx(0.5)


def test_an_empty_text_is_sure_and_needs_no_model(engine: FakeEngine, serve: Callable[..., Serving]) -> None:
    serving = serve(engine)
    [answer] = serving.predictor.predict([Question(Passage(" "), PERSON)], TIMEOUT_S, Priority.BULK, V1)
    assert answer is not None
    assert (answer.spans, answer.score, answer.num_words) == ((), 1.0, 0)
    assert engine.decoder.batches == []


def test_350_texts_asked_for_again_need_no_model(engine: FakeEngine, serve: Callable[..., Serving]) -> None:
    engine.decoder.gate.set()
    serving = serve(engine)
    texts = [f"Ada number {index}" for index in range(350)]
    first = serving.predict(*texts)
    assert serving.count("gner_windows_decoded_total") == 350
    assert serving.count("gner_cache_misses_total") == 350
    assert serving.predict(*texts) == first
    assert serving.count("gner_windows_decoded_total") == 350
    assert serving.count("gner_batches_total") == len(engine.decoder.batches)
    assert serving.count("gner_cache_hits_total") == 350
    assert serving.count("gner_cache_misses_total") == 350


def test_another_version_asks_its_own_model(engine: FakeEngine, serve: Callable[..., Serving]) -> None:
    engine.decoder.gate.set()
    serving = serve(engine)
    for served in (V1, V2, V1, V2):
        serving.predict("Ada", served=served)
    assert serving.count("gner_windows_decoded_total") == 2
    assert engine.activated == ["v1", "v2"]


def test_the_same_text_asked_of_two_versions_at_once_is_two_answers(
    engine: FakeEngine, serve: Callable[..., Serving]
) -> None:
    serving = serve(engine)
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(serving.predict, "Ada", served=V1)
        engine.decoder.wait_for_batch()
        second = threads.submit(serving.predict, "Ada", served=V2)
        engine.decoder.gate.set()
        assert first.result(TIMEOUT_S) == second.result(TIMEOUT_S) == [[("person", "Ada")]]
    assert engine.activated == ["v1", "v2"]


def test_a_version_that_cannot_be_used_is_an_error_of_the_request(
    engine: FakeEngine, serve: Callable[..., Serving]
) -> None:
    engine.decoder.gate.set()
    engine.refuses["v2"] = refusal("v2")
    serving = serve(engine)
    with pytest.raises(AdapterError, match="v2"):
        serving.predict("Ada", "Bea", served=V2)
    assert serving.predict("Ada", served=V1) == [[("person", "Ada")]]


def test_the_same_text_asked_for_twice_at_once_is_decoded_once(
    engine: FakeEngine, serve: Callable[..., Serving]
) -> None:
    serving = serve(engine, client=None)
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(serving.predict, "Ada", "Bea")
        engine.decoder.wait_for_batch()
        second = threads.submit(serving.predict, "Bea", "Ada", timeout_s=0.05)
        assert second.result(TIMEOUT_S) == [None, None], "it has joined the first, which is not done"
        engine.decoder.gate.set()
        assert first.result(TIMEOUT_S) == [[("person", "Ada")], [("person", "Bea")]]
    assert sum(map(len, engine.decoder.batches)) == 2


def test_a_text_twice_in_one_request_is_decoded_once(engine: FakeEngine, serve: Callable[..., Serving]) -> None:
    engine.decoder.gate.set()
    assert serve(engine).predict("Ada", "Ada") == [[("person", "Ada")]] * 2
    assert engine.decoder.batches == [[("Ada",)]]


def test_what_misses_the_deadline_goes_on_and_is_cached_for_the_next_call(
    engine: FakeEngine, serve: Callable[..., Serving]
) -> None:
    serving = serve(engine)
    assert serving.predict("Ada", timeout_s=0.0) == [None]
    assert serving.count("gner_deadline_misses_total") == 1
    engine.decoder.gate.set()
    assert serving.predict("Ada") == [[("person", "Ada")]]
    assert serving.predict("Ada", timeout_s=0.0) == [[("person", "Ada")]], "from the cache"
    assert serving.count("gner_windows_decoded_total") == 1


def test_what_misses_the_deadline_waits_behind_all_that_somebody_waits_for(
    engine: FakeEngine, serve: Callable[..., Serving]
) -> None:
    serving = serve(engine, limits=BatchLimits(100_000, 1))
    serving.predictor.predict([Question(Passage("busy"), PERSON)], 0.0, Priority.INTERACTIVE, V1)
    engine.decoder.wait_for_batch()
    late = [Question(Passage(f"late {index}"), PERSON) for index in range(3)]
    assert serving.predictor.predict(late, 0.0, Priority.INTERACTIVE, V1) == [None] * 3
    with ThreadPoolExecutor(1) as threads:
        asked = threads.submit(serving.predict, "Ada")
        while serving.count("gner_queued_windows") < 4:
            assert not asked.done()
        engine.decoder.gate.set()
        asked.result(TIMEOUT_S)
    serving.predict("late 0", "late 1", "late 2")
    assert engine.decoder.batches[1] == [("Ada",)]


def test_a_text_keeps_the_priority_of_the_most_urgent_who_still_wait(
    engine: FakeEngine, serve: Callable[..., Serving]
) -> None:
    serving = serve(engine, limits=BatchLimits(100_000, 1))
    shared = [Question(Passage("shared"), PERSON)]
    other = [Question(Passage("other"), PERSON)]
    serving.predictor.predict([Question(Passage("busy"), PERSON)], 0.0, Priority.BULK, V1)
    engine.decoder.wait_for_batch()
    with ThreadPoolExecutor(2) as threads:
        patient = threads.submit(serving.predictor.predict, shared, TIMEOUT_S, Priority.OPEN_TASK, V1)
        while serving.count("gner_queued_windows") < 1:
            assert not patient.done()
        # two more ask for it, and leave: one more urgent, one less
        assert serving.predictor.predict(shared, 0.0, Priority.INTERACTIVE, V1) == [None]
        assert serving.predictor.predict(shared, 0.0, Priority.BULK, V1) == [None]
        bulk = threads.submit(serving.predictor.predict, other, TIMEOUT_S, Priority.BULK, V1)
        while serving.count("gner_queued_windows") < 2:
            assert not bulk.done()
        engine.decoder.gate.set()
        assert patient.result(TIMEOUT_S) != [None]
        bulk.result(TIMEOUT_S)
    assert engine.decoder.batches[1:] == [[("shared",)], [("other",)]]


def test_texts_that_the_queue_has_no_room_for_are_left_out(
    engine: FakeEngine, serve: Callable[..., Serving], caplog: pytest.LogCaptureFixture
) -> None:
    serving = serve(engine, limits=BatchLimits(100_000, 1, queued=3))
    serving.predict("busy", timeout_s=0.0)
    engine.decoder.wait_for_batch()
    assert serving.predict(*(f"text {index}" for index in range(9)), timeout_s=0.0) == [None] * 9
    assert "6 of 9 are left out" in caplog.text
    engine.decoder.gate.set()
    assert serving.predict("text 0", "text 8") == [[], []]
    assert serving.count("gner_windows_decoded_total") == 5, "busy, three of the nine, and text 8 now"


def test_what_is_done_at_the_deadline_is_answered(engine: FakeEngine, serve: Callable[..., Serving]) -> None:
    serving = serve(engine)
    engine.decoder.gate.set()
    serving.predict("Ada")
    engine.decoder.gate.clear()
    assert serving.predict("Bea", "Ada", "Cleo", timeout_s=0.05) == [None, [("person", "Ada")], None]


def test_a_text_that_cannot_be_decoded_is_missing_and_tried_anew_next_time(
    engine: FakeEngine, serve: Callable[..., Serving]
) -> None:
    engine.decoder.gate.set()
    engine.decoder.fails = lambda one: "poison" in one.words
    serving = serve(engine)
    assert serving.predict("Ada", "poison", "Bea") == [[("person", "Ada")], None, [("person", "Bea")]]
    engine.decoder.fails = lambda _: False
    assert serving.predict("poison") == [[]]


def test_stop_ends_the_finisher_though_more_has_arrived_meanwhile(
    engine: FakeEngine, valkey: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    serving = Serving(engine, valkey)
    busy, go_on = threading.Event(), threading.Event()

    def put_slowly(_: object) -> None:
        busy.set()
        assert go_on.wait(TIMEOUT_S)

    monkeypatch.setattr(serving.cache, "put_many", put_slowly)
    serving.predict(" ", timeout_s=0.0)
    assert busy.wait(TIMEOUT_S)
    serving.predict("", timeout_s=0.0)  # stands in the finisher's queue, and the sign to stop behind it
    stopping = threading.Thread(target=serving.stop, daemon=True)
    stopping.start()
    stopping.join(0.05)
    go_on.set()
    stopping.join(TIMEOUT_S)
    assert not stopping.is_alive()


def test_without_redis_predictions_go_on(engine: FakeEngine, serve: Callable[..., Serving]) -> None:
    engine.decoder.gate.set()
    with store.connect("unix:///no/such/socket") as nowhere:
        serving = serve(engine, client=nowhere)
        assert serving.predict("Ada") == [[("person", "Ada")]]
        assert serving.cache.state == "down"


@pytest.mark.parametrize("labels", [("person", "Person"), ("東", "京")])
def test_labels_that_cannot_be_told_apart_are_an_error_of_the_request(
    engine: FakeEngine, serve: Callable[..., Serving], labels: tuple[str, ...]
) -> None:
    engine.decoder.gate.set()
    serving = serve(engine)
    with pytest.raises(LabelsIndistinguishable):
        serving.predict("Ada", labels=labels)
    assert serving.predict("Ada") == [[("person", "Ada")]], "and of that request alone"
    with pytest.raises(LabelsIndistinguishable):
        serving.predict("Ada", labels=labels)


def test_a_label_set_that_leaves_no_room_is_an_error_of_the_request(
    engine: FakeEngine, serve: Callable[..., Serving]
) -> None:
    engine.codec = Codec(
        tiny.bert_tokenizer(), PromptFormat("{labels} : {sentence}"), Limits(12, 640), source_ends_with_eos=True
    )
    with pytest.raises(PromptTooLong, match="label"):
        serve(engine).predict("Ada", labels=tuple(f"type {number}" for number in range(9)))


def test_while_the_model_loads_a_request_waits_as_long_as_it_may(
    engine: FakeEngine, serve: Callable[..., Serving]
) -> None:
    may_load = threading.Event()
    engine.decoder.gate.set()

    def wait() -> None:
        assert may_load.wait(TIMEOUT_S)

    serving = serve(engine, load=wait)
    with pytest.raises(ModelNotReady, match="still loading"):
        serving.predict("Ada", timeout_s=0.01)
    with ThreadPoolExecutor(1) as threads:
        patient = threads.submit(serving.predict, "Ada")
        may_load.set()
        assert patient.result(TIMEOUT_S) == [[("person", "Ada")]]


def test_prefetched_texts_are_in_the_cache_when_they_are_asked_for(
    engine: FakeEngine, serve: Callable[..., Serving]
) -> None:
    engine.decoder.gate.set()
    serving = serve(engine)
    texts = [f"Ada {index}" for index in range(30)]
    serving.predictor.prefetch([Question(Passage(text), PERSON) for text in texts], V1)
    serving.predict(*texts)  # joins what is not done yet
    assert serving.count("gner_windows_decoded_total") == 30
    before = serving.count("gner_cache_hits_total")
    serving.predict(*texts)
    assert serving.count("gner_cache_hits_total") == before + 30
    serving.predictor.prefetch([Question(Passage(text), PERSON) for text in texts], V1)
    assert serving.predict(*texts) == [[("person", "Ada")]] * 30
    assert serving.count("gner_windows_decoded_total") == 30


def test_who_asks_goes_before_what_nobody_asked_for_yet(engine: FakeEngine, serve: Callable[..., Serving]) -> None:
    serving = serve(engine, limits=BatchLimits(100_000, 1))
    serving.predictor.prefetch([Question(Passage(f"background {index}"), PERSON) for index in range(5)], V1)
    engine.decoder.wait_for_batch()
    with ThreadPoolExecutor(1) as threads:
        asked = threads.submit(serving.predict, "Ada")
        # the queue holds the four that wait and the one that was asked for
        while serving.count("gner_queued_windows") < 5:
            assert not asked.done()
        engine.decoder.gate.set()
        asked.result(TIMEOUT_S)
        serving.predict(*(f"background {index}" for index in range(5)))
    assert engine.decoder.batches[1] == [("Ada",)]


def test_a_long_document_is_stitched_from_its_windows(engine: FakeEngine, serve: Callable[..., Serving]) -> None:
    engine.codec = Codec(
        tiny.bert_tokenizer(), PromptFormat("{labels} : {sentence}"), Limits(60, 60), source_ends_with_eos=True
    )
    engine.decoder.gate.set()
    text = " ".join(f"in Ada{'.' if index % 7 == 0 else ''}" for index in range(300))
    serving = serve(engine)
    [found] = serving.predict(text)
    assert found == [("person", "Ada")] * 300
    assert serving.count("gner_windows_decoded_total") > 20


def test_threads_with_different_schemas_do_not_cross_talk(serve: Callable[..., Serving]) -> None:
    family, codec = tiny.bert()

    schemas = [PERSON, ("city", "person"), ("work", "work of art"), ("a", "b", "c")]
    rng = random.Random(5)
    texts = [" ".join(rng.choices(["Marie", "Curie", "worked", "in", "Paris", ",", "x"], k=9)) for _ in range(6)]
    alone = {}
    decoder = ExactDecoder(family, 48)
    for labels in schemas:
        for text in texts:
            words = segment.words(text)
            [decoded] = decoder.decode([codec.encode(labels, [word.text for word in words])])
            spans = segment.stitch([TaggedWord(word, tag, 1.0) for word, tag in zip(words, decoded.tags, strict=True)])
            alone[labels, text] = [(span.label, text[span.start : span.end]) for span in spans]
    assert len({str(spans) for spans in alone.values()}) > 4, "the schemas must give different spans"
    serving = serve(RealEngine(codec, ExactDecoder(family, 48)), limits=BatchLimits(600, 8))
    with ThreadPoolExecutor(8) as threads:
        asked = [
            (labels, threads.submit(serving.predict, *texts, labels=labels)) for _ in range(3) for labels in schemas
        ]
        for labels, future in asked:
            assert future.result(TIMEOUT_S) == [alone[labels, text] for text in texts]
    assert serving.count("gner_windows_decoded_total") == len(alone), "each text and schema once"


def test_what_an_earlier_version_said_is_the_draft(serve: Callable[..., Serving]) -> None:
    family, codec = tiny.bert()
    text = "Marie Curie worked in Paris for the University of Paris ."
    serving = serve(RealEngine(codec, ExactDecoder(family, 1_000)))

    def passes_for(served: Served) -> float:
        before = serving.count("gner_decoder_passes_total")
        assert serving.predict(text, served=served) == said
        return serving.count("gner_decoder_passes_total") - before

    said = serving.predict(text, served=V1)
    first = serving.count("gner_decoder_passes_total")
    assert passes_for(V2) == 1 < first
    assert passes_for(Served("v3", None)) == first
    assert serving.count("gner_cache_hits_total") == 0
