"""JSON <-> dataclasses: what Label Studio sends, parsed once at the edge, and what it gets back.

Every `parse_...` takes the decoded JSON body, and raises InvalidRequest with a sentence that names the value and
what was expected. Secrets (a project's token, task data passwords, the credentials in params) are never kept.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import Any

from backend.errors import InvalidRequest

_SHOWN_CHARS = 80
_MAX_ID_DIGITS = 20  # a 64-bit key has 19
_PROJECT_KEY = re.compile(r"([0-9]{1,20})(\.[0-9]{1,20})?")
_TIME = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2})[T ]([0-9]{2}:[0-9]{2}:[0-9]{2})(?:\.([0-9]{1,9}))?(Z|[+-][0-9]{2}:?[0-9]{2})?"
)
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


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
class Annotation:
    """An annotation; `result` holds its regions as Label Studio wrote them."""

    id: int
    task_id: int
    result: tuple[dict[str, Any], ...]
    was_cancelled: bool  # the task was skipped
    ground_truth: bool
    completed_by: int | None
    updated_at_us: int  # microseconds since 1970, UTC; 0 where no date was told
    prediction: dict[str, Any]  # the prediction it started from, whole; empty if there was none


@dataclass(frozen=True, slots=True)
class AnnotatedTask:
    """An annotation with the task that it labels."""

    annotation: Annotation
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
    """POST /setup. `extra_params` is None when none were sent, which must not erase earlier ones."""

    project: ProjectRef | None
    label_config: str
    hostname: str
    access_token: str = field(repr=False)
    extra_params: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class TrainRequest:
    """POST /train: all annotations of a project, each with its task."""

    project: ProjectRef | None
    label_config: str
    items: tuple[AnnotatedTask, ...]


@dataclass(frozen=True, slots=True)
class JobStatusRequest:
    """POST /job_status."""

    job: str


@dataclass(frozen=True, slots=True)
class DuplicateModelRequest:
    """POST /duplicate_model: `target` is a copy of the project `source`."""

    source: ProjectRef
    target: ProjectRef


@dataclass(frozen=True, slots=True)
class Project:
    """What of a webhook's `project` may be kept."""

    id: int
    key: str  # as ProjectRef.key
    title: str
    label_config: str
    model_version: str
    updated_at_us: int  # microseconds since 1970, UTC; 0 where it was not told


@dataclass(frozen=True, slots=True)
class AnnotationsSaved:
    """ANNOTATION_CREATED, ANNOTATION_UPDATED, ANNOTATIONS_CREATED."""

    action: str
    project: Project
    items: tuple[AnnotatedTask, ...]


@dataclass(frozen=True, slots=True)
class AnnotationsDeleted:
    """ANNOTATIONS_DELETED; it does not say of which tasks."""

    action: str
    project: Project
    annotation_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TasksCreated:
    """TASKS_CREATED."""

    action: str
    project: Project
    tasks: tuple[Task, ...]


@dataclass(frozen=True, slots=True)
class TasksDeleted:
    """TASKS_DELETED; no ANNOTATIONS_DELETED follows."""

    action: str
    project: Project
    task_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ProjectUpdated:
    """PROJECT_UPDATED, with the new label config inside `project`."""

    action: str
    project: Project


@dataclass(frozen=True, slots=True)
class TrainingStarted:
    """START_TRAINING."""

    action: str
    project: Project


@dataclass(frozen=True, slots=True)
class Ignored:
    """An action that asks nothing of us, now or in a later Label Studio."""

    action: str


WebhookEvent = (
    AnnotationsSaved | AnnotationsDeleted | TasksCreated | TasksDeleted | ProjectUpdated | TrainingStarted | Ignored
)


@dataclass(frozen=True, slots=True)
class Prediction:
    """What is answered for one task. `score` is 0..1; `model_version` is the one told by /setup."""

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


def parse_predict(body: object) -> PredictRequest:
    """The body of POST /predict."""
    fields = _object(body, "the body")
    return PredictRequest(
        tasks=tuple(parse_task(task, f"tasks[{i}]") for i, task in enumerate(_list(fields.get("tasks"), "tasks"))),
        project=parse_project_ref(fields.get("project")),
        label_config=_string(fields.get("label_config"), "label_config"),
        context=_context(fields.get("params")),
    )


def parse_setup(body: object) -> SetupRequest:
    """The body of POST /setup; its label config is called `schema`."""
    fields = _object(body, "the body")
    return SetupRequest(
        project=parse_project_ref(fields.get("project")),
        label_config=_string(fields.get("schema"), "schema"),
        hostname=_optional_string(fields.get("hostname"), "hostname"),
        access_token=_optional_string(fields.get("access_token"), "access_token", secret=True),
        extra_params=_extra_params(fields.get("extra_params")),
    )


def parse_train(body: object) -> TrainRequest:
    """The body of POST /train; its list `annotations` holds tasks, each with its annotations."""
    fields = _object(body, "the body")
    tasks = _list(fields.get("annotations"), "annotations")
    return TrainRequest(
        project=parse_project_ref(fields.get("project")),
        label_config=_string(fields.get("label_config"), "label_config"),
        items=tuple(item for i, task in enumerate(tasks) for item in parse_annotated_task(task, f"annotations[{i}]")),
    )


def parse_job_status(body: object) -> JobStatusRequest:
    """The body of POST /job_status."""
    return JobStatusRequest(job=_string(_object(body, "the body").get("job"), "job"))


def parse_validate(body: object) -> str:
    """The label config in the body of POST /validate, where it is called `config`."""
    return _string(_object(body, "the body").get("config"), "config")


def parse_duplicate_model(body: object) -> DuplicateModelRequest:
    """The body of POST /duplicate_model."""
    fields = _object(body, "the body")
    return DuplicateModelRequest(
        source=_project_ref(fields.get("project_src"), "project_src"),
        target=_project_ref(fields.get("project_dst"), "project_dst"),
    )


def parse_delete(body: object) -> ProjectRef:
    """The project in the body of POST /delete."""
    return _project_ref(_object(body, "the body").get("project"), "project")


def parse_webhook(body: object) -> WebhookEvent:
    """The body of POST /webhook. `annotation` and `task` may be one object or a list, whatever the action."""
    fields = _object(body, "the body")
    action = _string(fields.get("action"), "action")
    match action:
        case "ANNOTATION_CREATED" | "ANNOTATION_UPDATED" | "ANNOTATIONS_CREATED":
            return AnnotationsSaved(action, _project(fields), _annotated_tasks(fields))
        case "ANNOTATIONS_DELETED":
            return AnnotationsDeleted(action, _project(fields), _ids(fields, "annotations"))
        case "TASKS_CREATED":
            tasks = _one_or_many(fields.get("tasks"), "tasks")
            return TasksCreated(action, _project(fields), tuple(parse_task(task, "tasks") for task in tasks))
        case "TASKS_DELETED":
            return TasksDeleted(action, _project(fields), _ids(fields, "tasks"))
        case "PROJECT_UPDATED":
            return ProjectUpdated(action, _project(fields))
        case "START_TRAINING":
            return TrainingStarted(action, _project(fields))
        case _:
            return Ignored(action)


def parse_task(value: object, name: str = "task") -> Task:
    """A task with its data; `name` says where it was found."""
    task = _object(value, name)
    task_id = task.get("id")
    return Task(
        id=None if task_id is None else _integer(task_id, f"{name}.id"),
        data=_object(task.get("data"), f"{name}.data"),
    )


def parse_annotated_task(value: object, name: str = "task") -> tuple[AnnotatedTask, ...]:
    """A task with its `annotations`, as the API and exports write it: an item for each annotation.

    The API tells only the id of the prediction that an annotation started from; the prediction is then found among
    those of the task.
    """
    fields = _object(value, name)
    task = parse_task(fields, name)
    predictions = {
        prediction.get("id"): prediction
        for prediction in _list(fields.get("predictions") or [], f"{name}.predictions")
        if isinstance(prediction, dict)  # exports name only their ids
    }
    items = []
    for i, annotation in enumerate(_list(fields.get("annotations") or [], f"{name}.annotations")):
        known = _object(annotation, f"{name}.annotations[{i}]")
        prediction = known.get("prediction") or predictions.get(known.get("parent_prediction"))
        told = {"task": task.id, **known, "prediction": prediction}
        items.append(AnnotatedTask(parse_annotation(told, f"{name}.annotations[{i}]"), task))
    return tuple(items)


def parse_project(value: object) -> Project:
    """A project as webhooks and the API write it. Without `created_at` its key is the bare id."""
    project = _object(value, "project")
    project_id = _integer(project.get("id"), "project.id")
    created_at_us = parse_time(project.get("created_at"), "project.created_at")
    return Project(
        id=project_id,
        key=str(project_id) if created_at_us is None else f"{project_id}.{created_at_us // 1_000_000}",
        title=_optional_string(project.get("title"), "project.title"),
        label_config=_optional_string(project.get("label_config"), "project.label_config"),
        model_version=_optional_string(project.get("model_version"), "project.model_version"),
        updated_at_us=parse_time(project.get("updated_at"), "project.updated_at") or 0,
    )


def parse_time(value: object, name: str) -> int | None:
    """ISO 8601 -> microseconds since 1970, UTC. Without an offset it is UTC; null and "" are None."""
    text = _optional_string(value, name)
    if not text:
        return None
    found = _TIME.fullmatch(text)
    try:
        if found is None:
            raise ValueError("not ISO 8601")
        date, time, fraction, offset = found.groups()
        moment = datetime.strptime(f"{date} {time} {offset or 'Z'}", "%Y-%m-%d %H:%M:%S %z")
    except ValueError as error:  # the thirteenth month
        raise InvalidRequest(
            f'{name} is {_shown(value)}; expected a time like "2026-11-22T07:43:59.008619Z"'
        ) from error
    return (moment - _EPOCH) // timedelta(microseconds=1) + int((fraction or "0").ljust(6, "0")[:6])


def parse_project_ref(value: object) -> ProjectRef | None:
    """ "2.1795333437", "2" or 2 -> id 2 and the key as it was sent; null and "" -> None."""
    return None if value is None or value == "" else _project_ref(value, "project")


def _project_ref(value: object, name: str) -> ProjectRef:
    key = str(value) if isinstance(value, str | int) and not isinstance(value, bool) else ""
    found = _PROJECT_KEY.fullmatch(key)
    if found is None:
        raise InvalidRequest(f'{name} is {_shown(value)}; expected "<id>.<created timestamp>" or an id')
    return ProjectRef(id=int(found[1]), key=key)


def parse_annotation(value: object, name: str = "annotation") -> Annotation:
    """An annotation as webhooks and the API write it.

    Without `updated_at` it is as old as `created_at` says. Without either it counts as older than any other save of
    the same annotation: what has a date is never overwritten by what has none.
    """
    annotation = _object(value, name)
    user = annotation.get("completed_by")
    if isinstance(user, Mapping):  # the API can expand it
        user = user.get("id")
    regions = annotation.get("result")
    return Annotation(
        id=_integer(annotation.get("id"), f"{name}.id"),
        task_id=_integer(annotation.get("task"), f"{name}.task"),
        result=_regions([] if regions is None else regions, f"{name}.result"),
        was_cancelled=bool(annotation.get("was_cancelled")),
        ground_truth=bool(annotation.get("ground_truth")),
        completed_by=None if user is None else _integer(user, f"{name}.completed_by"),
        updated_at_us=parse_time(annotation.get("updated_at"), f"{name}.updated_at")
        or parse_time(annotation.get("created_at"), f"{name}.created_at")
        or 0,
        prediction=_prediction(annotation, name),
    )


def _prediction(annotation: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The prediction that an annotation started from, or empty.

    Label Studio sends the task's prediction of the version that the project shows now, even where the annotation
    started from another one.
    """
    prediction = _object(annotation.get("prediction") or {}, f"{name}.prediction")
    parent = annotation.get("parent_prediction")
    return prediction if parent is None or prediction.get("id", parent) == parent else {}


def _annotated_tasks(fields: Mapping[str, Any]) -> tuple[AnnotatedTask, ...]:
    tasks = [parse_task(task) for task in _one_or_many(fields.get("task"), "task")]
    by_id = {task.id: task for task in tasks}
    items = []
    for value in _one_or_many(fields.get("annotation"), "annotation"):
        annotation = parse_annotation(value)
        if annotation.task_id not in by_id:
            found = sorted(map(str, by_id))
            raise InvalidRequest(
                f"annotation {annotation.id} is of task {annotation.task_id}; the event brings {found}"
            )
        items.append(AnnotatedTask(annotation, by_id[annotation.task_id]))
    return tuple(items)


def _project(fields: Mapping[str, Any]) -> Project:
    return parse_project(fields.get("project"))


def _ids(fields: Mapping[str, Any], name: str) -> tuple[int, ...]:
    items = _one_or_many(fields.get(name), name)
    return tuple(_integer(_object(item, name).get("id"), f"{name}.id") for item in items)


def _context(params: object) -> tuple[dict[str, Any], ...] | None:
    """The regions of `params.context`; it is null unless the request is interactive."""
    context = None if params is None else _object(params, "params").get("context")
    if context is None:
        return None
    regions = _object(context, "params.context").get("result")
    return _regions([] if regions is None else regions, "params.context.result")


def _regions(value: object, name: str) -> tuple[dict[str, Any], ...]:
    return tuple(_object(region, f"{name}[{i}]") for i, region in enumerate(_list(value, name)))


def _extra_params(value: object) -> dict[str, Any] | None:
    """An object, or the string with JSON that Label Studio's form stores; null and blank are None."""
    if isinstance(value, str):
        if not value.strip():
            return None
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:  # the string is not shown: it may hold credentials
            raise InvalidRequest(f"extra_params is a string that is no JSON ({error}); expected an object") from error
    return None if value is None else _object(value, "extra_params")


def _one_or_many(value: object, name: str) -> list[Any]:
    return value if isinstance(value, list) else [_object(value, name)]


def _object(value: object, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InvalidRequest(f"{name} is {_shown(value)}; expected an object")
    return value


def _list(value: object, name: str) -> list[Any]:
    if not isinstance(value, list):
        raise InvalidRequest(f"{name} is {_shown(value)}; expected a list")
    return value


def _string(value: object, name: str) -> str:
    if not isinstance(value, str) or not value:
        raise InvalidRequest(f"{name} is {_shown(value)}; expected a string that is not empty")
    return value


def _optional_string(value: object, name: str, *, secret: bool = False) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise InvalidRequest(f"{name} is {'of another type' if secret else _shown(value)}; expected a string or null")
    return value


def _integer(value: object, name: str) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and _is_id(value):
        return int(value)
    raise InvalidRequest(f"{name} is {_shown(value)}; expected an integer")


def _is_id(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= _MAX_ID_DIGITS


def _shown(value: object) -> str:
    """A value for an error message: lists and objects by their kind only, since they may hold secrets or texts."""
    if value is None:
        return "missing or null"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if isinstance(value, dict):
        return f"an object with {len(value)} keys"
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARS else text[:_SHOWN_CHARS] + "..."
