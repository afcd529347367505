"""Label Studio's JSON -> payloads.

Every `parse_...` takes the decoded JSON body, and raises InvalidRequest with a sentence that names the value and
what was expected.
"""

import json
import re
from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from typing import Any

from backend.errors import InvalidRequest
from backend.labelstudio.wire.payloads import (
    AnnotatedTask,
    AnnotationPayload,
    AnnotationsDeleted,
    AnnotationsSaved,
    Ignored,
    PredictRequest,
    ProjectPayload,
    ProjectRef,
    ProjectUpdated,
    SetupRequest,
    Task,
    TasksCreated,
    TasksDeleted,
    TrainingStarted,
    TrainRequest,
    WebhookEvent,
)
from backend.labelstudio.wire.values import (
    as_integer,
    as_list,
    as_name,
    as_object,
    as_optional_string,
    as_string,
    shown,
)

_PROJECT_KEY = re.compile(r"([0-9]{1,20})(\.[0-9]{1,20})?")
_TIME = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2})[T ]([0-9]{2}:[0-9]{2}:[0-9]{2})(?:\.([0-9]{1,9}))?(Z|[+-][0-9]{2}:?[0-9]{2})?"
)
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


def parse_predict(body: object) -> PredictRequest:
    """The body of POST /predict."""
    fields = as_object(body, "the body")
    return PredictRequest(
        tasks=tuple(parse_task(task, f"tasks[{i}]") for i, task in enumerate(as_list(fields.get("tasks"), "tasks"))),
        project=parse_project_ref(fields.get("project")),
        label_config=as_string(fields.get("label_config"), "label_config"),
        context=_context(fields.get("params")),
    )


def parse_setup(body: object) -> SetupRequest:
    """The body of POST /setup; its label config is called `schema`."""
    fields = as_object(body, "the body")
    return SetupRequest(
        project=parse_project_ref(fields.get("project")),
        label_config=as_string(fields.get("schema"), "schema"),
        extra_params=_extra_params(fields.get("extra_params")),
    )


def parse_train(body: object) -> TrainRequest:
    """The body of POST /train; its list `annotations` holds tasks, each with its annotations."""
    fields = as_object(body, "the body")
    tasks = as_list(fields.get("annotations"), "annotations")
    return TrainRequest(
        project=parse_project_ref(fields.get("project")),
        label_config=as_string(fields.get("label_config"), "label_config"),
        items=tuple(item for i, task in enumerate(tasks) for item in parse_annotated_task(task, f"annotations[{i}]")),
    )


def parse_job_status(body: object) -> str:
    """The job that the body of POST /job_status names."""
    return as_name(as_object(body, "the body").get("job"), "job")


def parse_validate(body: object) -> str:
    """The label config in the body of POST /validate, where it is called `config`."""
    return as_string(as_object(body, "the body").get("config"), "config")


def check_duplicate_model(body: object) -> None:
    """The body of POST /duplicate_model must name two projects."""
    fields = as_object(body, "the body")
    _project_ref(fields.get("project_src"), "project_src")
    _project_ref(fields.get("project_dst"), "project_dst")


def parse_delete(body: object) -> str:
    """The key of the project that the body of POST /delete names."""
    return _project_ref(as_object(body, "the body").get("project"), "project").key


def parse_webhook(body: object) -> WebhookEvent:
    """The body of POST /webhook. `annotation` and `task` may be one object or a list, whatever the action."""
    fields = as_object(body, "the body")
    action = as_string(fields.get("action"), "action")
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
    task = as_object(value, name)
    task_id = task.get("id")
    return Task(
        id=None if task_id is None else as_integer(task_id, f"{name}.id"),
        data=as_object(task.get("data"), f"{name}.data"),
    )


def parse_annotated_task(value: object, name: str = "task") -> tuple[AnnotatedTask, ...]:
    """A task with its `annotations`, as the API and exports write it: an item for each annotation.

    The API gives only the id of the prediction that an annotation started from; the prediction itself is then among
    the task's.
    """
    fields = as_object(value, name)
    task = parse_task(fields, name)
    predictions = {
        prediction.get("id"): prediction
        for prediction in as_list(fields.get("predictions") or [], f"{name}.predictions")
        if isinstance(prediction, dict)  # exports name only their ids
    }
    items = []
    for i, annotation in enumerate(as_list(fields.get("annotations") or [], f"{name}.annotations")):
        known = as_object(annotation, f"{name}.annotations[{i}]")
        prediction = known.get("prediction") or predictions.get(known.get("parent_prediction"))
        completed = {"task": task.id, **known, "prediction": prediction}
        items.append(AnnotatedTask(parse_annotation(completed, f"{name}.annotations[{i}]"), task))
    return tuple(items)


def parse_project(value: object) -> ProjectPayload:
    """A project as webhooks and the API write it. Without `created_at` its key is the bare id."""
    project = as_object(value, "project")
    project_id = as_integer(project.get("id"), "project.id")
    created_at_us = parse_time(project.get("created_at"), "project.created_at")
    return ProjectPayload(
        id=project_id,
        key=str(project_id) if created_at_us is None else f"{project_id}.{created_at_us // 1_000_000}",
        title=as_optional_string(project.get("title"), "project.title"),
        label_config=as_optional_string(project.get("label_config"), "project.label_config"),
        updated_at_us=parse_time(project.get("updated_at"), "project.updated_at") or 0,
    )


def parse_time(value: object, name: str) -> int | None:
    """ISO 8601 -> microseconds since 1970, UTC. Without an offset it is UTC; null and "" are None."""
    text = as_optional_string(value, name)
    if not text:
        return None
    found = _TIME.fullmatch(text)
    try:
        if found is None:
            raise ValueError("not ISO 8601")
        date, time, fraction, offset = found.groups()
        moment = datetime.strptime(f"{date} {time} {offset or 'Z'}", "%Y-%m-%d %H:%M:%S %z")
    except ValueError as error:  # also for a date that does not exist
        raise InvalidRequest(f'{name} is {shown(value)}; expected a time like "2026-11-22T07:43:59.008619Z"') from error
    return (moment - _EPOCH) // timedelta(microseconds=1) + int((fraction or "0").ljust(6, "0")[:6])


def parse_project_ref(value: object) -> ProjectRef | None:
    """ "2.1795333437", "2" or 2 -> id 2 and the key as it was sent; null and "" -> None."""
    return None if value is None or value == "" else _project_ref(value, "project")


def _project_ref(value: object, name: str) -> ProjectRef:
    key = str(value) if isinstance(value, str | int) and not isinstance(value, bool) else ""
    found = _PROJECT_KEY.fullmatch(key)
    if found is None:
        raise InvalidRequest(f'{name} is {shown(value)}; expected "<id>.<created timestamp>" or an id')
    return ProjectRef(id=int(found[1]), key=key)


def parse_annotation(value: object, name: str = "annotation") -> AnnotationPayload:
    """An annotation as webhooks and the API write it.

    Without `updated_at`, `created_at` counts. Without either, it counts as older than any other save of the same
    annotation, so that a save with a date is never overwritten by one without.
    """
    annotation = as_object(value, name)
    regions = annotation.get("result")
    return AnnotationPayload(
        id=as_integer(annotation.get("id"), f"{name}.id"),
        task_id=as_integer(annotation.get("task"), f"{name}.task"),
        result=_regions([] if regions is None else regions, f"{name}.result"),
        was_cancelled=bool(annotation.get("was_cancelled")),
        ground_truth=bool(annotation.get("ground_truth")),
        updated_at_us=parse_time(annotation.get("updated_at"), f"{name}.updated_at")
        or parse_time(annotation.get("created_at"), f"{name}.created_at")
        or 0,
        prediction=_prediction(annotation, name),
    )


def _prediction(annotation: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The prediction that an annotation started from, or empty.

    Label Studio sends the task's prediction of the version that the project shows now, even if the annotation
    started from another one.
    """
    prediction = as_object(annotation.get("prediction") or {}, f"{name}.prediction")
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


def _project(fields: Mapping[str, Any]) -> ProjectPayload:
    return parse_project(fields.get("project"))


def _ids(fields: Mapping[str, Any], name: str) -> tuple[int, ...]:
    items = _one_or_many(fields.get(name), name)
    return tuple(as_integer(as_object(item, name).get("id"), f"{name}.id") for item in items)


def _context(params: object) -> tuple[dict[str, Any], ...] | None:
    """The regions of `params.context`; it is null unless the request is interactive."""
    context = None if params is None else as_object(params, "params").get("context")
    if context is None:
        return None
    regions = as_object(context, "params.context").get("result")
    return _regions([] if regions is None else regions, "params.context.result")


def _regions(value: object, name: str) -> tuple[dict[str, Any], ...]:
    return tuple(as_object(region, f"{name}[{i}]") for i, region in enumerate(as_list(value, name)))


def _extra_params(value: object) -> dict[str, Any] | None:
    """An object, or the string with JSON that Label Studio's form stores; null and blank are None."""
    if isinstance(value, str):
        if not value.strip():
            return None
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:  # the string is not shown: it may hold credentials
            raise InvalidRequest(f"extra_params is a string that is not JSON ({error}); expected an object") from error
    return None if value is None else as_object(value, "extra_params")


def _one_or_many(value: object, name: str) -> list[Any]:
    return value if isinstance(value, list) else [as_object(value, name)]
