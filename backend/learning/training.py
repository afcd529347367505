"""One training of a project: load the model, fine-tune it, judge the result, publish it."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from backend.errors import TrainingFailed
from backend.learning.annotations import AnnotatedText
from backend.learning.examples import Snapshot, require_examples
from backend.learning.lease import TrainingRun
from backend.learning.progress import Progress
from backend.learning.registry import PUBLISHED, REJECTED, ParentVersion, Registry, VersionInfo, version_name
from backend.settings import Settings

if TYPE_CHECKING:  # torch: only the process that trains waits for it
    from backend.engine.adapters import Adapters
    from backend.engine.checkpoint import Checkpoint, LoadedModel
    from backend.learning.finetune import Outcome


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """What became of a training. `scores` are those of its version."""

    version: str
    promoted: bool
    reason: str  # the gate's sentence
    scores: dict[str, float]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """The return value of a job, as /job_status shows it."""
        return asdict(self)


class FineTune(Protocol):
    """`finetune.fine_tune`, or what a test uses in its place."""

    def __call__(
        self,
        loaded: "LoadedModel",
        adapters: "Adapters",
        snapshot: Snapshot,
        folder: Path,
        *,
        parent: ParentVersion | None,
        unlabelled: Sequence[AnnotatedText],
        on_progress: Callable[[Progress], None],
    ) -> "Outcome":
        """Write an adapter into `folder`, and say what the gate thinks of it."""


def train_version(
    settings: Settings,
    snapshot: Snapshot,
    run: TrainingRun,
    unlabelled: Sequence[AnnotatedText] = (),
    fine_tune: FineTune | None = None,
    forgotten: Callable[[Sequence[tuple[int, int]]], Sequence[str]] = lambda _: (),
) -> TrainingResult:
    """Train, judge and publish a project's next version. A test may give another `fine_tune`.

    `forgotten` says which of some examples, (task id, annotation id), were to be forgotten while the training ran. Its
    version is then not published. Raises NotEnoughExamples, CorruptVersion, CheckpointError, TrainingFailed, Abandoned.
    """
    require_examples(run.project, len(snapshot.examples))
    run.report(Progress("loading the model"))
    from backend.engine import checkpoint as checkpoints
    from backend.engine.adapters import Adapters

    checkpoint = checkpoints.resolve(settings.model)
    registry = Registry(settings.model_dir, checkpoint.version)
    parent = None if run.from_base else registry.parent_of_next(run.project)
    loaded = _load(checkpoint, settings)
    with registry.new_folder(run.project) as folder:
        outcome = (fine_tune or _fine_tune())(
            loaded,
            Adapters(loaded.family),
            snapshot,
            folder,
            parent=parent,
            unlabelled=unlabelled,
            on_progress=run.report,
        )
        version = _version_of(outcome, checkpoint, run.project)
        if gone := forgotten(version.examples + version.held_out):
            raise TrainingFailed(f"it was trained on what is forgotten by now: {', '.join(gone)}; train again")
        run.check()  # if another process trains this project by now, the other one publishes
        registry.publish(folder, version, promote=outcome.verdict.publish)
    return TrainingResult(
        version.version, outcome.verdict.publish, version.reason, dict(version.scores), version.seconds
    )


def _fine_tune() -> FineTune:
    from backend.learning import finetune

    return finetune.fine_tune


def _load(checkpoint: "Checkpoint", settings: Settings) -> "LoadedModel":
    """The model on the device that the settings name for training."""
    from backend.engine import checkpoint as checkpoints

    name = settings.device if settings.train_device == "auto" else settings.train_device
    device = checkpoints.pick_device(name)
    return checkpoints.load(checkpoint, device, checkpoints.pick_dtype(settings.dtype, device))


def _version_of(outcome: "Outcome", checkpoint: "Checkpoint", project: str) -> VersionInfo:
    """The description under which a trained adapter is published."""
    return VersionInfo(
        version=version_name(checkpoint.name, project, outcome.adapter_sha256),
        project=project,
        base=checkpoint.version,
        parent=outcome.parent,
        created_at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        status=PUBLISHED if outcome.verdict.publish else REJECTED,
        reason=outcome.verdict.reason,
        examples=outcome.examples,
        held_out=outcome.held_out,
        scores=outcome.verdict.scores,
        settings=outcome.settings,
        seconds=outcome.seconds,
    )
