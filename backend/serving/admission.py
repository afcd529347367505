"""How many requests may wait for predictions at the same time, so that threads are left for everything else."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from backend.errors import Overloaded
from backend.serving.batcher import Batcher
from backend.serving.windows import Priority


class Admission:
    """Thread-safe. Requests over many tasks are refused first: a person clicks again, a click on a task does not."""

    def __init__(self, batcher: Batcher, most: int) -> None:
        """At most `most` requests at the same time, of which at most half are not personal."""
        self._batcher = batcher
        self._most = most
        self._lock = threading.Lock()
        self._num_personal = self._num_others = 0

    @contextmanager
    def of(self, priority: Priority) -> Iterator[None]:
        """Enter with a request. Raises Overloaded if there are too many, or if too many windows wait for the model."""
        if self._batcher.is_full(priority):
            raise Overloaded("too many texts wait for the model (GNER_MAX_QUEUE); try again in a while")
        is_personal = priority.is_personal
        with self._lock:
            is_over = self._num_personal + self._num_others >= self._most
            if is_over or (not is_personal and self._num_others >= max(1, self._most // 2)):
                raise Overloaded(f"{self._most} requests wait for predictions (GNER_THREADS); try again in a while")
            self._num_personal += is_personal
            self._num_others += not is_personal
        try:
            yield
        finally:
            with self._lock:
                self._num_personal -= is_personal
                self._num_others -= not is_personal
