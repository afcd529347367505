"""The lease on a project: whoever trains it holds it, a job or a command in a terminal, and it dies with its holder."""

import logging
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import redis
from rq import get_current_job

from backend import store

log = logging.getLogger(__name__)

_LEASE_S = 20


_BEAT_S = 1.0


_PROGRESS_EVERY_S = 1.0


_LOGGED_EVERY_S = 10.0


_RENEW = """
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
"""


_RELEASE = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0"


class Abandoned(Exception):
    """This process must not go on with its job: its worker is dead, or the job has been given to another."""


def slot_key(project: str) -> str:
    """A hash: `job`; `again` if another training was asked for while it ran; `from_base` if it must begin there."""
    return f"gner:training:{project}"


def _lease(project: str) -> str:
    return f"gner:training:{project}:lease"


@dataclass(slots=True)
class Run:
    """A training that is under way: nobody else trains this project meanwhile."""

    project: str
    job: str | None = None  # None: not for the queue, but by hand
    from_base: bool = False
    on_progress: Callable[[dict[str, Any]], None] = lambda _: None
    why_stop: Callable[[], str] = lambda: ""  # why this process must not go on; empty: it may
    _saved_s: float = field(default=0.0, init=False)
    _logged_s: float = field(default=0.0, init=False)
    _stage: str = field(default="", init=False)

    def check(self) -> None:
        """Raises Abandoned if this process must not go on."""
        reason = self.why_stop()
        if reason:
            raise Abandoned(f"project {self.project}: training ends here: {reason}")

    def report(
        self, stage: str, step: int = 0, steps: int = 0, loss: float | None = None, eta_s: float | None = None
    ) -> None:
        """Tell how far it is, to /job_status and the log; as often as one likes. Raises Abandoned."""
        self.check()
        now_s = time.monotonic()
        new = stage != self._stage
        self._stage = stage
        progress = {"stage": stage, "step": step, "steps": steps, "loss": loss, "eta_s": eta_s}
        if new or step == steps or now_s - self._saved_s >= _PROGRESS_EVERY_S:
            self._saved_s = now_s
            self.on_progress(progress)
        if new or now_s - self._logged_s >= _LOGGED_EVERY_S:
            self._logged_s = now_s
            log.info("project %s: %s", self.project, describe(progress))


def describe(progress: dict[str, Any]) -> str:
    """A progress as a line of text."""
    parts = [str(progress["stage"])]
    if progress["steps"]:
        parts.append(f"{progress['step']}/{progress['steps']}")
    if progress["loss"] is not None:
        parts.append(f"loss {progress['loss']:.4f}")
    if progress["eta_s"] is not None:
        parts.append(f"{progress['eta_s']:.0f} s left")
    return ", ".join(parts)


@contextmanager
def training(
    client: redis.Redis, project: str, on_progress: Callable[[dict[str, Any]], None] = lambda _: None
) -> Iterator[Run]:
    """Train a project, by hand or in a job: waits until nobody else does. Raises StoreUnavailable."""
    job = get_current_job()
    # a job's process whose worker is gone would be nobody's: another worker gets the job
    parent = os.getppid() if job is not None else None
    lost: list[str] = []

    def save(progress: dict[str, Any]) -> None:
        on_progress(progress)
        if job is not None:
            job.meta["progress"] = progress
            try:
                job.save_meta()  # type: ignore[no-untyped-call]
            except redis.RedisError as error:  # it is no reason to lose a training
                log.warning("project %s: its progress cannot be told: %s", project, error)

    run = Run(project, None if job is None else job.id, on_progress=save, why_stop=lambda: lost[0] if lost else "")
    with _leased(client, project, run, parent, lost):
        with store.answering():
            run.from_base = bool(client.hexists(slot_key(project), "from_base")) and job is not None
        yield run


@contextmanager
def _leased(client: redis.Redis, project: str, run: Run, parent: int | None, lost: list[str]) -> Iterator[None]:
    key, token, ended = _lease(project), uuid.uuid4().hex, threading.Event()

    def beat() -> None:
        renew = client.register_script(_RENEW)
        while not ended.wait(_BEAT_S):
            if parent is not None and os.getppid() != parent:
                lost.append("the worker that started it has ended")
                return
            try:
                if not renew(keys=[key], args=[token, _LEASE_S * 1000]):
                    lost.append("another process trains this project by now")
                    return
            except redis.RedisError as error:
                log.warning("project %s: the store does not answer while it is trained: %s", project, error)

    with store.answering():
        while not client.set(key, token, nx=True, px=_LEASE_S * 1000):
            run.report("waiting for another training of this project")
            if parent is not None and os.getppid() != parent:
                raise Abandoned(f"project {project}: the worker that started its training has ended")
            time.sleep(_BEAT_S)
    beating = threading.Thread(target=beat, name="lease", daemon=True)
    beating.start()
    try:
        yield
    finally:
        ended.set()
        beating.join()
        try:
            client.register_script(_RELEASE)(keys=[key], args=[token])
        except redis.RedisError as error:
            log.warning(
                "project %s: its lease ends by itself in %d s, for the store says: %s", project, _LEASE_S, error
            )


def run_job(client: redis.Redis, project: str, work: Callable[[Run], dict[str, Any]]) -> dict[str, Any]:
    """The frame of an RQ job: an error fails it at once, a sudden death lets it be started again."""
    current = get_current_job()
    assert current is not None, "not called by an RQ worker"
    try:
        with training(client, project) as run:
            return work(run)
    except Abandoned as reason:
        log.warning("%s", reason)
        # RQ must not write down how this ended: the job is somebody else's
        os._exit(0)
    except BaseException:
        current.retries_left = 0
        raise
