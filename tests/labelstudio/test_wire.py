"""JSON <-> dataclasses, on bodies recorded from Label Studio 1.23.2 (tokens replaced)."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from backend.errors import InvalidRequest
from backend.labelstudio import wire

SAMPLES = Path(__file__).parent / "samples"
CONFIG = (
    '<View><Labels name="label" toName="text"><Label value="Person"/><Label value="Place"/></Labels>'
    '<Text name="text" value="$text"/></View>'
)


def sample(name: str) -> Any:
    return json.loads((SAMPLES / f"{name}.json").read_text(encoding="utf-8"))


PREDICT: dict[str, Any] = {"tasks": [], "project": "1.2", "label_config": "<View/>", "params": None}
REGION = {"id": "x", "from_name": "label", "to_name": "text", "type": "labels", "value": {}}


def test_predict_as_recorded() -> None:
    request = wire.parse_predict(sample("predict_texts"))
    assert request.project == wire.ProjectRef(id=2, key="2.1795333437")
    assert request.label_config == CONFIG
    assert request.context is None
    assert [task.id for task in request.tasks] == list(range(10, 18))
    assert [task.data["text"] for task in request.tasks[1:]] == [
        "😀 Barack Obama met",
        "",
        "   ",
        12345,
        ["a", "b"],
        "line One\r\nLine Two\tTab",
        "NUL \0 Here",
    ]


def test_predict_of_annotated_tasks_as_recorded() -> None:
    request = wire.parse_predict(sample("predict"))
    assert [(task.id, task.data) for task in request.tasks] == [(i + 1, {"text": f"Text number {i}"}) for i in range(3)]


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        (None, None),
        ({}, None),
        ({"login": None, "password": None, "context": None}, None),
        ({"context": {}}, ()),
        ({"context": {"result": []}}, ()),
        ({"context": {"result": [REGION]}}, (REGION,)),
    ],
)
def test_context_tells_interactive_requests(params: object, expected: object) -> None:
    assert wire.parse_predict({**PREDICT, "params": params}).context == expected


@pytest.mark.parametrize(
    ("project", "expected"),
    [
        ("2.1795333437", wire.ProjectRef(2, "2.1795333437")),
        ("2", wire.ProjectRef(2, "2")),
        (2, wire.ProjectRef(2, "2")),
        (None, None),
        ("", None),
    ],
)
def test_project_in_all_its_forms(project: object, expected: object) -> None:
    assert wire.parse_predict({**PREDICT, "project": project}).project == expected


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (None, "the body is missing or null; expected an object"),
        ([], "the body is a list of 0; expected an object"),
        ({**PREDICT, "tasks": None}, "tasks is missing or null; expected a list"),
        ({**PREDICT, "tasks": {"a": 1}}, "tasks is an object with 1 keys; expected a list"),
        ({**PREDICT, "tasks": [{"data": {}}, "x"]}, "tasks[1] is 'x'; expected an object"),
        ({**PREDICT, "tasks": [{"id": 1}]}, "tasks[0].data is missing or null; expected an object"),
        ({**PREDICT, "tasks": [{"id": "x", "data": {}}]}, "tasks[0].id is 'x'; expected an integer"),
        ({**PREDICT, "label_config": None}, "label_config is missing or null; expected a string"),
        ({**PREDICT, "label_config": ""}, "label_config is ''; expected a string that is not empty"),
        ({**PREDICT, "project": "abc"}, "project is 'abc'; expected"),
        ({**PREDICT, "project": True}, "project is True; expected"),
        ({**PREDICT, "project": "9" * 5000}, "expected"),
        ({**PREDICT, "project": "2.1/../3"}, "project is '2.1/../3'; expected"),
        ({**PREDICT, "project": "2."}, "project is '2.'; expected"),
        ({**PREDICT, "project": "٢"}, "project is '٢'; expected"),
        ({**PREDICT, "params": {"context": []}}, "params.context is a list of 0; expected an object"),
        ({**PREDICT, "params": {"context": {"result": [1]}}}, "params.context.result[0] is 1; expected an object"),
    ],
)
def test_predict_refuses_with_the_value_and_what_was_expected(body: object, said: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        wire.parse_predict(body)
    assert said in str(refused.value)
    assert len(str(refused.value)) < 300


def test_setup_as_recorded() -> None:
    request = wire.parse_setup(sample("setup"))
    assert request == wire.SetupRequest(
        project=wire.ProjectRef(2, "2.1795333437"),
        label_config=CONFIG,
        extra_params=None,
    )
    assert "<legacy token>" not in repr(request)


@pytest.mark.parametrize(
    ("extra_params", "expected"),
    [
        (None, None),
        ("", None),
        ("null", None),
        ({"a": 1}, {"a": 1}),
        ('{"a": 1}', {"a": 1}),
        ({}, {}),
    ],
)
def test_extra_params_in_all_their_forms(extra_params: object, expected: object) -> None:
    assert wire.parse_setup({**sample("setup"), "extra_params": extra_params}).extra_params == expected


@pytest.mark.parametrize("extra_params", ["{", "[" * 100_000, "[]", "1", [1], 5])
def test_extra_params_that_are_no_object_are_refused(extra_params: object) -> None:
    with pytest.raises(InvalidRequest, match="extra_params"):
        wire.parse_setup({**sample("setup"), "extra_params": extra_params})


PROJECT = wire.ProjectPayload(
    id=2,
    key="2.1795333437",  # the one that /setup and /predict of the same project send
    title="renamed",
    label_config=CONFIG,
    updated_at_us=1795333439158943,
)


@pytest.mark.parametrize("action", ["ANNOTATION_CREATED", "ANNOTATION_UPDATED"])
def test_annotation_saved_as_recorded(action: str) -> None:
    event = wire.parse_webhook(sample(f"webhook_{action}"))
    assert isinstance(event, wire.AnnotationsSaved)
    assert (event.action, event.project.id, event.project.label_config) == (action, 2, CONFIG)
    (item,) = event.items
    assert item.task == wire.Task(id=10, data={"text": "Barack Obama met Angela Merkel in Berlin."})
    assert (item.annotation.id, item.annotation.task_id) == (1, 10)
    assert not item.annotation.was_cancelled
    assert item.annotation.prediction == {}
    expected_us = {"ANNOTATION_CREATED": 1795333438867173, "ANNOTATION_UPDATED": 1795333439008619}
    assert item.annotation.updated_at_us == expected_us[action]
    assert item.annotation.result[0]["value"] == {"start": 0, "end": 12, "text": "Barack Obama", "labels": ["Place"]}


def test_annotations_created_in_bulk_as_recorded() -> None:
    event = wire.parse_webhook(sample("webhook_ANNOTATIONS_CREATED"))
    assert isinstance(event, wire.AnnotationsSaved)
    assert [(item.annotation.id, item.task.id) for item in event.items] == [(2, 11)]


def test_annotations_find_their_tasks_in_any_order() -> None:
    body = sample("webhook_ANNOTATIONS_CREATED")
    body["annotation"] = [{"id": i, "task": task, "result": None} for i, task in enumerate([7, 8, 7])]
    body["task"] = [{"id": task, "data": {"text": str(task)}} for task in (8, 7)]
    event = wire.parse_webhook(body)
    assert isinstance(event, wire.AnnotationsSaved)
    assert [(item.annotation.id, item.task.data["text"]) for item in event.items] == [(0, "7"), (1, "8"), (2, "7")]


def test_a_skipped_task() -> None:
    body = sample("webhook_ANNOTATION_CREATED")
    body["annotation"]["was_cancelled"] = True
    event = wire.parse_webhook(body)
    assert isinstance(event, wire.AnnotationsSaved)
    assert event.items[0].annotation.was_cancelled


def test_other_events_as_recorded() -> None:
    deleted = wire.parse_webhook(sample("webhook_ANNOTATIONS_DELETED"))
    assert deleted == wire.AnnotationsDeleted("ANNOTATIONS_DELETED", PROJECT, (1,))
    created = wire.parse_webhook(sample("webhook_TASKS_CREATED"))
    assert isinstance(created, wire.TasksCreated)
    assert [task.id for task in created.tasks] == [10, 11]
    assert wire.parse_webhook(sample("webhook_TASKS_DELETED")) == wire.TasksDeleted("TASKS_DELETED", PROJECT, (18,))
    assert wire.parse_webhook(sample("webhook_PROJECT_UPDATED")) == wire.ProjectUpdated("PROJECT_UPDATED", PROJECT)
    assert wire.parse_webhook(sample("webhook_START_TRAINING")) == wire.TrainingStarted("START_TRAINING", PROJECT)


@pytest.mark.parametrize(
    ("project", "key"),
    [
        ({"id": 2, "created_at": "2026-11-22T07:43:57.008477Z"}, "2.1795333437"),
        ({"id": 2, "created_at": "2026-11-22T07:43:57.999999Z"}, "2.1795333437"),
        ({"id": 2, "created_at": "2026-11-22T08:43:57+01:00"}, "2.1795333437"),
        ({"id": 2, "created_at": None}, "2"),
        ({"id": 2}, "2"),
    ],
)
def test_the_key_of_a_project(project: dict[str, Any], key: str) -> None:
    assert wire.parse_project(project).key == key


@pytest.mark.parametrize(
    ("time", "expected_us"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("1970-01-01T00:00:01.5Z", 1_500_000),
        ("1970-01-01T00:00:00.000001Z", 1),
        ("1970-01-01T00:00:00.0000019Z", 1),
        ("1970-01-01 00:00:00.123", 123_000),
        ("1970-01-01T01:00:00+01:00", 0),
        ("1970-01-01T00:00:00-0530", 19_800_000_000),
        ("2026-11-22T07:43:59.008619Z", 1795333439008619),
        ("1969-12-31T23:59:59.999999Z", -1),
        ("", None),
        (None, None),
    ],
)
def test_times(time: object, expected_us: int | None) -> None:
    assert wire.parse_time(time, "updated_at") == expected_us


@pytest.mark.parametrize(
    "time", ["today", "2026-13-01T00:00:00Z", "2026-11-22", "2026-11-22T07:43:59+99:00", "٢026-11-22T07:43:59Z", 5]
)
def test_what_is_no_time_is_refused(time: object) -> None:
    with pytest.raises(InvalidRequest, match="updated_at is"):
        wire.parse_time(time, "updated_at")


@pytest.mark.parametrize(
    ("dates", "expected_us"),
    [
        ({"updated_at": "1970-01-01T00:00:02Z", "created_at": "1970-01-01T00:00:01Z"}, 2_000_000),
        ({"updated_at": None, "created_at": "1970-01-01T00:00:01Z"}, 1_000_000),
        ({}, 0),
    ],
)
def test_when_an_annotation_was_saved(dates: dict[str, Any], expected_us: int) -> None:
    assert wire.parse_annotation({"id": 1, "task": 2, **dates}).updated_at_us == expected_us


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ({}, {}),
        ({"prediction": None}, {}),
        ({"prediction": {"id": 5}}, {"id": 5}),
        ({"prediction": {"id": 5}, "parent_prediction": 5}, {"id": 5}),
        ({"prediction": {"id": 5}, "parent_prediction": 4}, {}),  # it started from another one
        ({"prediction": {"score": 1}, "parent_prediction": 4}, {"score": 1}),
        ({"prediction": {}, "parent_prediction": 4}, {}),
    ],
)
def test_the_prediction_that_an_annotation_started_from(told: dict[str, Any], expected: dict[str, Any]) -> None:
    assert wire.parse_annotation({"id": 1, "task": 2, **told}).prediction == expected


def test_train_brings_tasks_with_their_annotations() -> None:
    tasks = [
        {
            "id": 7,
            "data": {"text": "x"},
            "annotations": [{"id": 1, "task": 7, "parent_prediction": 4}, {"id": 2, "was_cancelled": True}],
            "predictions": [{"id": 3}, {"id": 4, "model_version": "v"}],
        },
        {"id": 8, "data": {"text": "y"}, "annotations": [], "predictions": []},
        {"id": 9, "data": {"text": "z"}, "annotations": [{"id": 5, "parent_prediction": 6}], "predictions": [6]},
    ]
    body = {"annotations": tasks, "project": "3.5", "label_config": CONFIG, "params": {"login": "secret"}}
    train = wire.parse_train(body)
    assert (train.project, train.label_config) == (wire.ProjectRef(3, "3.5"), CONFIG)
    found = [(item.annotation.id, item.annotation.task_id, item.task.data["text"]) for item in train.items]
    assert found == [(1, 7, "x"), (2, 7, "x"), (5, 9, "z")]
    assert [item.annotation.was_cancelled for item in train.items] == [False, True, False]
    assert [item.annotation.prediction for item in train.items] == [{"id": 4, "model_version": "v"}, {}, {}]
    assert "secret" not in repr(train)


@pytest.mark.parametrize(
    ("task", "said"),
    [
        (5, "annotations[0] is 5; expected an object"),
        ({"id": 1}, "annotations[0].data is missing or null"),
        ({"id": 1, "data": {}, "annotations": {"a": 1}}, "annotations[0].annotations is an object with 1 keys"),
        ({"id": 1, "data": {}, "annotations": [5]}, "annotations[0].annotations[0] is 5"),
        ({"id": 1, "data": {}, "annotations": [{}]}, "annotations[0].annotations[0].id is missing or null"),
        ({"data": {}, "annotations": [{"id": 1}]}, "annotations[0].annotations[0].task is missing or null"),
    ],
)
def test_train_refuses_with_the_value_and_what_was_expected(task: object, said: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        wire.parse_train({"annotations": [task], "project": "3.5", "label_config": CONFIG})
    assert said in str(refused.value)


def test_unknown_actions_are_ignored_whatever_they_bring() -> None:
    assert wire.parse_webhook({"action": "LABEL_LINK_CREATED"}) == wire.Ignored("LABEL_LINK_CREATED")
    assert wire.parse_webhook({"action": "X", "project": 5}) == wire.Ignored("X")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({}, "action is missing or null"),
        ({"action": "START_TRAINING"}, "project is missing or null"),
        ({"action": "START_TRAINING", "project": {}}, "project.id is missing or null"),
        ({"action": "START_TRAINING", "project": {"id": 1, "created_at": "today"}}, "project.created_at is 'today'"),
        ({"action": "TASKS_DELETED", "project": {"id": 1}, "tasks": [5]}, "tasks is 5"),
        (
            {
                "action": "ANNOTATION_CREATED",
                "project": {"id": 1},
                "annotation": {"id": 1, "task": 2},
                "task": {"id": 3, "data": {}},
            },
            "annotation 1 is of task 2; the event brings ['3']",
        ),
    ],
)
def test_webhook_refuses_with_the_value_and_what_was_expected(body: object, said: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        wire.parse_webhook(body)
    assert said in str(refused.value)


@pytest.mark.parametrize("name", sorted(path.stem for path in SAMPLES.glob("webhook_*.json")))
def test_no_secret_of_a_project_is_kept(name: str) -> None:
    body = sample(name)
    body["project"] |= {"token": "secret-1", "task_data_login": "secret-2", "task_data_password": "secret-3"}
    event = wire.parse_webhook(body)
    assert "secret" not in repr(event)
    assert "secret" not in json.dumps(dataclasses.asdict(event))


def test_no_credential_of_params_is_kept() -> None:
    body = {**PREDICT, "params": {"login": "secret-1", "password": "secret-2", "context": None}}
    assert "secret" not in json.dumps(dataclasses.asdict(wire.parse_predict(body)))


def test_the_smaller_requests() -> None:
    assert wire.parse_job_status({"job": "abc"}) == "abc"
    assert wire.parse_validate({"config": CONFIG}) == CONFIG
    wire.parse_delete({"project": "3.5"})
    wire.check_duplicate_model({"project_src": "3.5", "project_dst": 4})
    with pytest.raises(InvalidRequest, match="project is missing or null"):
        wire.parse_delete({})
    with pytest.raises(InvalidRequest, match="project_dst is 'x'"):
        wire.check_duplicate_model({"project_src": "3.5", "project_dst": "x"})


def test_predict_response_keeps_the_order_and_marks_what_is_not_done() -> None:
    predictions = [wire.Prediction((REGION,), 0.5, "v1"), None, wire.Prediction((), 1.0, "v1")]
    assert wire.predict_response(predictions) == {
        "results": [
            {"result": [REGION], "score": 0.5, "model_version": "v1"},
            [],
            {"result": [], "score": 1.0, "model_version": "v1"},
        ]
    }


@pytest.mark.parametrize(("score", "version"), [(1.5, "v"), (float("nan"), "v"), (0.5, "")])
def test_a_prediction_that_would_lose_the_batch_is_not_sent(score: float, version: str) -> None:
    with pytest.raises(AssertionError):
        wire.predict_response([wire.Prediction((), score, version)])
