"""Texts -> predictions: cache, segment, batch, stitch.

A text that misses its request's deadline is finished in the background, and is in the cache at the next request. A text
that is asked for twice at the same time is decoded once.
"""

import logging
import queue
import threading
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import wait as wait_for_futures
from dataclasses import dataclass, field

from backend.engine.codec import Codec, Decoded
from backend.errors import BackendError
from backend.metrics import Metrics
from backend.ner import segment
from backend.ner.spans import Question, Window
from backend.serving.batcher import Batcher
from backend.serving.cache import PredictionCache, TextPrediction, cache_key
from backend.serving.versions import Served
from backend.serving.windows import Priority, Share

log = logging.getLogger(__name__)

# How long a prefetch waits for a model that is loading.
_PREFETCH_WAIT_S = 600.0


@dataclass(slots=True)
class _Job:
    """A text that is being decoded. Everyone who asks for it waits for `answer`."""

    key: str
    question: Question
    version: str
    answer: "Future[TextPrediction]" = field(default_factory=Future)
    windows: list[Window] = field(default_factory=list)
    decoded: "list[Future[Decoded]]" = field(default_factory=list)
    missing: int = 0
    waiters: list[Priority] = field(default_factory=list)  # one for each request that waits for the answer


@dataclass(slots=True)
class _Asking:
    """One request: how urgent it is, until when it waits, and its share of the model's time."""

    priority: Priority
    deadline_s: float  # of the monotonic clock
    share: Share = field(default_factory=Share)


class Predictor:
    """Thread-safe. `start` and `stop` it with the batcher."""

    def __init__(self, batcher: Batcher, cache: PredictionCache, metrics: Metrics, *, decoding: str) -> None:
        """`decoding` is the setting; it is part of every cache key."""
        self._batcher = batcher
        self._cache = cache
        self._metrics = metrics
        self._decoding = decoding
        self._lock = threading.Lock()
        self._in_flight: dict[str, _Job] = {}
        self._finished: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        # stitching and Redis are kept out of the model's thread
        self._finisher = threading.Thread(target=self._finish_jobs, name="finisher", daemon=True)

    def start(self) -> None:
        """Start the thread that turns decoded windows into predictions."""
        self._finisher.start()

    def stop(self) -> None:
        """Finish what the model has decoded, then stop."""
        if self._finisher.is_alive():
            self._finished.put(None)
            self._finisher.join()

    @property
    def is_alive(self) -> bool:
        """Whether the thread that finishes predictions runs."""
        return self._finisher.is_alive()

    def predict(
        self, questions: Sequence[Question], timeout_s: float, priority: Priority, served: Served
    ) -> list[TextPrediction | None]:
        """The answers of `served.version`, in order; None for a text not finished in `timeout_s`, or not decodable.

        Raises LabelsIndistinguishable and PromptTooLong for a label set, one of versions.UNUSABLE for the version, and
        ModelNotReady.
        """
        asking = _Asking(priority, time.monotonic() + timeout_s)
        keys = [self._key(served.version, question) for question in questions]
        wanted = dict(zip(keys, questions, strict=True))
        pending = self._in_flight_of(wanted, asking)
        try:
            answers = self._cached([key for key in wanted if key not in pending])
            self._start_missing(wanted, answers.keys() | pending.keys(), served, asking, pending)
            futures = [job.answer for job in pending.values()]
            wait_for_futures(futures, max(0.0, asking.deadline_s - time.monotonic()))
        finally:
            self._leave(pending.values(), priority)
        for key, job in pending.items():
            if job.answer.done():
                error = job.answer.exception()
                if isinstance(error, BackendError):
                    raise error
                # one text that could not be decoded (the reason is in the log) must not fail the others
                if error is None:
                    answers[key] = job.answer.result()
        self._metrics.deadline_misses.inc(len(wanted) - len(answers))
        return [answers.get(key) for key in keys]

    def prefetch(self, questions: Sequence[Question], served: Served) -> None:
        """Start to predict what is not cached, at the lowest priority. Waits only for a model that is loading."""
        wanted = {self._key(served.version, question): question for question in questions}
        asking = _Asking(Priority.BACKGROUND, time.monotonic() + _PREFETCH_WAIT_S)
        pending = self._in_flight_of(wanted, asking)
        try:
            self._start_missing(wanted, pending.keys() | self._cached(list(wanted)).keys(), served, asking, pending)
        finally:
            self._leave(pending.values(), Priority.BACKGROUND)

    def _key(self, version: str, question: Question) -> str:
        passage = question.passage
        return cache_key(version, self._decoding, question.labels, passage.text, passage.breaks)

    def _drafts(self, questions: Sequence[Question], served: Served) -> list[TextPrediction | None]:
        """Cached predictions of the version served before this one; they make the best drafts."""
        if served.earlier is None:
            return [None] * len(questions)
        return self._cache.peek_many([self._key(served.earlier, question) for question in questions])

    def _in_flight_of(self, keys: Iterable[str], asking: _Asking) -> dict[str, _Job]:
        """Join the texts that are being decoded. Ask before the cache: what finishes in between is cached by then."""
        with self._lock:
            jobs = {key: self._in_flight[key] for key in keys if key in self._in_flight}
            for job in jobs.values():
                self._join(job, asking)
        return jobs

    def _join(self, job: _Job, asking: _Asking) -> None:
        """Note one more request that waits for a text. The lock must be held."""
        is_more_urgent = all(asking.priority < priority for priority in job.waiters)
        job.waiters.append(asking.priority)
        if is_more_urgent and job.decoded:
            self._batcher.set_priority(job.decoded, asking.priority, asking.share)

    def _leave(self, jobs: Iterable[_Job], priority: Priority) -> None:
        """A request waits no more. What is not decoded goes on for those who still wait, or in the background."""
        with self._lock:
            for job in jobs:
                job.waiters.remove(priority)
                left = min(job.waiters, default=Priority.BACKGROUND)
                if left > priority and job.missing:
                    self._batcher.set_priority(job.decoded, left)

    def _start_missing(
        self,
        wanted: Mapping[str, Question],
        known: Collection[str],
        served: Served,
        asking: _Asking,
        pending: dict[str, _Job],
    ) -> None:
        """Start the texts that are not `known`, and add their jobs to `pending`; not more than the queue can take."""
        missing = {key: question for key, question in wanted.items() if key not in known}
        drafts = self._drafts(list(missing.values()), served)
        for index, ((key, question), draft) in enumerate(zip(missing.items(), drafts, strict=True)):
            if self._batcher.is_full(asking.priority):
                left = len(missing) - index
                log.warning(
                    "too many texts wait for the model (GNER_MAX_QUEUE): %d of %d are left out", left, len(wanted)
                )
                return
            pending[key] = self._start_or_join(_Job(key, question, served.version), draft, asking)

    def _cached(self, keys: Sequence[str]) -> dict[str, TextPrediction]:
        hits = zip(keys, self._cache.get_many(keys), strict=True)
        return {key: hit for key, hit in hits if hit is not None}

    def _start_or_join(self, job: _Job, draft: TextPrediction | None, asking: _Asking) -> _Job:
        with self._lock:
            known = self._in_flight.get(job.key)
            if known is not None:
                self._join(known, asking)
                return known
            self._in_flight[job.key] = job
            self._join(job, asking)
        try:
            codec = self._batcher.codec(max(0.0, asking.deadline_s - time.monotonic()))
            self._start(job, draft, codec, asking.share)
        except BaseException as error:
            with self._lock:
                del self._in_flight[job.key]
            job.answer.set_exception(error)
            raise
        return job

    def _start(self, job: _Job, draft: TextPrediction | None, codec: Codec, share: Share) -> None:
        labels, passage = job.question.labels, job.question.passage
        words = segment.words(passage.text, passage.breaks)
        job.windows = codec.windows(labels, passage.text, words, passage.breaks)
        tags = None if draft is None else segment.tags_of(draft.spans, words)
        prompts = [
            codec.encode(
                labels,
                [word.text for word in window.words],
                None if tags is None else tags[window.first_word : window.first_word + len(window.words)],
            )
            for window in job.windows
        ]
        job.missing = len(prompts)
        if not prompts:
            self._finished.put(job)
            return
        with self._lock:  # whoever joins or leaves meanwhile changes all windows or none
            priority = min(job.waiters, default=Priority.BACKGROUND)
            job.decoded = [self._batcher.submit(prompt, priority, job.version, share) for prompt in prompts]
        for future in job.decoded:
            future.add_done_callback(lambda _: self._window_done(job))

    def _window_done(self, job: _Job) -> None:
        with self._lock:
            job.missing -= 1
            if job.missing:
                return
        self._finished.put(job)

    def _finish_jobs(self) -> None:
        stopping = False
        while not stopping:
            arrived = [self._finished.get()]
            while not self._finished.empty():
                arrived.append(self._finished.get())
            stopping = None in arrived
            self._finish([job for job in arrived if job is not None])

    def _finish(self, jobs: Sequence[_Job]) -> None:
        predictions: dict[str, TextPrediction] = {}
        errors: dict[str, BaseException] = {}
        for job in jobs:
            try:
                predictions[job.key] = _stitch(job)
            except BaseException as error:  # thread boundary: a decoding error, or a cancellation at shutdown
                errors[job.key] = error
        self._cache.put_many(predictions)
        with self._lock:
            for job in jobs:
                del self._in_flight[job.key]
        # last, so that no one can join a job that has failed already
        for job in jobs:
            if job.key in errors:
                job.answer.set_exception(errors[job.key])
            else:
                job.answer.set_result(predictions[job.key])


def _stitch(job: _Job) -> TextPrediction:
    tagged = [
        word
        for window, decoded in zip(job.windows, (future.result() for future in job.decoded), strict=True)
        for word in segment.kept(window, decoded.tags, decoded.probabilities)
    ]
    confidence = segment.confidence([word.probability for word in tagged])
    return TextPrediction(tuple(segment.stitch(tagged, job.question.passage.breaks)), confidence, len(tagged))
