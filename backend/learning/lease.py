"""The lease on a project: whoever trains the project holds it, be it a job or a command in a terminal.

A holder renews its lease every second. If the holder dies, the lease expires.
"""

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
from rq.job import Job

from backend import store
from backend.learning.progress import Progress

log = logging.getLogger(__name__)

_LEASE_S = 20
_RENEW_EVERY_S = 1.0
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
    """This process must not go on with its job: its worker is dead, or another process has the job."""


def slot_key(project: str) -> str:
    """A hash: `job`; `again` if one more training was requested; `from_base` if it must start from the base."""
    return f"gner:training:{project}"


def _lease_key(project: str) -> str:
    return f"gner:training:{project}:lease"


@dataclass(slots=True)
class TrainingRun:
    """A training that is running. No other process trains the project meanwhile."""

    project: str
    job: str | None = None  # None for a training that is started by hand
    from_base: bool = False
    on_progress: Callable[[Progress], None] = lambda _: None
    why_stop: Callable[[], str] = lambda: ""  # why this process must stop; empty if it may go on
    _saved_s: float = field(default=0.0, init=False)
    _logged_s: float = field(default=0.0, init=False)
    _stage: str = field(default="", init=False)

    def check(self) -> None:
        """Raises Abandoned if this process must not go on."""
        reason = self.why_stop()
        if reason:
            raise Abandoned(f"project {self.project}: this training stops: {reason}")

    def report(self, progress: Progress) -> None:
        """Report progress to /job_status and the log. It may be called at any rate. Raises Abandoned."""
        self.check()
        now_s = time.monotonic()
        is_new_stage = progress.stage != self._stage
        self._stage = progress.stage
        is_last_step = progress.step == progress.steps
        if is_new_stage or is_last_step or now_s - self._saved_s >= _PROGRESS_EVERY_S:
            self._saved_s = now_s
            self.on_progress(progress)
        if is_new_stage or now_s - self._logged_s >= _LOGGED_EVERY_S:
            self._logged_s = now_s
            log.info("project %s: %s", self.project, progress)


@contextmanager
def training(
    client: redis.Redis, project: str, on_progress: Callable[[Progress], None] = lambda _: None
) -> Iterator[TrainingRun]:
    """Hold the lease on a project, by hand or in a job. Waits while another process has it. Raises StoreUnavailable."""
    job = get_current_job()

    def save(progress: Progress) -> None:
        on_progress(progress)
        if job is not None:
            _save_progress(job, project, progress)

    # if the worker of a job is gone, another worker gets the job: then this process must stop
    lease = _Lease(client, project, worker_pid=os.getppid() if job is not None else None)
    run = TrainingRun(project, None if job is None else job.id, on_progress=save, why_stop=lambda: lease.why_lost)
    with lease.held(run):
        with store.answering():
            run.from_base = bool(client.hexists(slot_key(project), "from_base")) and job is not None
        yield run


def _save_progress(job: Job, project: str, progress: Progress) -> None:
    job.meta["progress"] = progress.to_json()
    try:
        job.save_meta()  # type: ignore[no-untyped-call]
    except redis.RedisError as error:  # a training goes on without it
        log.warning("project %s: its progress cannot be stored: %s", project, error)


class _Lease:
    """The lease on one project, renewed by a thread for as long as it is held."""

    def __init__(self, client: redis.Redis, project: str, worker_pid: int | None) -> None:
        """`worker_pid` is the parent process that must stay alive; None for a training by hand."""
        self._client = client
        self._project = project
        self._worker_pid = worker_pid
        self._token = uuid.uuid4().hex
        self._released = threading.Event()
        self.why_lost = ""  # written by the thread; empty as long as the lease is held

    @contextmanager
    def held(self, run: TrainingRun) -> Iterator[None]:
        """Wait for the lease, reporting so, then hold it."""
        self._acquire(run)
        renewing = threading.Thread(target=self._renew_until_released, name="lease", daemon=True)
        renewing.start()
        try:
            yield
        finally:
            self._released.set()
            renewing.join()
            self._release()

    def _acquire(self, run: TrainingRun) -> None:
        key = _lease_key(self._project)
        with store.answering():
            while not self._client.set(key, self._token, nx=True, px=_LEASE_S * 1000):
                run.report(Progress("waiting for another training of this project"))
                if self._worker_is_gone():
                    raise Abandoned(f"project {self._project}: the worker that started its training has ended")
                time.sleep(_RENEW_EVERY_S)

    def _renew_until_released(self) -> None:
        renew = self._client.register_script(_RENEW)
        while not self._released.wait(_RENEW_EVERY_S):
            if self._worker_is_gone():
                self.why_lost = "the worker that started it has ended"
                return
            try:
                if not renew(keys=[_lease_key(self._project)], args=[self._token, _LEASE_S * 1000]):
                    self.why_lost = "another process trains this project by now"
                    return
            except redis.RedisError as error:
                log.warning("project %s: the store does not answer during its training: %s", self._project, error)

    def _release(self) -> None:
        try:
            self._client.register_script(_RELEASE)(keys=[_lease_key(self._project)], args=[self._token])
        except redis.RedisError as error:
            log.warning(
                "project %s: the store does not answer, so the lease expires only in %d s: %s",
                self._project,
                _LEASE_S,
                error,
            )

    def _worker_is_gone(self) -> bool:
        return self._worker_pid is not None and os.getppid() != self._worker_pid


def run_job(client: redis.Redis, project: str, work: Callable[[TrainingRun], dict[str, Any]]) -> dict[str, Any]:
    """The frame of an RQ job. An error fails the job at once; if the process dies, the job is started again."""
    job = get_current_job()
    assert job is not None, "not called by an RQ worker"
    try:
        with training(client, project) as run:
            return work(run)
    except Abandoned as reason:
        log.warning("%s", reason)
        _leave_job_to_another_process()
        raise
    except BaseException:
        _forbid_retries(job)
        raise


def _leave_job_to_another_process() -> None:
    """End this process so that RQ does not record a result: another process has the job by now."""
    os._exit(0)


def _forbid_retries(job: Job) -> None:
    """The same error would come again. RQ retries are for processes that died."""
    job.retries_left = 0
