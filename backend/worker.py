"""The worker process: takes training jobs and runs each in a process of its own. Never imports serving code."""

import logging
import os
import signal
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
from backend.learning.lease import Abandoned, TrainingRun
from backend.learning.progress import Progress
from backend.learning.training import FineTune, TrainingResult, train_version
from backend.processes import Children, when_orphaned
from backend.settings import Settings, without_password

if TYPE_CHECKING:
    from backend.labelstudio.sync import Reconciled

log = logging.getLogger(__name__)

# As for nice(1): the process that answers annotators comes first.
_NICENESS = 10


def run(settings: Settings, horse_command: Sequence[str]) -> bool:
    """Work until a signal stops it; False if something else ended it. `horse_command` starts a process for one job.

    Raises StoreUnavailable.
    """
    stand_back()
    when_orphaned(lambda: os.kill(os.getpid(), signal.SIGTERM))
    client = connect(settings)
    where = without_password(settings.redis_url) or settings.store_dir
    log.info("the worker waits for trainings (store: %s, versions: %s)", where, settings.model_dir.resolve())
    return jobs.work(client, Children(os.environ), horse_command)


def work_horse(settings: Settings, worker: str, job: str, execution: str) -> None:
    """Do one job in this process. Does not return."""
    stand_back()
    when_orphaned(lambda: os.kill(os.getpid(), signal.SIGKILL))  # its job is in the queue again by then
    jobs.work_horse(connect(settings), worker, job, execution)


def connect(settings: Settings) -> redis.Redis:
    """A client of the store that the settings name."""
    return store.connect(settings.redis_url or store.embedded_url(settings.store_dir))


def stand_back() -> None:
    """Lower the priority of this process and its children: annotators must not wait for a training."""
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, max(_NICENESS, os.getpriority(os.PRIO_PROCESS, 0)))
    # Linux may divide the processor between sessions first, and by priority only within each. A session that we do not
    # lead is somebody's terminal: lowering it would slow down all that runs there, for good.
    if os.getsid(0) == os.getpid():
        with suppress(OSError):
            Path("/proc/self/autogroup").write_text(str(_NICENESS), encoding="ascii")


def train(project: str) -> dict[str, Any]:
    """The RQ job. Its settings come from the environment, as those of the worker do."""
    settings = settings_module.read()
    client = connect(settings)
    return lease.run_job(client, project, lambda run: train_project(settings, client, run).to_json())


def train_project(
    settings: Settings, client: redis.Redis, run: TrainingRun, fine_tune: FineTune | None = None
) -> TrainingResult:
    """Train a project on its examples, then request its next training if one is due. See `train_version`.

    Raises UnknownProject, NotEnoughExamples, CorruptVersion, CheckpointError, StoreUnavailable, Abandoned.
    """
    examples = ExampleStore(client)
    _reconcile_if_possible(settings, examples, run)
    snapshot = examples.snapshot(run.project)
    log.info("project %s: its examples under the current label config: %s", run.project, asdict(snapshot.remapping))
    is_abandoned = False
    try:
        unlabelled = examples.unlabelled_texts(run.project)
        return train_version(
            settings, snapshot, run, unlabelled, fine_tune, lambda used: examples.forgotten_of(run.project, used)
        )
    except Abandoned:
        is_abandoned = True
        raise
    finally:
        if not is_abandoned:  # after an error too: otherwise every further annotation would start a training that fails
            TrainingQueue(client, settings.train_after).ended(run, examples, snapshot.changes)


def synchronise(settings: Settings, examples: ExampleStore, project_id: int) -> "Reconciled":
    """Make the examples of a project equal to what Label Studio has. Raises as `reconcile` does."""
    if not settings.label_studio_url or not settings.label_studio_api_key:
        raise LabelStudioUnavailable("to ask Label Studio, set LABEL_STUDIO_URL and LABEL_STUDIO_API_KEY")
    from backend.labelstudio.client import LabelStudioClient  # its SDK is large, and a waiting worker does not need it
    from backend.labelstudio.sync import reconcile

    with LabelStudioClient(settings.label_studio_url, settings.label_studio_api_key) as client:
        return reconcile(client, examples, project_id)


def _reconcile_if_possible(settings: Settings, examples: ExampleStore, run: TrainingRun) -> None:
    if not settings.label_studio_url or not settings.label_studio_api_key:
        return
    run.report(Progress("asking Label Studio"))
    try:
        done = synchronise(settings, examples, int(run.project.partition(".")[0]))
    except StoreUnavailable:
        raise
    except BackendError as error:
        log.warning("project %s is trained on the annotations that webhooks brought: %s", run.project, error)
        return
    if done.project != run.project:
        log.warning("project %s has another key in Label Studio by now: %s", run.project, done.project)
