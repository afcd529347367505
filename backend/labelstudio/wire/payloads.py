"""What Label Studio sends, and what it gets back, as dataclasses.

Secrets are left out: a project's token, task data passwords, the credentials in `params`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class ProjectRef:
    """A project as the ML client names it: "<id>.<created timestamp>", or the bare id.

    Nothing but digits and a dot, so a key can be part of a path or of a Redis key.
    """

    id: int
    key: str


@dataclass(frozen=True, slots=True)
class Task:
    """A task to predict or to learn from."""

    id: int | None
    data: dict[str, Any]


@dataclass(frozen=True, slots=True)
class AnnotationPayload:
    """An annotation; `result` holds its regions as Label Studio wrote them."""

    id: int
    task_id: int
    result: tuple[dict[str, Any], ...]
    was_cancelled: bool  # the task was skipped
    ground_truth: bool
    updated_at_us: int  # microseconds since 1970, UTC; 0 if unknown
    prediction: dict[str, Any]  # the whole prediction that it started from; empty if there was none


@dataclass(frozen=True, slots=True)
class AnnotatedTask:
    """An annotation with the task that it labels."""

    annotation: AnnotationPayload
    task: Task


@dataclass(frozen=True, slots=True)
class PredictRequest:
    """POST /predict. `context` holds the regions of an interactive request; None if it is not one."""

    tasks: tuple[Task, ...]
    project: ProjectRef | None
    label_config: str
    context: tuple[dict[str, Any], ...] | None


@dataclass(frozen=True, slots=True)
class SetupRequest:
    """POST /setup. `extra_params` is None if none were sent: earlier ones then stay."""

    project: ProjectRef | None
    label_config: str
    extra_params: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class TrainRequest:
    """POST /train: all annotations of a project, each with its task."""

    project: ProjectRef | None
    label_config: str
    items: tuple[AnnotatedTask, ...]


@dataclass(frozen=True, slots=True)
class ProjectPayload:
    """The part of a webhook's `project` that may be kept."""

    id: int
    key: str  # as ProjectRef.key
    title: str
    label_config: str
    updated_at_us: int  # microseconds since 1970, UTC; 0 if unknown


@dataclass(frozen=True, slots=True)
class AnnotationsSaved:
    """ANNOTATION_CREATED, ANNOTATION_UPDATED, ANNOTATIONS_CREATED."""

    action: str
    project: ProjectPayload
    items: tuple[AnnotatedTask, ...]


@dataclass(frozen=True, slots=True)
class AnnotationsDeleted:
    """ANNOTATIONS_DELETED; it does not say of which tasks."""

    action: str
    project: ProjectPayload
    annotation_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TasksCreated:
    """TASKS_CREATED."""

    action: str
    project: ProjectPayload
    tasks: tuple[Task, ...]


@dataclass(frozen=True, slots=True)
class TasksDeleted:
    """TASKS_DELETED; no ANNOTATIONS_DELETED follows."""

    action: str
    project: ProjectPayload
    task_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ProjectUpdated:
    """PROJECT_UPDATED, with the new label config inside `project`."""

    action: str
    project: ProjectPayload


@dataclass(frozen=True, slots=True)
class TrainingStarted:
    """START_TRAINING."""

    action: str
    project: ProjectPayload


@dataclass(frozen=True, slots=True)
class Ignored:
    """An action that needs no answer, of this Label Studio or a later one."""

    action: str


WebhookEvent = (
    AnnotationsSaved | AnnotationsDeleted | TasksCreated | TasksDeleted | ProjectUpdated | TrainingStarted | Ignored
)


@dataclass(frozen=True, slots=True)
class Prediction:
    """What is answered for one task. `score` is 0..1; `model_version` is the one that /setup answered."""

    result: tuple[dict[str, Any], ...]
    score: float
    model_version: str

    def to_json(self) -> dict[str, Any]:
        # either of these loses the whole batch in Label Studio
        assert self.model_version, "a prediction without model_version"
        assert 0.0 <= self.score <= 1.0, f"score {self.score} outside of 0..1"
        return {"result": list(self.result), "score": self.score, "model_version": self.model_version}


def predict_response(predictions: Sequence[Prediction | None]) -> dict[str, Any]:
    """The body of a /predict answer: one item per task, in order. None is a task not done in time: its item `[]`
    stores nothing and keeps the others."""
    return {"results": [[] if prediction is None else prediction.to_json() for prediction in predictions]}
