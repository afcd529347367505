"""Which version each project is served, and how a newly trained one takes over.

A registry (on disk, written by other processes) points to a project's current version; a thread here follows it. A new
version is first loaded in the model's thread, between two batches; then requests that begin are served it, while those
that have begun finish with the one before. A version that cannot be loaded is reported, and the one before goes on.
"""

import logging
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from concurrent.futures import TimeoutError as LateError
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Protocol

from backend.errors import AdapterError, CorruptVersion, ModelNotReady, UnknownVersion
from backend.serving.batcher import Batcher
from backend.serving.cache import PredictionCache

log = logging.getLogger(__name__)

# What a request meets whose version has gone bad since it was chosen: see ServedVersions.replace.
UNUSABLE = (AdapterError, CorruptVersion, UnknownVersion)
# A version that could not be loaded may have been repaired since.
_RETRY_AFTER_S = 30.0
# For the version before: it only makes faster, and Label Studio gives /setup three seconds.
_EARLIER_WAIT_S = 0.5


@dataclass(frozen=True, slots=True)
class Served:
    """What one request is answered with. `earlier` is the version before it, whose predictions make good drafts."""

    version: str
    earlier: str | None = None


class Described(Protocol):
    """A version's description, as far as it matters here."""

    @property
    def parent(self) -> str:
        """The version that it was trained from: the project's, or the base."""
        ...


class Versions(Protocol):
    """The registry of trained versions, as far as it matters here. Each method may raise BackendErrors."""

    def projects(self) -> Sequence[str]:
        """Those that have trained versions."""
        ...

    def current(self, project: str) -> str | None:
        """The version to serve; None: the base."""
        ...

    def info(self, project: str, version: str) -> Described: ...

    def folder(self, project: str, version: str) -> Path:
        """Where it lies. Raises one of UNUSABLE if it is not intact."""
        ...


@dataclass(slots=True)
class _ProjectState:
    served: Served
    pointer: str  # what the registry's pointer said when it was last followed
    loaded: bool = False  # whether the served version has been in the model
    retry_at_s: float = 0.0  # where the pointer's version could not be served


class ServedVersions:
    """Thread-safe. `start` and `stop` it with the batcher."""

    def __init__(
        self, base_version: str, registry: Versions, batcher: Batcher, cache: PredictionCache, poll_s: float = 1.0
    ) -> None:
        """`poll_s` is how long another process's promotion may stay unseen."""
        self.base_version = base_version
        self._registry = registry
        self._batcher = batcher
        self._cache = cache
        self._poll_s = poll_s
        self._lock = threading.Lock()  # over the two dicts
        self._projects: dict[str, _ProjectState] = {}
        self._problems: dict[str, str] = {}
        self._changing = threading.Lock()  # over what is served
        self._refreshing = threading.Lock()
        self._woken = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._follow, name="versions", daemon=True)
        self._asking = ThreadPoolExecutor(max_workers=1, thread_name_prefix="earlier")

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Call it after the batcher's: what was asked of the model is cancelled then."""
        self._stopping = True
        self._woken.set()
        if self._thread.is_alive():
            self._thread.join()
        self._asking.shutdown(wait=False, cancel_futures=True)

    def of(self, project: str | None) -> Served:
        """What a request of this project is answered with: to be asked once per request.

        None, and a project without trained versions: the base.
        """
        return self._state_of(project or "").served

    def problems(self) -> dict[str, str]:
        """By project, why it is not served the version that it should be."""
        with self._lock:
            return dict(self._problems)

    def replace(self, project: str | None, served: Served, error: Exception) -> Served:
        """A request has met `error`, one of UNUSABLE, with `served`: what to answer it with instead.

        Raises the error if there is nothing else.
        """
        if served.version == self.base_version:
            raise error
        state = self._state_of(project or "")
        self._fall_back(project or "", state, served.version, error)
        return state.served

    def wake(self) -> None:
        """Have the registry looked at now, not at the next poll."""
        self._woken.set()

    def refresh(self) -> None:
        """Look at the registry once and follow it; waits for the model where a version must be loaded.

        Raises ModelNotReady if there is no model, CancelledError if it stops.
        """
        with self._refreshing:
            with self._lock:
                trained = {key for key, state in self._projects.items() if state.served.version != self.base_version}
            # a project whose folder was removed must be looked at, too
            for project in sorted(trained.union(self._registry.projects())):
                self._refresh(project)

    def _follow(self) -> None:
        while not self._stopping:
            try:
                self.refresh()
            except (CancelledError, ModelNotReady):
                log.debug("versions are not followed: there is no model, as the batcher has said")
            except Exception:  # thread boundary: one bad moment must not end it
                log.exception("the registry of versions cannot be followed")
            self._woken.wait(self._poll_s)
            self._woken.clear()

    # --- one project

    def _state_of(self, project: str) -> _ProjectState:
        with self._lock:
            known = self._projects.get(project)
        if known is not None:
            return known
        first_seen = self._first_seen(project)
        with self._lock:
            return self._projects.setdefault(project, first_seen)

    def _first_seen(self, project: str) -> _ProjectState:
        """What was current before this process began, as far as its files are intact: nothing else was served yet.

        The model is not waited for, as it may still load: whether it takes the version is found out by `_refresh`.
        """
        try:
            pointer = self._registry.current(project) or self.base_version
        except CorruptVersion as error:
            self._report(project, f"{error}; {self.base_version} is served")
            return _ProjectState(self._served(project, self.base_version), "")
        version, problems = self._first_intact(project, self._with_ancestors(project, pointer))
        self._report(project, "; ".join([*problems, f"{version} is served"]) if problems else None)
        return _ProjectState(self._served(project, version), pointer, retry_at_s=_retry_at_s())

    def _refresh(self, project: str) -> None:
        state = self._state_of(project)
        if not state.loaded:
            self._check(project, state)
        try:
            pointer = self._registry.current(project) or self.base_version
        except CorruptVersion as error:
            self._report(project, f"{error}; {state.served.version} is served")
            return
        if pointer == state.served.version:
            state.pointer = pointer
            self._report(project, None)
        elif pointer != state.pointer or time.monotonic() >= state.retry_at_s:
            self._swap(project, state, pointer)

    def _check(self, project: str, state: _ProjectState) -> None:
        """Whether what is served since the start, or in place of another, can be loaded at all."""
        version = state.served.version
        error = self._load(version)
        if error is None:
            state.loaded = True
        else:
            self._fall_back(project, state, version, error)

    def _swap(self, project: str, state: _ProjectState, version: str) -> None:
        """Serve another version, once it is loaded."""
        error = self._load(version)
        state.pointer = version
        if error is not None:
            state.retry_at_s = _retry_at_s()
            self._report(project, f"{version} cannot be served: {error}; {state.served.version} is served")
            return
        with self._changing:
            before, state.served, state.loaded = state.served, self._served(project, version), True
        log.info("project %s is served version %s from now on, before it was %s", project, version, before.version)
        self._report(project, None)

    def _fall_back(self, project: str, state: _ProjectState, version: str, error: Exception) -> None:
        """Serve the nearest ancestor of `version` that is intact, if `version` is still served."""
        with self._changing:
            if state.served.version != version:
                return
            ancestors = islice(self._with_ancestors(project, version), 1, None)
            instead, problems = self._first_intact(project, ancestors)
            state.served, state.loaded = self._served(project, instead), False
            state.retry_at_s = _retry_at_s()
        # what led to `version` may have been a fall, too
        known = [problem for key, problem in self.problems().items() if key == project]
        parts = [*known, f"{version} cannot be served: {error}", *problems, f"{instead} is served"]
        self._report(project, "; ".join(parts))

    def _load(self, version: str) -> Exception | None:
        """Why the model cannot use a version, if so. Raises ModelNotReady, and CancelledError when stopping."""
        if version == self.base_version:
            return None
        try:
            self._batcher.run(lambda engine: engine.activate(version)).result()
        except (ModelNotReady, CancelledError):
            raise
        except Exception as error:  # whatever it is, the version before must go on
            return error
        return None

    def _served(self, project: str, version: str) -> Served:
        """Notes that it is served from now on. Does not wait for a store that hangs."""
        earlier = None
        if not self._stopping:
            with suppress(LateError, CancelledError):
                earlier = self._asking.submit(self._cache.earlier_version, project, version).result(_EARLIER_WAIT_S)
        if earlier is None and version != self.base_version:
            earlier = self.base_version
        return Served(version, earlier)

    def _with_ancestors(self, project: str, version: str) -> Iterator[str]:
        """A version, its parent, and so on; the last one is the base."""
        seen = {self.base_version}
        while version not in seen:
            yield version
            seen.add(version)
            try:
                version = self._registry.info(project, version).parent
            except UNUSABLE:  # nobody knows its parent any more
                break
        yield self.base_version

    def _first_intact(self, project: str, versions: Iterable[str]) -> tuple[str, list[str]]:
        """The first whose files are intact, and what is wrong with those before it."""
        problems = []
        for version in versions:
            if version == self.base_version:
                break
            try:
                self._registry.folder(project, version)
            except UNUSABLE as error:
                problems.append(f"{version} cannot be served: {error}")
            else:
                return version, problems
        return self.base_version, problems

    def _report(self, project: str, problem: str | None) -> None:
        """Note a problem, or that there is none. The same one is logged once."""
        with self._lock:
            before = self._problems.pop(project, None)
            if problem is not None:
                self._problems[project] = problem
        if problem is not None and problem != before:
            log.error("project %s: %s", project, problem)


def _retry_at_s() -> float:
    return time.monotonic() + _RETRY_AFTER_S
