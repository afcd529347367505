"""Owns the model: a queue of windows, batches within a token budget, futures for the answers.

Requests of all annotators share batches if they use the same version. One thread loads the model and runs it; no other
thread touches it.
"""

import enum
import logging
import threading
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

from backend.engine.codec import Codec, Decoded, EncodedPrompt
from backend.engine.decode import Work
from backend.errors import BackendError, ModelNotReady
from backend.metrics import Metrics
from backend.serving.engine import Engine
from backend.serving.windows import BatchLimits, Priority, Share, Waiting, WindowQueue

log = logging.getLogger(__name__)

T = TypeVar("T")

# A typical tag's tokens, to estimate the length of an answer.
_TAG_TOKENS = 4
# A bulk batch gives way to an opened task, which gives way to a region that is drawn, and so on.
_MAX_NESTING = 3


class State(str, enum.Enum):
    """The model's state; /health shows the values."""

    LOADING = "loading"
    READY = "ready"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class _Action:
    """A call to be made in the model's thread."""

    call: Callable[[Engine], Any]
    future: "Future[Any]"


class Batcher:
    """Call `start` in the serving process, after the fork; then `submit` from any thread."""

    def __init__(
        self,
        load: Callable[[], Engine],
        limits: BatchLimits,
        metrics: Metrics,
        on_failure: Callable[[BaseException], None] = lambda _: None,
    ) -> None:
        """`load` is called once in the model's thread. If it raises, `on_failure` is called there as well."""
        self._load = load
        self._metrics = metrics
        self._on_failure = on_failure
        self._changed = threading.Condition()
        self._queue = WindowQueue(limits)
        self._actions: list[_Action] = []
        self._nesting = 0  # of decodes that have given way to others
        self._counted = (0, 0, 0)  # of the decoder's work, what the metrics have already
        self._engine: Engine | None = None
        self._failure: BaseException | None = None
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)

    def start(self) -> None:
        """Start loading the model; returns at once."""
        self._thread.start()

    def stop(self) -> None:
        """Let the current batch finish, cancel what is queued, end the thread. May be called more than once."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join()
        with self._changed:
            futures = [each.future for each in self._actions] + [each.future for each in self._queue.drain()]
        for future in futures:
            future.cancel()

    @property
    def state(self) -> State:
        """Whether the model is loading, ready or failed."""
        if self._failure is not None:
            return State.FAILED
        return State.LOADING if self._engine is None else State.READY

    @property
    def is_alive(self) -> bool:
        """Whether the model's thread runs."""
        return self._thread.is_alive()

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

    def submit(
        self, prompt: EncodedPrompt, priority: Priority, version: str, share: Share | None = None
    ) -> "Future[Decoded]":
        """Queue one window for a version. The future is cancelled at once if the batcher is stopping.

        `share` is that of the request which asks; by default, the window is a request of its own.
        """
        tokens = len(prompt.source_ids) + sum(len(code.forced) + _TAG_TOKENS for code in prompt.codes)
        with self._changed:
            if self._stopping:
                future: Future[Decoded] = Future()
                future.cancel()
                return future
            future = self._queue.add(prompt, version, tokens, priority, share or Share())
            self._metrics.queued_windows.set(len(self._queue))
            self._changed.notify_all()
        return future

    def run(self, action: Callable[[Engine], T]) -> "Future[T]":
        """Run `action` in the model's thread once the model is loaded, between two batches.

        The future is cancelled if the batcher stops first, and raises ModelNotReady if the model cannot be loaded.
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

    def is_full(self, priority: Priority) -> bool:
        """Whether too many windows wait to queue more of this priority."""
        with self._changed:
            return self._queue.is_full(priority)

    def set_priority(
        self, futures: "Collection[Future[Decoded]]", priority: Priority, share: Share | None = None
    ) -> None:
        """Change the priority of those windows that still wait. With `share`, they now count as that request's."""
        with self._changed:
            self._queue.set_priority(futures, priority, share)

    def _run(self) -> None:
        try:
            engine = self._load()
        except Exception as error:  # thread boundary: the reason must reach /health and the log
            self._give_up(error)
            return
        self._counted = _counts(engine.decoder.work)  # loading has tried it out
        with self._changed:
            self._engine = engine
            self._changed.notify_all()
        while work := self._next_work():
            if isinstance(work, _Action):
                _run_action(engine, work)
            else:
                self._decode(engine, work)

    def _give_up(self, error: Exception) -> None:
        """The model cannot be loaded: log it, and fail what waits for the model."""
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

    def _next_work(self) -> list[Waiting] | _Action | None:
        """Wait for a batch or an action; actions go first. None when stopping."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._queue) or self._actions or self._stopping)
            if self._stopping:
                return None
            if self._actions:
                return self._actions.pop(0)
            return self._take_batch()

    def _take_batch(self) -> list[Waiting]:
        batch = self._queue.take()
        self._metrics.queued_windows.set(len(self._queue))
        return batch

    def _decode(self, engine: Engine, batch: Sequence[Waiting]) -> None:
        batch = [waiting for waiting in batch if waiting.future.set_running_or_notify_cancel()]
        if batch and _activate(engine, batch):
            self._answer(engine, batch)

    def _give_way(self, engine: Engine, begun: Sequence[Waiting]) -> None:
        """Decode windows that should not wait until the batch that has been begun is done."""
        with self._changed:
            if self._stopping or self._nesting == _MAX_NESTING or not self._queue.interrupts(begun):
                return
            urgent = self._take_batch()
        self._nesting += 1
        try:
            self._decode(engine, urgent)
        finally:
            self._nesting -= 1
        engine.activate(begun[0].version)

    def _answer(self, engine: Engine, batch: Sequence[Waiting]) -> None:
        try:
            answers = self._counted_decode(engine, batch)
        except Exception as error:  # thread boundary: the requests must get the error, and the thread must go on
            if len(batch) == 1:
                log.exception("a window of %d words could not be decoded", len(batch[0].prompt.words))
                batch[0].future.set_exception(error)
                return
            log.warning("a batch of %d windows failed (%s); trying them one by one", len(batch), error)
        else:
            for waiting, answer in zip(batch, answers, strict=True):
                waiting.future.set_result(answer)
            return
        for waiting in batch:
            self._answer(engine, [waiting])

    def _counted_decode(self, engine: Engine, batch: Sequence[Waiting]) -> list[Decoded]:
        decoder, started_s = engine.decoder, time.perf_counter()
        answers = decoder.decode([waiting.prompt for waiting in batch], lambda: self._give_way(engine, batch))
        if not self._nesting:  # the time of a batch includes that of all to which it gave way
            self._metrics.decode_seconds.inc(time.perf_counter() - started_s)
        self._metrics.batches.inc()
        self._metrics.windows_decoded.inc(len(batch))
        work = decoder.work
        before = self._counted
        self._counted = _counts(work)
        self._metrics.decoder_passes.inc(work.passes - before[0])
        self._metrics.decoder_tokens.inc(work.decoder_tokens - before[1])
        self._metrics.output_tokens.inc(work.output_tokens - before[2])
        return answers


def _counts(work: Work) -> tuple[int, int, int]:
    return work.passes, work.decoder_tokens, work.output_tokens


def _activate(engine: Engine, batch: Sequence[Waiting]) -> bool:
    """Activate the batch's version. If that fails, the batch gets the error and False is returned."""
    version = batch[0].version
    try:
        engine.activate(version)
    except Exception as error:  # thread boundary: the requests must get the error, and the thread must go on
        expected = isinstance(error, BackendError)
        log.error("version %s cannot be used: %s", version, error, exc_info=None if expected else error)
        for waiting in batch:
            waiting.future.set_exception(error)
        return False
    return True


def _run_action(engine: Engine, action: _Action) -> None:
    if not action.future.set_running_or_notify_cancel():
        return
    try:
        result = action.call(engine)
    except BaseException as error:  # thread boundary: the caller gets the error
        action.future.set_exception(error)
    else:
        action.future.set_result(result)
