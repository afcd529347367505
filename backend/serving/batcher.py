"""Owns the model: a queue of windows, batches by token budget, futures for the answers.

Requests of all annotators share batches, as far as they want the same version. One thread loads the model and runs it;
nobody else touches it.
"""

import enum
import heapq
import itertools
import logging
import threading
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

from backend.engine.codec import Codec, Decoded, EncodedPrompt
from backend.engine.decode import Decoder
from backend.errors import BackendError, ModelNotReady
from backend.metrics import Metrics
from backend.serving.engine import Engine

log = logging.getLogger(__name__)

T = TypeVar("T")

# How many waiting windows a batch is picked from: enough to find ones of like length, few enough to sort often.
_LOOKAHEAD_WINDOWS = 512


class Priority(enum.IntEnum):
    """Who waits: lower is served first."""

    INTERACTIVE = 0  # an annotator drawing a region
    OPEN_TASK = 1  # an annotator opening a task
    BULK = 2  # "retrieve predictions" over many tasks
    BACKGROUND = 3  # nobody yet


class State(str, enum.Enum):
    """Of the model; the values are what /health says."""

    LOADING = "loading"
    READY = "ready"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """What one batch may hold. Tokens count the longest row times the number of rows."""

    tokens: int
    rows: int


@dataclass(slots=True)
class _Waiting:
    order: tuple[int, int]  # priority, then arrival
    tokens: int
    prompt: EncodedPrompt
    version: str
    future: "Future[Decoded]"


@dataclass(frozen=True, slots=True)
class _Action:
    """Something to be done in the model's thread."""

    call: Callable[[Engine], Any]
    future: "Future[Any]"


class Batcher:
    """`start` it in the process that serves (after the fork), `submit` from any thread."""

    def __init__(
        self,
        load: Callable[[], Engine],
        limits: BatchLimits,
        metrics: Metrics,
        on_failure: Callable[[BaseException], None] = lambda _: None,
    ) -> None:
        """`load` is called once, in the model's thread; `on_failure` there too, if it raises."""
        self._load = load
        self._limits = limits
        self._metrics = metrics
        self._on_failure = on_failure
        self._changed = threading.Condition()
        self._waiting: list[_Waiting] = []
        self._actions: list[_Action] = []
        self._arrivals = itertools.count()
        self._engine: Engine | None = None
        self._failure: BaseException | None = None
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)

    def start(self) -> None:
        """Begin to load the model; returns at once."""
        self._thread.start()

    def stop(self) -> None:
        """Let the batch in flight finish, cancel what waits, end the thread."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join()
        for action in self._actions:
            action.future.cancel()
        for waiting in self._waiting:
            waiting.future.cancel()

    @property
    def state(self) -> State:
        if self._failure is not None:
            return State.FAILED
        return State.LOADING if self._engine is None else State.READY

    @property
    def failure(self) -> str | None:
        """Why the model could not be loaded."""
        return None if self._failure is None else str(self._failure)

    def codec(self, timeout_s: float) -> Codec:
        """The loaded checkpoint's codec; waits while the model loads. Raises ModelNotReady."""
        with self._changed:
            self._changed.wait_for(lambda: self._engine or self._failure or self._stopping, timeout_s)
            if self._engine is not None:
                return self._engine.codec
        if self._failure is not None:
            raise ModelNotReady(f"the model could not be loaded: {self._failure}")
        raise ModelNotReady(f"the model is still loading after {timeout_s:.0f} s; try again")

    def submit(self, prompt: EncodedPrompt, priority: Priority, version: str) -> "Future[Decoded]":
        """Queue one window for a version. Cancelled at once if the batcher stops."""
        tokens = len(prompt.source_ids) + sum(len(code.forced) + 4 for code in prompt.codes)
        future: Future[Decoded] = Future()
        with self._changed:
            if self._stopping:
                future.cancel()
                return future
            self._waiting.append(_Waiting((priority, next(self._arrivals)), tokens, prompt, version, future))
            self._metrics.queued_windows.set(len(self._waiting))
            self._changed.notify_all()
        return future

    def run(self, action: Callable[[Engine], T]) -> "Future[T]":
        """Have something done in the model's thread once it is loaded, between two batches.

        Cancelled if the batcher stops before; ModelNotReady if the model cannot be loaded.
        """
        future: Future[T] = Future()
        with self._changed:
            if self._stopping:
                future.cancel()
            elif self._failure is not None:
                future.set_exception(ModelNotReady(f"the model could not be loaded: {self._failure}"))
            else:
                self._actions.append(_Action(action, future))
                self._changed.notify_all()
        return future

    def promote(self, futures: "Collection[Future[Decoded]]", priority: Priority) -> None:
        """Somebody more urgent waits for these, too: what is still queued of them moves up."""
        wanted = set(map(id, futures))
        with self._changed:
            for waiting in self._waiting:
                if id(waiting.future) in wanted and priority < waiting.order[0]:
                    waiting.order = (priority, waiting.order[1])

    def _run(self) -> None:
        try:
            engine = self._load()
        except Exception as error:  # thread boundary: the reason must reach /health and the log
            expected = isinstance(error, BackendError)
            log.error("the model could not be loaded: %s", error, exc_info=None if expected else error)
            with self._changed:
                self._failure = error
                actions, self._actions = self._actions, []
                self._changed.notify_all()
            for action in actions:
                if action.future.set_running_or_notify_cancel():
                    action.future.set_exception(ModelNotReady(f"the model could not be loaded: {error}"))
            self._on_failure(error)
            return
        with self._changed:
            self._engine = engine
            self._changed.notify_all()
        while work := self._next_work():
            if isinstance(work, _Action):
                _run_action(engine, work)
            else:
                self._decode(engine, work)

    def _next_work(self) -> list[_Waiting] | _Action | None:
        """A batch, or an action that is due before it; waits for either. None when stopping."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._actions or self._stopping)
            if self._stopping:
                return None
            if self._actions:
                return self._actions.pop(0)
            batch = pick_batch(self._waiting, self._limits)
            taken = set(map(id, batch))
            self._waiting = [waiting for waiting in self._waiting if id(waiting) not in taken]
            self._metrics.queued_windows.set(len(self._waiting))
            return batch

    def _decode(self, engine: Engine, batch: Sequence[_Waiting]) -> None:
        batch = [waiting for waiting in batch if waiting.future.set_running_or_notify_cancel()]
        if not batch:
            return
        try:
            engine.activate(batch[0].version)
        except Exception as error:  # thread boundary: those who wait must hear of it, and the thread go on
            expected = isinstance(error, BackendError)
            log.error("version %s cannot be used: %s", batch[0].version, error, exc_info=None if expected else error)
            for waiting in batch:
                waiting.future.set_exception(error)
            return
        decoder = engine.decoder
        try:
            answers = self._timed_decode(decoder, [waiting.prompt for waiting in batch])
        except Exception as error:  # thread boundary: the requests that wait must hear of it, and the thread go on
            if len(batch) == 1:
                log.exception("a window of %d words could not be decoded", len(batch[0].prompt.words))
                batch[0].future.set_exception(error)
            else:
                log.warning("a batch of %d windows failed (%s); trying them one by one", len(batch), error)
                for waiting in batch:
                    self._decode_again(decoder, waiting)
            return
        for waiting, answer in zip(batch, answers, strict=True):
            waiting.future.set_result(answer)

    def _decode_again(self, decoder: Decoder, waiting: _Waiting) -> None:
        try:
            [answer] = self._timed_decode(decoder, [waiting.prompt])
        except Exception as error:  # thread boundary, as above
            log.exception("a window of %d words could not be decoded", len(waiting.prompt.words))
            waiting.future.set_exception(error)
        else:
            waiting.future.set_result(answer)

    def _timed_decode(self, decoder: Decoder, prompts: Sequence[EncodedPrompt]) -> list[Decoded]:
        work, started_s = decoder.work, time.perf_counter()
        before = (work.passes, work.decoder_tokens, work.output_tokens)
        answers = decoder.decode(prompts)
        self._metrics.decode_seconds.inc(time.perf_counter() - started_s)
        self._metrics.batches.inc()
        self._metrics.windows_decoded.inc(len(prompts))
        self._metrics.decoder_passes.inc(work.passes - before[0])
        self._metrics.decoder_tokens.inc(work.decoder_tokens - before[1])
        self._metrics.output_tokens.inc(work.output_tokens - before[2])
        return answers


def _run_action(engine: Engine, action: _Action) -> None:
    if not action.future.set_running_or_notify_cancel():
        return
    try:
        result = action.call(engine)
    except BaseException as error:  # thread boundary: whoever asked for it is told
        action.future.set_exception(error)
    else:
        action.future.set_result(result)


def pick_batch(waiting: Sequence[_Waiting], limits: BatchLimits) -> list[_Waiting]:
    """The most urgent window and those of its version most like it in length, within the limits.

    The most urgent is always taken, however long, so nothing waits forever. That is the difference to
    `batches_by_length`, which batches everything and starts with the shortest: this makes one batch around one window.
    """
    anchor = min(waiting, key=lambda w: w.order)
    # a batch must not mix versions: one set of weights is in force at a time
    alike = [one for one in waiting if one.version == anchor.version]
    urgent_first = heapq.nsmallest(_LOOKAHEAD_WINDOWS, alike, key=lambda w: w.order)
    batch: list[_Waiting] = []
    longest = 0
    for candidate in sorted(urgent_first, key=lambda w: (w.order[0], abs(w.tokens - anchor.tokens), w.order[1])):
        longest = max(longest, candidate.tokens)
        if batch and (len(batch) == limits.rows or longest * (len(batch) + 1) > limits.tokens):
            break
        batch.append(candidate)
    return batch
