"""Training jobs, with real workers as processes that are told to end, killed and lost."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import redis
from rq import Callback, Queue
from rq.serializers import JSONSerializer

from backend.errors import Gone, StoreUnavailable
from backend.learning import jobs, lease
from backend.learning.annotations import Annotation
from backend.learning.example_store import ExampleStore
from backend.learning.jobs import TrainingQueue
from tests.support import cheap_worker
from tests.support.cheap_worker import began, inside, most, orders
from tests.support.processes import Server, wait_until

ROOT = Path(__file__).parent.parent.parent
PROJECT = "2.1795333437"
OTHER = "3.1795333438"
TIMEOUT_S = 60


@pytest.fixture
def queue(valkey: redis.Redis) -> TrainingQueue:
    return TrainingQueue(valkey, default_after=20, function=cheap_worker.FUNCTION)


@pytest.fixture
def examples(valkey: redis.Redis) -> ExampleStore:
    return ExampleStore(valkey)


class Worker(Server):
    """A worker of jobs that train nothing."""

    def __init__(self, url: str, log: Path) -> None:
        command = [sys.executable, "-m", "tests.support.cheap_worker", url]
        super().__init__(command, {"PYTHONPATH": str(ROOT)}, log)

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait(self) -> int:
        return self._process.wait(TIMEOUT_S)


StartWorker = Callable[[], Worker]


@pytest.fixture
def start_worker(valkey_url: str, tmp_path: Path) -> Iterator[StartWorker]:
    workers: list[Worker] = []

    def start() -> Worker:
        workers.append(Worker(valkey_url, tmp_path / f"worker-{len(workers)}.log"))
        return workers[-1]

    yield start
    for worker in workers:
        worker.kill()


def wait_for_run(client: redis.Redis, project: str = PROJECT) -> int:
    """The process id of the next run that begins."""
    found: Any = client.blpop([began(project)], timeout=TIMEOUT_S)
    assert found is not None, "no run began"
    return int(found[1])


def wait_for_state(queue: TrainingQueue, job: str, state: str) -> jobs.JobStatus:
    wait_until(f"job to be {state}", lambda: queue.status(job).state == state, TIMEOUT_S)
    return queue.status(job)


def is_running(pid: int) -> bool:
    with suppress(ProcessLookupError, FileNotFoundError):
        os.kill(pid, 0)
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    return False


def annotation(number: int) -> Annotation:
    return Annotation(number, number, number, True, False, (), None, (), {})


# --- asking for a training


def test_of_one_project_there_is_one_job(queue: TrainingQueue, valkey: redis.Redis) -> None:
    with ThreadPoolExecutor(8) as threads:
        ids = set(threads.map(lambda _: queue.request(PROJECT), range(40)))
    assert len(ids) == 1
    assert queue.request(OTHER) not in ids
    assert valkey.llen("rq:queue:gner-training") == 2
    status = queue.status(ids.pop())
    assert (status.state, status.project, status.progress, status.result, status.error) == (
        "queued",
        PROJECT,
        None,
        None,
        None,
    )


@pytest.mark.parametrize("job", ["no-such-job", "", "a b", "*", "../x", "x" * 5000])
def test_a_job_that_nobody_knows_is_gone(queue: TrainingQueue, job: str) -> None:
    with pytest.raises(Gone):
        queue.status(job)


@pytest.mark.parametrize(
    ("params", "changed", "due"),
    [
        ({}, 19, False),
        ({}, 20, True),
        ({"train_after": 3}, 2, False),
        ({"train_after": 3}, 3, True),
        ({"train_after": "3"}, 3, True),
        ({"train_after": 0}, 50, False),
        ({"train_after": 30}, 20, False),
        ({"train_after": None}, 20, True),
        ({"train_after": -1}, 20, True),
        ({"train_after": "soon"}, 19, False),
        ({"train_after": True}, 19, False),
        ({"another": 1}, 20, True),
    ],
)
def test_a_project_is_trained_by_itself_after_so_many_changes(
    queue: TrainingQueue, examples: ExampleStore, params: dict[str, Any], changed: int, due: bool
) -> None:
    examples.save_params(PROJECT, params)
    examples.put(PROJECT, [annotation(number) for number in range(1, changed + 1)])
    job = queue.request_if_due(PROJECT, examples)
    assert (job is not None) is due
    if job is not None:
        assert queue.request_if_due(PROJECT, examples) == job, "it is still to come"


def test_zero_means_only_when_asked_for(valkey: redis.Redis, examples: ExampleStore) -> None:
    queue = TrainingQueue(valkey, default_after=0, function=cheap_worker.FUNCTION)
    examples.put(PROJECT, [annotation(number) for number in range(1, 100)])
    assert queue.request_if_due(PROJECT, examples) is None
    assert queue.request(PROJECT)


def test_without_a_store_it_is_said() -> None:
    queue = TrainingQueue(redis.Redis.from_url("redis://127.0.0.1:1"), default_after=20)
    for ask in (lambda: queue.request(PROJECT), lambda: queue.status("x")):
        with pytest.raises(StoreUnavailable, match="does not answer"):
            ask()
    with pytest.raises(StoreUnavailable), lease.training(redis.Redis.from_url("redis://127.0.0.1:1"), PROJECT):
        pass


# --- a job that a worker does


def test_it_is_queued_started_with_its_progress_and_finished(
    queue: TrainingQueue, valkey: redis.Redis, start_worker: StartWorker
) -> None:
    job = queue.request(PROJECT)
    assert queue.status(job).state == "queued"
    start_worker()
    wait_for_run(valkey)
    progress = wait_until("progress", lambda: queue.status(job).progress, TIMEOUT_S)
    assert queue.status(job).state == "started"
    assert progress is not None
    assert set(progress.to_json()) == {"stage", "step", "steps", "loss", "eta_s"}
    assert (progress.stage, progress.loss) == ("fit", 0.5)
    valkey.rpush(orders(PROJECT), "end")
    status = wait_for_state(queue, job, "finished")
    assert status.result == {"version": "v", "from_base": False, "next": None}
    assert status.error is None
    later = queue.request(PROJECT)
    assert later != job
    assert queue.status(job).state == "finished", "its result is kept"


def test_an_error_fails_it_in_a_sentence_and_is_not_tried_again(
    queue: TrainingQueue, valkey: redis.Redis, start_worker: StartWorker
) -> None:
    job = queue.request(PROJECT)
    valkey.rpush(orders(PROJECT), "fail")
    start_worker()
    status = wait_for_state(queue, job, "failed")
    assert status.error == f"NotEnoughExamples: project {PROJECT!r} has 0 examples"
    assert status.result is None
    assert valkey.llen(began(PROJECT)) == 1
    assert queue.request(PROJECT) != job


def test_what_changes_meanwhile_is_trained_on_next(
    queue: TrainingQueue, examples: ExampleStore, valkey: redis.Redis, start_worker: StartWorker
) -> None:
    start_worker()
    first = queue.request(PROJECT)
    wait_for_run(valkey)
    examples.put(PROJECT, [annotation(number) for number in range(1, 20)])
    assert queue.request_if_due(PROJECT, examples) is None
    examples.put(PROJECT, [annotation(20)])
    assert queue.request_if_due(PROJECT, examples) == first, "it runs"
    valkey.rpush(orders(PROJECT), "end")
    wait_for_run(valkey)
    result = wait_for_state(queue, first, "finished").result
    assert result is not None
    second = result["next"]
    assert second not in (None, first)
    valkey.rpush(orders(PROJECT), "end")
    assert wait_for_state(queue, second, "finished").result == {"version": "v", "from_base": False, "next": None}


@pytest.mark.parametrize(("changed", "from_base"), [(True, False), (True, True), (False, False)])
def test_a_training_asked_for_while_one_runs_follows_if_there_is_something_new(
    queue: TrainingQueue,
    examples: ExampleStore,
    valkey: redis.Redis,
    start_worker: StartWorker,
    changed: bool,
    from_base: bool,
) -> None:
    start_worker()
    first = queue.request(PROJECT)
    wait_for_run(valkey)
    if changed:
        examples.put(PROJECT, [annotation(1)])
    assert queue.request(PROJECT, from_base=from_base) == first
    valkey.rpush(orders(PROJECT), "end", "end")
    result = wait_for_state(queue, first, "finished").result
    assert result is not None
    assert (result["next"] is not None) is changed
    if changed:
        second = wait_for_state(queue, result["next"], "finished").result
        assert second == {"version": "v", "from_base": from_base, "next": None}


def test_a_queued_job_can_still_be_told_to_begin_at_the_base(
    queue: TrainingQueue, valkey: redis.Redis, start_worker: StartWorker
) -> None:
    job = queue.request(PROJECT)
    assert queue.request(PROJECT, from_base=True) == job
    valkey.rpush(orders(PROJECT), "end")
    start_worker()
    result = wait_for_state(queue, job, "finished").result
    assert result is not None
    assert result["from_base"] is True


# --- what whoever can write to the store might try


def test_a_job_that_is_no_training_is_not_even_imported(
    queue: TrainingQueue, valkey: redis.Redis, start_worker: StartWorker, tmp_path: Path
) -> None:
    planted = Queue(jobs.QUEUE, connection=valkey, serializer=JSONSerializer)
    mark = tmp_path / "was called"
    called = planted.enqueue("pathlib.Path.touch", str(mark), job_id="planted", on_failure=Callback("this.unheard_of"))
    valkey.rpush(orders(PROJECT), "end")
    start_worker()
    wait_for_state(queue, queue.request(PROJECT), "finished")
    status = queue.status(called.id)
    assert status.state == "failed"
    assert "only trainings are done here" in str(status.error)
    assert not mark.exists()


# --- two workers


@pytest.mark.slow  # starts workers and waits until a silent job is noticed
def test_two_workers_train_two_projects_at_once_but_never_one_twice(
    queue: TrainingQueue, examples: ExampleStore, valkey: redis.Redis, start_worker: StartWorker
) -> None:
    start_worker()
    start_worker()
    for project in (PROJECT, OTHER):
        queue.request(project)
    for project in (PROJECT, OTHER):
        wait_for_run(valkey, project)
    assert (valkey.get(inside(PROJECT)), valkey.get(inside(OTHER))) == (b"1", b"1"), "at the same time"
    valkey.rpush(orders(OTHER), "end")
    for number in range(1, 6):
        # asked for in the middle of each run, from many sides, so that the next one is enqueued before it has ended
        examples.put(PROJECT, [annotation(number)])
        with ThreadPoolExecutor(4) as threads:
            list(threads.map(lambda _: queue.request(PROJECT), range(4)))
        valkey.rpush(orders(PROJECT), "end")
        wait_for_run(valkey)
    valkey.rpush(orders(PROJECT), "end")
    wait_until("the last run to end", lambda: valkey.get(inside(PROJECT)) == b"0", TIMEOUT_S)
    found: Any = valkey.lrange(most(PROJECT), 0, -1)
    assert found == [b"1"] * 6


@pytest.mark.slow  # starts workers and waits until a silent job is noticed
def test_a_job_waits_for_a_training_by_hand(
    queue: TrainingQueue, valkey: redis.Redis, start_worker: StartWorker
) -> None:
    with lease.training(valkey, PROJECT) as run:
        assert run.job is None
        job = queue.request(PROJECT)
        start_worker()
        wait_until("the wait", lambda: "waiting" in str(queue.status(job).progress), TIMEOUT_S)
        assert valkey.llen(began(PROJECT)) == 0
    wait_for_run(valkey)
    valkey.rpush(orders(PROJECT), "end")
    wait_for_state(queue, job, "finished")


# --- sudden deaths


def test_the_figures_promise_less_than_a_minute() -> None:
    assert jobs._SILENCE_S + jobs._LOOK_S < 60
    assert jobs._REPORT_S * 3 < jobs._SILENCE_S
    assert lease._RENEW_EVERY_S * 3 < lease._LEASE_S < jobs._SILENCE_S


@pytest.mark.slow  # starts workers and waits until a silent job is noticed
def test_a_killed_process_is_started_again_but_not_for_ever(valkey: redis.Redis, start_worker: StartWorker) -> None:
    queue = TrainingQueue(valkey, default_after=20, function=cheap_worker.FUNCTION, retries=1)
    worker = start_worker()
    job = queue.request(PROJECT)
    pids = []
    for _ in range(2):
        pids.append(wait_for_run(valkey))
        assert queue.status(job).state == "started"
        os.kill(pids[-1], signal.SIGKILL)
    status = wait_for_state(queue, job, "failed")
    assert "its process ended during the training, 2 times" in str(status.error)
    assert len(set(pids)) == 2
    assert worker.descendants(), "the worker goes on"
    valkey.rpush(orders(OTHER), "end")
    wait_for_state(queue, queue.request(OTHER), "finished")


@pytest.mark.slow  # starts workers and waits until a silent job is noticed
def test_a_job_of_a_killed_worker_is_done_by_another_and_its_process_ends(
    queue: TrainingQueue, valkey: redis.Redis, start_worker: StartWorker
) -> None:
    worker = start_worker()
    job = queue.request(PROJECT)
    orphan = wait_for_run(valkey)
    start_worker()
    os.kill(worker.pid, signal.SIGKILL)
    wait_until("the orphan to end", lambda: not is_running(orphan), TIMEOUT_S)
    assert wait_for_run(valkey) != orphan
    valkey.rpush(orders(PROJECT), "end")
    wait_for_state(queue, job, "finished")


@pytest.mark.slow  # starts workers and waits until a silent job is noticed
def test_a_worker_and_its_process_killed_together_leave_nothing_that_seems_to_run(
    queue: TrainingQueue, valkey: redis.Redis, start_worker: StartWorker
) -> None:
    worker = start_worker()
    job = queue.request(PROJECT)
    horse = wait_for_run(valkey)
    os.kill(worker.pid, signal.SIGKILL)
    os.kill(horse, signal.SIGKILL)
    # there is no worker: whoever asks has it noticed
    wait_for_state(queue, job, "queued")
    start_worker()
    wait_for_run(valkey)
    valkey.rpush(orders(PROJECT), "end")
    wait_for_state(queue, job, "finished")


@pytest.mark.slow  # starts workers and waits until a silent job is noticed
def test_a_worker_that_is_told_to_end_puts_its_job_back(valkey: redis.Redis, start_worker: StartWorker) -> None:
    queue = TrainingQueue(valkey, default_after=20, function=cheap_worker.FUNCTION, retries=0)
    job = queue.request(PROJECT)
    for _ in range(2):  # more often than a job may be killed
        worker = start_worker()
        horse = wait_for_run(valkey)
        os.kill(worker.pid, signal.SIGTERM)
        assert worker.wait() == 0, worker.log_tail()
        assert not is_running(horse)
        assert (queue.status(job).state, queue.status(job).progress) == ("queued", None)
    start_worker()
    wait_for_run(valkey)
    valkey.rpush(orders(PROJECT), "end")
    wait_for_state(queue, job, "finished")


@pytest.mark.slow  # starts a worker
def test_an_idle_worker_ends_when_it_is_told_to(start_worker: StartWorker, valkey: redis.Redis) -> None:
    worker = start_worker()
    worker.wait_until("the worker", lambda: valkey.scard("rq:workers:gner-training"), TIMEOUT_S)
    os.kill(worker.pid, signal.SIGTERM)
    assert worker.wait() == 0, worker.log_tail()
    assert "Traceback" not in worker.log_tail()


def test_a_worker_without_a_store_says_so(tmp_path: Path) -> None:
    worker = Worker("redis://127.0.0.1:1", tmp_path / "worker.log")
    assert worker.wait() != 0
    assert "StoreUnavailable" in worker.log_tail()
