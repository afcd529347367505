"""Training jobs over RQ: one per project at a time, wherever workers run. Owner of the keys "gner:training:...".

Two things keep it at one. The *slot* of a project names the job that is queued or running for it, so that no second
one is enqueued. The *lease* is held by whoever trains, a job or a command in a terminal, and dies with its holder: a
job that RQ starts again, because its worker seems dead, waits until the first has really ended.

A process that is killed can tell nobody. So workers report every few seconds that their job is alive, and what is
silent for too long is started again: by other workers, by the same worker when it is back, and by whoever asks for a
job's status. An error is not tried again, for it would come again.
"""

import logging
import subprocess
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import redis
from rq import Queue, Retry
from rq.exceptions import NoSuchJobError
from rq.executions import Execution
from rq.job import Job
from rq.registry import clean_registries
from rq.serializers import JSONSerializer
from rq.worker import Worker

from backend import store
from backend.errors import Gone
from backend.learning.example_store import ExampleStore
from backend.learning.lease import Run, slot_key

log = logging.getLogger(__name__)

QUEUE = "gner-training"
MIN_EXAMPLES = 4  # with fewer there is nothing to compare two versions on
# What the workers call; a dotted name, so that whoever enqueues need not import it.
TRAIN = "backend.worker.train"

_TIMEOUT_S = 24 * 3600
_KEPT_S = 30 * 86_400  # results and errors
_RETRIES = 2  # of a job whose process or worker was killed

# A worker reports every so often that its job runs; a job that is silent for longer is taken for dead, and an idle
# worker looks for such ones every so often. Together they stay below a minute.
_REPORT_S = 5
_SILENCE_S = 30
_LOOK_S = 10
_RQ_DEQUEUE_MARGIN_S = 15  # an RQ worker waits so much less than its worker_ttl for a job
_CLEANING_S = 30


_OPEN = frozenset({"queued", "started", "deferred", "scheduled", "ready_to_enqueue"})
# RQ's words for Label Studio's four
_STATES = {"started": "started", "finished": "finished", "failed": "failed", "stopped": "failed", "canceled": "failed"}


@dataclass(frozen=True, slots=True)
class JobStatus:
    """What is known of a job."""

    job: str
    project: str
    state: str  # queued, started, finished or failed
    progress: dict[str, Any]  # stage, step, steps, loss, eta_s; empty before the first report
    result: dict[str, Any] | None
    error: str | None  # one sentence


class _Queue(Queue):
    def acquire_maintenance_lock(self) -> bool:
        # RQ's own lasts a quarter of an hour: one process killed while it cleans would stop all others from doing so
        return bool(self.connection.set(self.registry_cleaning_key, 1, nx=True, ex=_CLEANING_S))


class TrainingQueue:
    """Who asks for a training, and what became of it. Thread-safe; every method raises StoreUnavailable."""

    def __init__(self, client: redis.Redis, default_after: int, function: str = TRAIN) -> None:
        """A project is trained by itself after `default_after` changes; its params may say otherwise. 0: never."""
        self._client = client
        self._default_after = default_after
        self._function = function
        self._queue = _Queue(QUEUE, connection=client, serializer=JSONSerializer)

    def request(self, project: str, *, from_base: bool = False) -> str:
        """Have a project trained; returns the job, which is the one that is queued or running if there is one.

        While one is running, it is trained again afterwards, if its examples have changed since. `from_base`: not
        from the project's current version, since that must not live on.
        """
        with store.answering():
            self._clean()
            return self._request(project, asked=True, from_base=from_base)

    def request_if_due(self, project: str, examples: ExampleStore) -> str | None:
        """As `request`, if enough annotations have changed since the last training; None if they have not."""
        with store.answering():
            after = self._after(project, examples.params(project))
            if not after or examples.changes(project) - examples.trained_changes(project) < after:
                return None
            return self._request(project)

    def ended(self, run: Run, examples: ExampleStore, changes: int) -> str | None:
        """To be called by a job that trained on `changes`: requests the next one, if there is reason for it."""
        with store.answering():
            examples.note_trained(run.project, changes)
            slot = _decoded(self._client.hgetall(slot_key(run.project)))
            if run.job is not None and slot.get("job") == run.job:
                if slot.get("again") and examples.changes(run.project) > changes:
                    return self._request(run.project, ended=run.job, from_base="from_base" in slot)
                self._client.delete(slot_key(run.project))
            return self.request_if_due(run.project, examples)

    def status(self, job_id: str) -> JobStatus:
        """Raises Gone."""
        with store.answering():
            self._clean()
            try:
                job = Job.fetch(job_id, connection=self._client, serializer=JSONSerializer)
            except (NoSuchJobError, ValueError):
                raise Gone(f"job {job_id!r} is not known here, or is older than {_KEPT_S // 86_400} days") from None
            state = _STATES.get(job.get_status(refresh=False), "queued")
            ended = job.latest_result() if state in ("finished", "failed") else None
        return JobStatus(
            job=job_id,
            project=str(job.args[0]),
            state=state,
            # what a killed try had come to says nothing of the next one
            progress={} if state == "queued" else dict(job.meta.get("progress") or {}),
            result=None if ended is None or state == "failed" else ended.return_value,
            error=_error(ended.exc_string if ended is not None else None) if state == "failed" else None,
        )

    def _request(self, project: str, *, asked: bool = False, from_base: bool = False, ended: str | None = None) -> str:
        key = slot_key(project)
        with self._client.pipeline() as pipe:
            while True:
                try:
                    pipe.watch(key)  # type: ignore[no-untyped-call]
                    job = _decoded(pipe.hgetall(key)).get("job", "")
                    state = _text(pipe.hget(Job.key_for(job), "status")) if job and job != ended else ""
                    pipe.multi()
                    if state in _OPEN:
                        more = {"again": asked and state == "started", "from_base": from_base}
                        if any(more.values()):
                            pipe.hset(key, mapping={name: 1 for name, wanted in more.items() if wanted})
                    else:
                        job = f"train-{project.split('.')[0]}-{uuid.uuid4().hex[:12]}"
                        pipe.delete(key)
                        pipe.hset(key, mapping={"job": job, **({"from_base": 1} if from_base else {})})
                        self._queue.enqueue_call(
                            self._function,
                            args=(project,),
                            job_id=job,
                            timeout=_TIMEOUT_S,
                            result_ttl=_KEPT_S,
                            failure_ttl=_KEPT_S,
                            retry=Retry(max=_RETRIES),
                            pipeline=pipe,
                        )
                        log.info("project %s: training %s is requested", project, job)
                    pipe.execute()
                except redis.WatchError:
                    continue
                return job

    def _after(self, project: str, params: dict[str, Any]) -> int:
        given = params.get("train_after")
        if given is None:
            return self._default_after
        try:
            after = int(given)
        except (TypeError, ValueError, OverflowError):
            after = -1
        if after < 0 or isinstance(given, bool):
            log.warning(
                "project %s: its extra params say train_after=%r; expected 0 or more, so it is %d",
                project,
                given,
                self._default_after,
            )
            return self._default_after
        return after

    def _clean(self) -> None:
        """Have what is silent for too long started again or failed: there may be no worker that does it."""
        if self._queue.started_job_registry.get_expired_job_ids() and self._queue.acquire_maintenance_lock():
            try:
                clean_registries(self._queue)
            finally:
                self._queue.release_maintenance_lock()  # type: ignore[no-untyped-call]


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value or "")


def _decoded(fields: Any) -> dict[str, str]:
    return {_text(name): _text(value) for name, value in fields.items()}


def _error(traceback: str | None) -> str:
    """The last line of a traceback, without the module of the exception's class; RQ's own words are made plain."""
    lines = [line for line in (traceback or "").splitlines() if line.strip()]
    if not lines:
        return "it ended without saying why"
    last = lines[-1].strip()
    if "AbandonedJobError" in last:
        return f"its worker ended in the middle of it, {_RETRIES + 1} times"
    if last.startswith("Work-horse terminated unexpectedly"):
        return f"its process ended in the middle of it, {_RETRIES + 1} times (out of memory?): {last.strip('; ')}"
    name, colon, rest = last.partition(":")
    return f"{name.rpartition('.')[2]}{colon}{rest}"


# --- while a project is trained


# --- workers


class TrainingWorker(Worker):
    """A worker that starts a fresh process per job, and when it is told to end puts its job back into the queue.

    RQ's SpawnWorker does the first too, but shows the store's password to everybody who can list processes.
    """

    horse_command: Sequence[str] = ()  # worker, job and execution are appended

    def fork_work_horse(self, job: Job, queue: Queue) -> None:  # noqa: ARG002
        assert self.execution is not None
        # a session of its own, for RQ kills the process's whole group
        command = [*self.horse_command, self.name, job.id, self.execution.id]
        self._horse = subprocess.Popen(command, start_new_session=True)
        self._horse_pid = self._horse.pid

    def get_heartbeat_ttl(self, job: Job, working_time: float = 0.0) -> int:  # noqa: ARG002
        return _SILENCE_S

    def maintain_heartbeats(self, job: Job, execution: Execution) -> None:
        if self._stop_requested:  # told between taking the job and starting its process
            self.kill_horse()
        try:
            super().maintain_heartbeats(job, execution)
        except redis.RedisError as error:  # the training goes on; whether the store comes back in time is seen then
            log.warning("worker %s: the store does not answer: %s", self.name, error)

    def handle_warm_shutdown_request(self) -> None:
        if self.horse_pid:
            log.info("the worker is told to end: its training goes back into the queue")
            self.kill_horse()

    def handle_work_horse_killed(self, job: Job, retpid: int, ret_val: int, rusage: Any) -> None:
        super().handle_work_horse_killed(job, retpid, ret_val, rusage)  # type: ignore[no-untyped-call]
        if self._stop_requested:  # it did nothing wrong, and keeps its number of tries
            job.retries_left = (job.retries_left or 0) + 1


def work(client: redis.Redis, horse_command: Sequence[str]) -> bool:
    """Do jobs until a signal says stop. False if something else ended it. Raises StoreUnavailable."""
    with store.answering():
        worker = TrainingWorker(
            [_Queue(QUEUE, connection=client, serializer=JSONSerializer)],
            connection=client,
            serializer=JSONSerializer,
            worker_ttl=_RQ_DEQUEUE_MARGIN_S + _LOOK_S,
            maintenance_interval=_LOOK_S - 1,
            job_monitoring_interval=_REPORT_S,
        )
        worker.horse_command = tuple(horse_command)
        # RQ tells of every look for dead jobs
        worker.log.setLevel(logging.WARNING)
        worker.work()
    return worker._shutdown_requested_date is not None


def work_horse(client: redis.Redis, worker_name: str, job_id: str, execution_id: str) -> None:
    """Do one job that a worker took; does not return."""
    worker = TrainingWorker.find_by_key(
        TrainingWorker.redis_worker_namespace_prefix + worker_name, connection=client, serializer=JSONSerializer
    )
    if worker is None:
        raise Gone(f"worker {worker_name!r} is not known in the store")
    current = Job.fetch(job_id, connection=client, serializer=JSONSerializer)
    execution = Execution.fetch(execution_id, job_id, connection=client)
    execution._job = current
    worker.execution = execution
    worker.log.setLevel(logging.WARNING)
    worker.main_work_horse(current, worker.queues[0])
