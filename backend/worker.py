"""The worker process: takes training jobs, and trains each in a process of its own. Never imports what serves."""

import logging
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import redis

from backend import settings as settings_module
from backend import store
from backend.errors import BackendError, LabelStudioUnavailable, StoreUnavailable
from backend.learning import jobs, lease
from backend.learning.example_store import ExampleStore
from backend.learning.jobs import TrainingQueue
from backend.learning.lease import Abandoned, Run
from backend.learning.training import train_on
from backend.settings import Settings

if TYPE_CHECKING:
    from backend.labelstudio.sync import Reconciled

log = logging.getLogger(__name__)

# How much the worker stands back behind the process that answers annotators, as for nice(1).
_NICENESS = 10


def run(settings: Settings, horse_command: Sequence[str]) -> bool:
    """Work until a signal says stop; False if something else ended it. `horse_command` starts what `work_horse` does.

    Raises StoreUnavailable.
    """
    stand_back()
    client = connect(settings)
    where = settings.redis_url.rsplit("@", 1)[-1] or settings.store_dir
    log.info("a worker waits for trainings (store: %s, versions: %s)", where, settings.model_dir.resolve())
    return jobs.work(client, horse_command)


def work_horse(settings: Settings, worker: str, job: str, execution: str) -> None:
    """Do one job; does not return."""
    stand_back()
    jobs.work_horse(connect(settings), worker, job, execution)


def connect(settings: Settings) -> redis.Redis:
    return store.connect(settings.redis_url or store.embedded_url(settings.store_dir))


def stand_back() -> None:
    """Lower this process's priority, and that of what it starts: annotators must not wait for a training."""
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, max(_NICENESS, os.getpriority(os.PRIO_PROCESS, 0)))
    # Linux may share the processor out between sessions first, and only within each by priority; ours is its own
    with suppress(OSError):
        Path("/proc/self/autogroup").write_text(str(_NICENESS), encoding="ascii")


def train(project: str) -> dict[str, Any]:
    """The RQ job; settings come from the environment, as the worker's own did."""
    settings = settings_module.read()
    client = connect(settings)
    return lease.run_job(client, project, lambda run: train_project(settings, client, run))


def train_project(settings: Settings, client: redis.Redis, run: Run) -> dict[str, Any]:
    """Train a project on its examples, and have the next training requested if there is reason for one.

    Raises UnknownProject, NotEnoughExamples, CorruptVersion, CheckpointError, StoreUnavailable, Abandoned.
    """
    examples = ExampleStore(client)
    _reconcile_if_possible(settings, examples, run)
    snapshot = examples.snapshot(run.project)
    log.info("project %s: its label config makes of the examples: %s", run.project, asdict(snapshot.remapping))
    is_ours = True
    try:
        return train_on(settings, snapshot, run, examples.unlabelled_texts(run.project))
    except Abandoned:
        is_ours = False
        raise
    finally:
        if is_ours:  # after an error too: it would come again with the next annotation, and the next
            TrainingQueue(client, settings.train_after).ended(run, examples, snapshot.changes)


def synchronise(settings: Settings, examples: ExampleStore, project_id: int) -> "Reconciled":
    """Make the examples of a project equal to what Label Studio has. Raises as `reconcile` does."""
    if not settings.label_studio_url or not settings.label_studio_api_key:
        raise LabelStudioUnavailable("to ask Label Studio, give LABEL_STUDIO_URL and LABEL_STUDIO_API_KEY")
    from backend.labelstudio.client import LabelStudioClient  # its SDK is large; a worker that waits needs none of it
    from backend.labelstudio.sync import reconcile

    with LabelStudioClient(settings.label_studio_url, settings.label_studio_api_key) as client:
        return reconcile(client, examples, project_id)


def _reconcile_if_possible(settings: Settings, examples: ExampleStore, run: Run) -> None:
    if not settings.label_studio_url or not settings.label_studio_api_key:
        return
    run.report("asking Label Studio")
    try:
        done = synchronise(settings, examples, int(run.project.partition(".")[0]))
    except StoreUnavailable:
        raise
    except BackendError as error:
        log.warning("project %s is trained on what webhooks brought: %s", run.project, error)
        return
    if done.project != run.project:
        log.warning("project %s is another one in Label Studio by now: %s", run.project, done.project)
