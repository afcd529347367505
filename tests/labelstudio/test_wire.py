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


PREDICT = {"tasks": [], "project": "1.2", "label_config": "<View/>", "params": None}
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
        hostname="http://localhost:38379",
        access_token="<legacy token>",
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


PROJECT = wire.Project(id=2, title="renamed", label_config=CONFIG, model_version="dummy")


@pytest.mark.parametrize("action", ["ANNOTATION_CREATED", "ANNOTATION_UPDATED"])
def test_annotation_saved_as_recorded(action: str) -> None:
    event = wire.parse_webhook(sample(f"webhook_{action}"))
    assert isinstance(event, wire.AnnotationsSaved)
    assert (event.action, event.project.id, event.project.label_config) == (action, 2, CONFIG)
    (item,) = event.items
    assert item.task == wire.Task(id=10, data={"text": "Barack Obama met Angela Merkel in Berlin."})
    assert (item.annotation.id, item.annotation.task_id, item.annotation.completed_by) == (1, 10, 1)
    assert not item.annotation.was_cancelled
    assert item.annotation.prediction == {}
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
    body["annotation"]["completed_by"] = {"id": 5, "email": "x"}
    event = wire.parse_webhook(body)
    assert isinstance(event, wire.AnnotationsSaved)
    assert event.items[0].annotation.was_cancelled
    assert event.items[0].annotation.completed_by == 5


def test_other_events_as_recorded() -> None:
    deleted = wire.parse_webhook(sample("webhook_ANNOTATIONS_DELETED"))
    assert deleted == wire.AnnotationsDeleted("ANNOTATIONS_DELETED", PROJECT, (1,))
    created = wire.parse_webhook(sample("webhook_TASKS_CREATED"))
    assert isinstance(created, wire.TasksCreated)
    assert [task.id for task in created.tasks] == [10, 11]
    assert wire.parse_webhook(sample("webhook_TASKS_DELETED")) == wire.TasksDeleted("TASKS_DELETED", PROJECT, (18,))
    assert wire.parse_webhook(sample("webhook_PROJECT_UPDATED")) == wire.ProjectUpdated("PROJECT_UPDATED", PROJECT)
    assert wire.parse_webhook(sample("webhook_START_TRAINING")) == wire.TrainingStarted("START_TRAINING", PROJECT)


def test_unknown_actions_are_ignored_whatever_they_bring() -> None:
    assert wire.parse_webhook({"action": "LABEL_LINK_CREATED"}) == wire.Ignored("LABEL_LINK_CREATED")
    assert wire.parse_webhook({"action": "X", "project": 5}) == wire.Ignored("X")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({}, "action is missing or null"),
        ({"action": "START_TRAINING"}, "project is missing or null"),
        ({"action": "START_TRAINING", "project": {}}, "project.id is missing or null"),
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
    train = wire.parse_train(
        {"annotations": [{"id": 1}], "project": "3.5", "label_config": CONFIG, "params": {"login": "x"}}
    )
    assert train == wire.TrainRequest(wire.ProjectRef(3, "3.5"), CONFIG, ({"id": 1},))
    assert wire.parse_job_status({"job": "abc"}) == wire.JobStatusRequest("abc")
    assert wire.parse_validate({"config": CONFIG}) == CONFIG
    assert wire.parse_delete({"project": "3.5"}) == wire.ProjectRef(3, "3.5")
    assert wire.parse_duplicate_model({"project_src": "3.5", "project_dst": 4}) == wire.DuplicateModelRequest(
        source=wire.ProjectRef(3, "3.5"), target=wire.ProjectRef(4, "4")
    )
    with pytest.raises(InvalidRequest, match="project is missing or null"):
        wire.parse_delete({})


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
