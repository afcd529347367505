"""Which version each project is served, and how a newly trained version takes over.

A registry on disk, which other processes write, points to each project's current version; a thread here follows it. A
new version is first loaded in the model's thread, between two batches. Then new requests use it, while running requests
finish with the version before. A version that cannot be loaded is reported, and the version before stays.
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

# The errors of a version that became unusable after a request chose it: see ServedVersions.replace.
UNUSABLE = (AdapterError, CorruptVersion, UnknownVersion)
# A version that could not be loaded is tried again after this time: it may have been repaired.
_RETRY_AFTER_S = 30.0
# How long to wait for the name of the earlier version: it only saves time, and Label Studio waits three seconds.
_EARLIER_WAIT_S = 0.5


@dataclass(frozen=True, slots=True)
class Served:
    """The version that answers a request. `earlier` is the version before it, whose predictions make good drafts."""

    version: str
    earlier: str | None = None


class Described(Protocol):
    """A version's description, as far as serving needs it."""

    @property
    def parent(self) -> str:
        """The version that it was trained from: one of the project's, or the base."""
        ...


class Versions(Protocol):
    """The registry of trained versions, as far as serving needs it. Each method may raise a BackendError."""

    def projects(self) -> Sequence[str]:
        """The projects that have trained versions."""
        ...

    def current(self, project: str) -> str | None:
        """The version to serve; None is the base."""
        ...

    def info(self, project: str, version: str) -> Described:
        """A version's description. Raises one of UNUSABLE."""
        ...

    def folder(self, project: str, version: str) -> Path:
        """A version's folder. Raises one of UNUSABLE if it is damaged."""
        ...


@dataclass(slots=True)
class _ProjectState:
    """What one project is served."""

    served: Served
    pointer: str  # the registry's current version when it was last followed
    loaded: bool = False  # whether the model has loaded the served version
    retry_at_s: float = 0.0  # if the pointer's version could not be served


class ServedVersions:
    """The version that each project is served. Thread-safe. `start` and `stop` it with the batcher."""

    def __init__(
        self, base_version: str, registry: Versions, batcher: Batcher, cache: PredictionCache, poll_s: float = 1.0
    ) -> None:
        """`poll_s` is the longest time until a promotion by another process is noticed."""
        self.base_version = base_version
        self._registry = registry
        self._batcher = batcher
        self._cache = cache
        self._poll_s = poll_s
        self._lock = threading.Lock()  # guards the two dicts
        self._projects: dict[str, _ProjectState] = {}
        self._problems: dict[str, str] = {}
        self._changing = threading.Lock()  # guards what is served
        self._refreshing = threading.Lock()
        self._woken = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._follow, name="versions", daemon=True)
        self._asking = ThreadPoolExecutor(max_workers=1, thread_name_prefix="earlier")

    def start(self) -> None:
        """Start the thread that follows the registry."""
        self._thread.start()

    def stop(self) -> None:
        """Call it after the batcher's `stop`, which cancels what this waits for."""
        self._stopping = True
        self._woken.set()
        if self._thread.is_alive():
            self._thread.join()
        self._asking.shutdown(wait=False, cancel_futures=True)

    def of(self, project: str | None) -> Served:
        """The version that answers a request of this project. Ask once per request.

        None and projects without trained versions are served the base.
        """
        return self._state_of(project or "").served

    def problems(self) -> dict[str, str]:
        """Why projects are not served their current version, by project."""
        with self._lock:
            return dict(self._problems)

    def replace(self, project: str | None, served: Served, error: Exception) -> Served:
        """The version to use instead of `served`, which raised `error`, one of UNUSABLE, in a request.

        Raises the error if there is none.
        """
        if served.version == self.base_version:
            raise error
        state = self._state_of(project or "")
        self._fall_back(project or "", state, served.version, error)
        return state.served

    def wake(self) -> None:
        """Check the registry now, not at the next poll."""
        self._woken.set()

    def refresh(self) -> None:
        """Check the registry once and follow it. Waits for the model where a version must be loaded.

        Raises ModelNotReady if there is no model, CancelledError if the batcher stops.
        """
        with self._refreshing:
            with self._lock:
                trained = {key for key, state in self._projects.items() if state.served.version != self.base_version}
            # includes projects whose folder was removed
            for project in sorted(trained.union(self._registry.projects())):
                self._refresh(project)

    def _follow(self) -> None:
        while not self._stopping:
            try:
                self.refresh()
            except (CancelledError, ModelNotReady):
                log.debug("versions are not followed: there is no model; the batcher has logged why")
            except Exception:  # thread boundary: one error must not end the thread
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
        """The state of a project that is seen for the first time: its current version, or the nearest intact ancestor.

        This does not wait for the model, which may still be loading; `_refresh` finds out whether it loads the version.
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
        """Try to load the served version, which no one has tried yet; fall back if that fails."""
        version = state.served.version
        error = self._load(version)
        if error is None:
            state.loaded = True
        else:
            self._fall_back(project, state, version, error)

    def _swap(self, project: str, state: _ProjectState, version: str) -> None:
        """Load another version, then serve it."""
        error = self._load(version)
        state.pointer = version
        if error is not None:
            state.retry_at_s = _retry_at_s()
            self._report(project, f"{version} cannot be served: {error}; {state.served.version} is served")
            return
        with self._changing:
            before, state.served, state.loaded = state.served, self._served(project, version), True
        log.info("project %s is now served version %s; before, it was %s", project, version, before.version)
        self._report(project, None)

    def _fall_back(self, project: str, state: _ProjectState, version: str, error: Exception) -> None:
        """If `version` is still served, serve its nearest intact ancestor instead."""
        with self._changing:
            if state.served.version != version:
                return
            ancestors = islice(self._with_ancestors(project, version), 1, None)
            instead, problems = self._first_intact(project, ancestors)
            state.served, state.loaded = self._served(project, instead), False
            state.retry_at_s = _retry_at_s()
        # `version` may itself be a fallback: keep the earlier problem
        known = [problem for key, problem in self.problems().items() if key == project]
        parts = [*known, f"{version} cannot be served: {error}", *problems, f"{instead} is served"]
        self._report(project, "; ".join(parts))

    def _load(self, version: str) -> Exception | None:
        """Load a version; returns the error if that fails. Raises ModelNotReady, and CancelledError when stopping."""
        if version == self.base_version:
            return None
        try:
            self._batcher.run(lambda engine: engine.activate(version)).result()
        except (ModelNotReady, CancelledError):
            raise
        except Exception as error:  # whatever the error, the version before must stay
            return error
        return None

    def _served(self, project: str, version: str) -> Served:
        """Record that `version` is served from now on. Does not wait for a store that hangs."""
        earlier = None
        if not self._stopping:
            with suppress(LateError, CancelledError):
                earlier = self._asking.submit(self._cache.earlier_version, project, version).result(_EARLIER_WAIT_S)
        if earlier is None and version != self.base_version:
            earlier = self.base_version
        return Served(version, earlier)

    def _with_ancestors(self, project: str, version: str) -> Iterator[str]:
        """A version, its parent, and so on; the base comes last."""
        seen = {self.base_version}
        while version not in seen:
            yield version
            seen.add(version)
            try:
                version = self._registry.info(project, version).parent
            except UNUSABLE:  # its parent is unknown
                break
        yield self.base_version

    def _first_intact(self, project: str, versions: Iterable[str]) -> tuple[str, list[str]]:
        """The first version whose files are intact, and the problems of those before it."""
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
        """Record a project's problem, or that there is none. The same problem is logged once."""
        with self._lock:
            before = self._problems.pop(project, None)
            if problem is not None:
                self._problems[project] = problem
        if problem is not None and problem != before:
            log.error("project %s: %s", project, problem)


def _retry_at_s() -> float:
    return time.monotonic() + _RETRY_AFTER_S
