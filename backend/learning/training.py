"""One training of a project: load, train, judge, publish."""

from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from typing import Any

from backend.errors import NotEnoughExamples
from backend.learning.annotations import AnnotatedText
from backend.learning.examples import Snapshot
from backend.learning.jobs import MIN_EXAMPLES
from backend.learning.lease import Run
from backend.learning.registry import PUBLISHED, REJECTED, Registry, VersionInfo, version_name
from backend.settings import Settings


def train_on(
    settings: Settings, snapshot: Snapshot, run: Run, unlabelled: Sequence[AnnotatedText] = ()
) -> dict[str, Any]:
    """Train, judge and publish. Raises as `train_project` does, without the store."""
    if len(snapshot.examples) < MIN_EXAMPLES:
        raise NotEnoughExamples(
            f"project {run.project} has {len(snapshot.examples)} accepted annotations to learn from; "
            f"a training needs at least {MIN_EXAMPLES}"
        )
    run.report("loading the model")
    from backend.engine import checkpoint as checkpoints  # torch: only the process that trains waits for it
    from backend.engine.adapters import Adapters
    from backend.learning import finetune

    checkpoint = checkpoints.resolve(settings.model)
    registry = Registry(settings.model_dir, checkpoint.version)
    current = None if run.from_base else registry.current(run.project)
    info = None if current is None else registry.info(run.project, current)
    parent = None if current is None else registry.folder(run.project, current)
    device = checkpoints.pick_device(settings.device if settings.train_device == "auto" else settings.train_device)
    loaded = checkpoints.load(checkpoint, device, checkpoints.pick_dtype(settings.dtype, device))
    with registry.new_folder(run.project) as folder:
        outcome = finetune.train(
            loaded,
            Adapters(loaded.family),
            snapshot,
            unlabelled,
            parent,
            info,
            finetune.TrainingSettings(),
            lambda progress: run.report(**asdict(progress)),
            folder,
        )
        verdict = outcome.verdict
        version = VersionInfo(
            version=version_name(checkpoint.name, run.project, outcome.adapter_sha256),
            project=run.project,
            base=checkpoint.version,
            parent=outcome.parent,
            created_at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            status=PUBLISHED if verdict.publish else REJECTED,
            reason=verdict.reason,
            examples=outcome.examples,
            held_out=outcome.held_out,
            scores=verdict.scores,
            settings=outcome.settings,
            seconds=outcome.seconds,
        )
        run.check()  # what another process trains by now is the other's to publish
        registry.publish(folder, version, promote=verdict.publish)
    return {
        "version": version.version,
        "promoted": verdict.publish,
        "reason": verdict.reason,
        "scores": version.scores,
        "seconds": version.seconds,
    }
