"""Training jobs in RQ: at most one per project at a time, on any number of machines. Owns the keys "gner:training:...".

Two things keep it to one. The *slot* of a project names the job that is queued or running, so no second one is
enqueued. The *lease* is held by the process that trains, a job or a command in a terminal. A job that RQ starts again,
because its worker seems dead, waits until the lease is free.

A killed process cannot report its end. So workers report every few seconds that their job is alive. A job without a
report for too long is started again: by another worker, by the same worker after its restart, or by a request for the
job's status. A job that raised an error is not started again, since it would raise the same error again.
"""

import logging
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import redis
from rq import Queue, Retry
from rq.exceptions import NoSuchJobError
from rq.executions import Execution
from rq.job import Job
from rq.registry import clean_registries
from rq.serializers import JSONSerializer
from rq.utils import import_attribute
from rq.worker import Worker

from backend import store
from backend.errors import Gone, InvalidRequest
from backend.learning.example_store import ExampleStore
from backend.learning.lease import TrainingRun, slot_key
from backend.learning.progress import Progress
from backend.processes import Children

log = logging.getLogger(__name__)

QUEUE = "gner-training"
# What the workers call. It is a dotted name, so that the web process need not import it.
TRAIN = "backend.worker.train"

_TRAIN_AFTER = "train_after"
PARAMS = (_TRAIN_AFTER,)  # what a project may set in its extra params
_TIMEOUT_S = 24 * 3600
_KEPT_S = 30 * 86_400  # results and errors
_RETRIES = 2  # of a job whose process or worker was killed

# A worker reports this often that its job runs. A job without a report for _SILENCE_S is taken for dead, and an idle
# worker looks for such jobs every _LOOK_S. Together they stay below a minute.
_REPORT_S = 5
_SILENCE_S = 30
_LOOK_S = 10
_RQ_DEQUEUE_MARGIN_S = 15  # an RQ worker waits for a job for its worker_ttl less this
_CLEANING_S = 30


_OPEN = frozenset({"queued", "started", "deferred", "scheduled", "ready_to_enqueue"})
# RQ's states -> the four of /job_status
_STATES = {"started": "started", "finished": "finished", "failed": "failed", "stopped": "failed", "canceled": "failed"}


@dataclass(frozen=True, slots=True)
class JobStatus:
    """The state of a job."""

    job: str
    project: str
    state: str  # queued, started, finished or failed
    progress: Progress | None  # None before the first report
    result: dict[str, Any] | None  # what the job returned: TrainingResult.to_json
    error: str | None  # one sentence


class TrainingJob(Job):
    """A job that can be nothing but a training. RQ's own imports and calls any name that stands in the store."""

    functions: ClassVar[frozenset[str]] = frozenset({TRAIN})

    @property
    def func(self) -> Any:
        if self.func_name not in self.functions or self.instance is not None:
            raise InvalidRequest(f"job {self.id} calls {self.func_name!r:.80}; only trainings are done here")
        return import_attribute(self.func_name)

    # no training has any
    success_callback = failure_callback = stopped_callback = None


class _Queue(Queue):
    def acquire_maintenance_lock(self) -> bool:
        # RQ's own lock lasts a quarter of an hour: a process that is killed meanwhile would block all others
        return bool(self.connection.set(self.registry_cleaning_key, 1, nx=True, ex=_CLEANING_S))


class TrainingQueue:
    """Requests trainings and tells their state. Thread-safe. Every method raises StoreUnavailable."""

    def __init__(self, client: redis.Redis, default_after: int, function: str = TRAIN, retries: int = _RETRIES) -> None:
        """A project is due after `default_after` changes, unless its params give another number. 0: never.

        `retries`: how often a job is started again whose process or worker was killed.
        """
        self._client = client
        self._default_after = default_after
        self._function = function
        self._retries = retries
        self._queue = _Queue(QUEUE, connection=client, serializer=JSONSerializer)

    def request(self, project: str, *, from_base: bool = False) -> str:
        """Request a training and return its job. If one is queued or running already, that is the job.

        If one is running, the project is trained once more afterwards, provided that its examples have changed.
        `from_base`: start from the base model, not from the project's current version.
        """
        with store.answering():
            self._clean()
            return self._request(project, asked=True, from_base=from_base)

    def request_if_due(self, project: str, examples: ExampleStore) -> str | None:
        """Like `request`, but only if enough annotations have changed since the last training; else None."""
        with store.answering():
            after = self._after(project, examples.params(project))
            if not after or examples.changes(project) - examples.trained_changes(project) < after:
                return None
            return self._request(project)

    def ended(self, run: TrainingRun, examples: ExampleStore, changes: int) -> str | None:
        """To be called at the end of a job that trained on `changes`. Requests the next training if one is due."""
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
            # the progress of a killed attempt says nothing about the next one
            progress=None if state == "queued" else _progress_of(job),
            result=None if ended is None or state == "failed" else ended.return_value,
            error=_error(ended.exc_string if ended is not None else None, self._retries + 1)
            if state == "failed"
            else None,
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
                            retry=Retry(max=self._retries) if self._retries else None,
                            pipeline=pipe,
                        )
                        log.info("project %s: training %s is queued", project, job)
                    pipe.execute()
                except redis.WatchError:
                    continue
                return job

    def _after(self, project: str, params: dict[str, Any]) -> int:
        given = params.get(_TRAIN_AFTER)
        if given is None:
            return self._default_after
        try:
            after = int(given)
        except (TypeError, ValueError, OverflowError):
            after = -1
        if after < 0 or isinstance(given, bool):
            log.warning(
                "project %s: train_after=%r in its extra params; expected 0 or more, %d is used",
                project,
                given,
                self._default_after,
            )
            return self._default_after
        return after

    def _clean(self) -> None:
        """Start jobs without recent reports again, or fail them: there may be no worker that does."""
        if self._queue.started_job_registry.get_expired_job_ids() and self._queue.acquire_maintenance_lock():
            try:
                clean_registries(self._queue)
            finally:
                self._queue.release_maintenance_lock()  # type: ignore[no-untyped-call]


def _progress_of(job: Job) -> Progress | None:
    stored = job.meta.get("progress")
    return Progress.from_json(stored) if stored else None


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value or "")


def _decoded(fields: Any) -> dict[str, str]:
    return {_text(name): _text(value) for name, value in fields.items()}


def _error(traceback: str | None, attempts: int) -> str:
    """The last line of a traceback, without the module of the exception. RQ's own messages are put in plain words."""
    lines = [line for line in (traceback or "").splitlines() if line.strip()]
    if not lines:
        return "it ended without an error message"
    last = lines[-1].strip()
    if "AbandonedJobError" in last:
        return f"its worker ended during the training, {attempts} times"
    if last.startswith("Work-horse terminated unexpectedly"):
        return f"its process ended during the training, {attempts} times (out of memory?): {last.strip('; ')}"
    name, colon, rest = last.partition(":")
    return f"{name.rpartition('.')[2]}{colon}{rest}"


# --- workers


class TrainingWorker(Worker):
    """A worker with a fresh process for each job. When it is told to stop, it puts its job back into the queue.

    RQ's SpawnWorker also starts processes, but with the store's password in their command lines.
    """

    children: Children
    horse_command: Sequence[str] = ()  # worker, job and execution are appended

    def fork_work_horse(self, job: Job, queue: Queue) -> None:  # noqa: ARG002
        assert self.execution is not None
        # in a session of its own, since RQ kills the process's whole group
        command = [*self.horse_command, self.name, job.id, self.execution.id]
        self._horse = self.children.start(command)
        self._horse_pid = self._horse.pid

    def get_heartbeat_ttl(self, job: Job, working_time: float = 0.0) -> int:  # noqa: ARG002
        return _SILENCE_S

    def maintain_heartbeats(self, job: Job, execution: Execution) -> None:
        if self._stop_requested:  # since before the process was started
            self.kill_horse()
        try:
            super().maintain_heartbeats(job, execution)
        except redis.RedisError as error:  # the training goes on: the store may come back
            log.warning("worker %s: the store does not answer: %s", self.name, error)

    def handle_warm_shutdown_request(self) -> None:
        if self.horse_pid:
            log.info("the worker stops: its training goes back into the queue")
            self.kill_horse()

    def handle_work_horse_killed(self, job: Job, retpid: int, ret_val: int, rusage: Any) -> None:
        super().handle_work_horse_killed(job, retpid, ret_val, rusage)  # type: ignore[no-untyped-call]
        if self._stop_requested:
            _give_back_attempt(job)


def _give_back_attempt(job: Job) -> None:
    """Undo the count of an attempt that ended only because its worker had to end."""
    job.retries_left = (job.retries_left or 0) + 1


def work(client: redis.Redis, children: Children, horse_command: Sequence[str]) -> bool:
    """Do jobs, each in one of `children`, until a signal stops the worker. False if something else ended it.

    Raises StoreUnavailable.
    """
    with store.answering():
        worker = TrainingWorker(
            [_Queue(QUEUE, connection=client, job_class=TrainingJob, serializer=JSONSerializer)],
            connection=client,
            job_class=TrainingJob,
            serializer=JSONSerializer,
            worker_ttl=_RQ_DEQUEUE_MARGIN_S + _LOOK_S,
            maintenance_interval=_LOOK_S - 1,
            job_monitoring_interval=_REPORT_S,
        )
        worker.children, worker.horse_command = children, tuple(horse_command)
        # RQ logs every search for dead jobs
        worker.log.setLevel(logging.WARNING)
        worker.work()
    return worker._shutdown_requested_date is not None


def work_horse(client: redis.Redis, worker_name: str, job_id: str, execution_id: str) -> None:
    """Do one job that a worker has taken. Does not return."""
    worker = TrainingWorker.find_by_key(
        TrainingWorker.redis_worker_namespace_prefix + worker_name,
        connection=client,
        job_class=TrainingJob,
        queue_class=_Queue,
        serializer=JSONSerializer,
    )
    if worker is None:
        raise Gone(f"worker {worker_name!r} is not known in the store")
    current = TrainingJob.fetch(job_id, connection=client, serializer=JSONSerializer)
    execution = Execution.fetch(execution_id, job_id, connection=client)
    execution._job = current
    worker.execution = execution
    worker.log.setLevel(logging.WARNING)
    worker.main_work_horse(current, worker.queues[0])
