"""The windows that wait for the model: the most urgent first, and within a priority every request gets its share.

The sharing is start-time fair queuing (Goyal, Vin and Cheng 1996). Virtual time advances with the work done, divided
by the number of requests that wait. A window starts, in virtual time, where the window before it of the same request
ends, but not before now; those that start first are taken first. So a request of one window, behind one of thousands,
waits for a batch and not for all of them.
"""

import enum
import heapq
import itertools
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass

from backend.engine.codec import Decoded, EncodedPrompt

# A batch is picked from this many waiting windows: enough to find windows of like length, few enough to sort often.
_LOOKAHEAD_WINDOWS = 512
# A window may interrupt a batch of the same priority that has at least this many times its tokens.
_MUCH_LONGER = 4


class Priority(enum.IntEnum):
    """Who waits for an answer; lower values are served first."""

    INTERACTIVE = 0  # an annotator drawing a region
    OPEN_TASK = 1  # an annotator opening a task
    BULK = 2  # "retrieve predictions" over many tasks
    BACKGROUND = 3  # nobody waits, or nobody any more

    @property
    def is_personal(self) -> bool:
        """Whether a person sits before the screen until the answer comes."""
        return self <= Priority.OPEN_TASK


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """The most that one batch may contain. `tokens` is the longest row times the number of rows.

    `personal_rows` is the most rows of a batch that a person waits for; 0: as many as `rows`. `queued` is the most
    windows that wait; twice as many if a person waits for the next one.
    """

    tokens: int
    rows: int
    personal_rows: int = 0
    queued: int = 1_000_000


@dataclass(slots=True)
class Share:
    """One request's share of the model's time: up to where its windows reach in virtual time, and how many wait."""

    reaches: float = 0.0
    num_waiting: int = 0


@dataclass(slots=True, eq=False)
class Waiting:
    """A window in the queue. `start` is in virtual time."""

    prompt: EncodedPrompt
    version: str
    future: "Future[Decoded]"
    tokens: int
    share: Share
    priority: Priority
    start: float
    entry: int  # the number of its entry in a heap; -1 when it waits no more

    @property
    def order(self) -> tuple[int, float, int]:
        """Smaller goes first."""
        return self.priority, self.start, self.entry


class WindowQueue:
    """Not thread-safe: the batcher has the lock."""

    def __init__(self, limits: BatchLimits) -> None:
        self._limits = limits
        self._now = 0.0  # virtual time
        self._entries = itertools.count()
        self._num_shares = 0  # that have waiting windows
        self._by_future: dict[Future[Decoded], Waiting] = {}
        # entries are (start, number, window); one whose window has been taken, or moved to another heap, counts no more
        self._heaps: dict[Priority, list[tuple[float, int, Waiting]]] = {priority: [] for priority in Priority}

    def __len__(self) -> int:
        return len(self._by_future)

    def is_full(self, priority: Priority) -> bool:
        """Whether no more windows of this priority should come."""
        return len(self) >= self._limits.queued * (2 if priority.is_personal else 1)

    def add(
        self, prompt: EncodedPrompt, version: str, tokens: int, priority: Priority, share: Share
    ) -> "Future[Decoded]":
        """Queue a window. Returns the future of its answer."""
        future: Future[Decoded] = Future()
        start = max(self._now, share.reaches)
        share.reaches = start + tokens
        if not share.num_waiting:
            self._num_shares += 1
        share.num_waiting += 1
        waiting = Waiting(prompt, version, future, tokens, share, priority, start, -1)
        self._by_future[future] = waiting
        self._push(waiting)
        return future

    def _push(self, waiting: Waiting) -> None:
        waiting.entry = next(self._entries)
        heapq.heappush(self._heaps[waiting.priority], (waiting.start, waiting.entry, waiting))

    def set_priority(self, futures: "Iterable[Future[Decoded]]", priority: Priority, share: Share | None) -> None:
        """Change the priority of those windows that still wait. With `share`, they count as that request's from now."""
        for future in futures:
            waiting = self._by_future.get(future)
            if waiting is None or waiting.priority == priority:
                continue
            waiting.priority = priority
            if share is not None:
                waiting.start = max(self._now, share.reaches)
                share.reaches = waiting.start + waiting.tokens
            self._push(waiting)

    def first(self) -> Waiting | None:
        """The most urgent window."""
        for heap in self._heaps.values():
            while heap and not _is_current(heap[0]):
                heapq.heappop(heap)
            if heap:
                return heap[0][2]
        return None

    def interrupts(self, batch: Iterable[Waiting]) -> bool:
        """Whether the first window should not wait until a batch that has been begun is done."""
        first, begun = self.first(), list(batch)
        if first is None or not begun:
            return False
        priority = min(waiting.priority for waiting in begun)
        if first.priority != priority or not priority.is_personal:
            return first.priority < priority
        tokens = max(waiting.tokens for waiting in begun) * len(begun)
        return (
            first.tokens * _MUCH_LONGER <= tokens
            and first.start <= max(waiting.start + waiting.tokens for waiting in begun)
            and all(waiting.share is not first.share for waiting in begun)
        )

    def take(self) -> list[Waiting]:
        """The most urgent window, and others of its version within the limits; empty if nothing waits.

        The most urgent window is always taken, however long it is, so no window waits forever. In this it differs from
        `batches_by_length`, which puts all rows into batches, the shortest first: here, one batch forms around one
        window.
        """
        anchor = self.first()
        if anchor is None:
            return []
        # a batch must not mix versions: only one adapter is active at a time
        batch = [anchor]
        longest = anchor.tokens
        rows = self._limits.personal_rows if anchor.priority.is_personal else 0
        for rider in sorted(self._riders(anchor), key=lambda w: (w.priority, abs(w.tokens - anchor.tokens), w.order)):
            longest = max(longest, rider.tokens)
            if len(batch) == (rows or self._limits.rows) or longest * (len(batch) + 1) > self._limits.tokens:
                break
            batch.append(rider)
        work = sum(waiting.tokens for waiting in batch)
        self._now = max(self._now, anchor.start) + work / self._num_shares
        self._remove(batch)
        return batch

    def _riders(self, anchor: Waiting) -> Iterator[Waiting]:
        """Windows that may share the first one's batch, without itself.

        Somebody who sits and waits is not delayed by longer windows, or by windows that nobody is waiting for.
        """
        left = _LOOKAHEAD_WINDOWS
        for priority, heap in self._heaps.items():
            if anchor.priority.is_personal and not priority.is_personal:
                return
            live = (
                entry
                for entry in heap
                if _is_current(entry)
                and entry[2] is not anchor
                and entry[2].version == anchor.version
                and (not anchor.priority.is_personal or entry[2].tokens <= anchor.tokens)
            )
            found = heapq.nsmallest(left, live)
            left -= len(found)
            yield from (waiting for _, _, waiting in found)

    def _remove(self, batch: Iterable[Waiting]) -> None:
        for waiting in batch:
            waiting.entry = -1
            del self._by_future[waiting.future]
            waiting.share.num_waiting -= 1
            if not waiting.share.num_waiting:
                self._num_shares -= 1

    def drain(self) -> list[Waiting]:
        """Remove and return all windows."""
        left = list(self._by_future.values())
        self._remove(left)
        return left


def _is_current(entry: tuple[float, int, Waiting]) -> bool:
    _, number, waiting = entry
    return waiting.entry == number
