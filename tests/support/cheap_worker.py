"""A worker whose jobs train nothing and do what the test orders.

`python -m tests.support.cheap_worker URL [WORKER JOB EXECUTION]`; with the last three it is the work horse of a job.
"""

import logging
import os
import sys
import time
from typing import Any

import redis
from rq import get_current_job

from backend import store
from backend.errors import NotEnoughExamples
from backend.learning import jobs, lease
from backend.learning.example_store import ExampleStore
from backend.learning.lease import TrainingRun
from backend.learning.progress import Progress
from backend.processes import Children

FUNCTION = "tests.support.cheap_worker.train"


def began(project: str) -> str:
    """The key of a list: the process id of each run that began."""
    return f"test:began:{project}"


def orders(project: str) -> str:
    """The key of a list: what the runs shall do, b"end" or b"fail"."""
    return f"test:orders:{project}"


def inside(project: str) -> str:
    """The key of a number: how many runs are in progress."""
    return f"test:inside:{project}"


def most(project: str) -> str:
    """The key of a list: that number at the start of each run, which counts itself."""
    return f"test:most:{project}"


def train(project: str) -> dict[str, Any]:
    current = get_current_job()
    assert current is not None
    client = current.connection
    return lease.run_job(client, project, lambda run: _work(client, run))


def _work(client: redis.Redis, run: TrainingRun) -> dict[str, Any]:
    examples = ExampleStore(client)
    changes = examples.changes(run.project)
    client.rpush(most(run.project), int(client.incr(inside(run.project))))
    try:
        client.rpush(began(run.project), os.getpid())
        step = 0
        while (order := client.lpop(orders(run.project))) is None:
            step += 1
            run.report(Progress("fit", step, 0, loss=0.5, eta_s=1.0))
            time.sleep(0.02)
    finally:
        client.decr(inside(run.project))
    if order == b"fail":
        raise NotEnoughExamples(f"project {run.project!r} has 0 examples")
    queue = jobs.TrainingQueue(client, default_after=20, function=FUNCTION)
    return {"version": "v", "from_base": run.from_base, "next": queue.ended(run, examples, changes)}


def main(url: str, *horse: str) -> None:
    logging.basicConfig(level="INFO", format="%(process)d %(name)s: %(message)s")
    # shorter times than in production: tests kill processes and wait until that is noticed
    jobs._SILENCE_S, jobs._REPORT_S, jobs._LOOK_S = 4, 1, 2
    lease._LEASE_S = 3
    jobs.TrainingJob.functions = frozenset({FUNCTION})
    client = store.connect(url)
    if horse:
        jobs.work_horse(client, *horse)
    elif not jobs.work(client, Children(os.environ), [sys.executable, "-m", "tests.support.cheap_worker", url]):
        sys.exit(1)


if __name__ == "__main__":
    main(*sys.argv[1:])
