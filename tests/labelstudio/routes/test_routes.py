"""The HTTP endpoints as Label Studio calls them, over the whole application."""

import base64
import dataclasses
import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
import redis
import torch
from flask.testing import FlaskClient
from torch import nn

from backend.app import Services, build, create_app
from backend.engine import checkpoint as checkpoints
from backend.engine.adapters import Adapters, AdapterSettings
from backend.errors import ModelNotReady
from backend.learning.registry import VersionInfo
from backend.serving.predictor import Predictor
from backend.settings import Settings
from tests.support.running import (
    CONFIG,
    OTHER_CONFIG,
    TIMEOUT_S,
    client_of,
    count,
    predict_body,
    running,
    save_checkpoint,
    tasks_of,
)

SAMPLES = Path(__file__).parent.parent / "samples"
TEXTS = [
    "Marie Curie worked in Paris , x",
    "the 👩‍👩‍👧 University of Paris",
    "x of art ,\r\n in Paris",
    "работа Curie , city of work",
    "2024 person in the city !",
]
PROJECT = {"id": 1, "title": "p", "label_config": CONFIG, "model_version": ""}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny")


@pytest.fixture(scope="module")
def services(checkpoint: Path, _valkey_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    model_dir = tmp_path_factory.mktemp("data")
    with running(model=str(checkpoint), redis_url=_valkey_url, model_dir=model_dir) as services:
        yield services


@pytest.fixture
def client(services: Services, valkey_url: str) -> FlaskClient:  # noqa: ARG001  # the cache is empty
    return client_of(services)


def post(client: FlaskClient, path: str, body: object, status: int = 200) -> Any:
    response = client.post(path, json=body)
    assert response.status_code == status, response.get_data(as_text=True)
    assert response.is_json
    return response.get_json()


def assert_error(answer: Any, *parts: str) -> None:
    assert set(answer) == {"error", "detail"}
    for part in parts:
        assert part in answer["detail"]
    assert "Traceback" not in json.dumps(answer)


def wait_until(condition: Callable[[], bool]) -> None:
    """For what a background thread does and tells by its counters alone."""
    deadline_s = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


# --- health, setup and the small ones


def test_health(client: FlaskClient, services: Services) -> None:
    response = client.get("/health")
    assert response.status_code == 200
    assert response.get_json() == {
        "status": "UP",
        "state": "ready",
        "model_class": "GNERModel",
        "model_version": services.checkpoint.version,
        "device": "cpu",
        "cache": "up",
    }


def test_ready_when_everything_works(client: FlaskClient) -> None:
    response = client.get("/ready")
    assert (response.status_code, response.get_json()) == (200, {"ready": True, "problems": []})


def test_not_ready_says_what_is_wrong(checkpoint: Path, tmp_path: Path) -> None:
    services = build(Settings(model=str(checkpoint), redis_url=f"unix://{tmp_path}/nothing.sock"))
    response = client_of(services).get("/ready")  # nothing has been started
    assert response.status_code == 503
    said = " ".join(response.get_json()["problems"])
    for problem in ("the model is loading", "model's thread", "finishes predictions", "annotations cannot be stored"):
        assert problem in said
    services.stop()


def test_setup_tells_the_version_that_predictions_carry(client: FlaskClient) -> None:
    setup = post(client, "/setup", json.loads((SAMPLES / "setup.json").read_text(encoding="utf-8")))
    results = post(client, "/predict", predict_body(tasks_of(*TEXTS)))["results"]
    assert {item["model_version"] for item in results} == {setup["model_version"]}
    assert setup["model_version"].startswith("tiny-")


@pytest.mark.parametrize("extra_params", [None, "", "{}", '{"a": 1}', {"a": 1}])
def test_setup_takes_extra_params_in_all_their_forms(client: FlaskClient, extra_params: object) -> None:
    body = {"project": "1.1", "schema": CONFIG, "hostname": "", "access_token": "", "extra_params": extra_params}
    assert post(client, "/setup", body)["labels"] == ["Person", "City"]


def test_index_lists_the_endpoints(client: FlaskClient) -> None:
    endpoints = client.get("/").get_json()["endpoints"]
    assert {"/", "/health", "/setup", "/predict", "/webhook", "/train", "/job_status", "/versions"} <= set(endpoints)
    assert {"/validate", "/duplicate_model", "/delete", "/metrics"} <= set(endpoints)
    assert {"/promote", "/rollback", "/forget"} <= set(endpoints)


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_versions(client: FlaskClient, services: Services, method: str) -> None:
    assert client.open("/versions", method=method).get_json() == {"versions": [services.checkpoint.version]}


def test_validate(client: FlaskClient) -> None:
    assert post(client, "/validate", {"config": CONFIG})["labels"] == ["Person", "City"]
    assert_error(post(client, "/validate", {"config": "<View/>"}, 400), "Labels")


def test_duplicate_and_delete(client: FlaskClient) -> None:
    assert post(client, "/duplicate_model", {"project_src": "1.1", "project_dst": "2.2"}) == {"status": "ok"}
    assert post(client, "/delete", {"project": "1.1"})["status"] == "ok"


def test_metrics_are_prometheus_text(client: FlaskClient) -> None:
    client.get("/health")
    response = client.get("/metrics")
    assert response.mimetype == "text/plain"
    assert 'gner_requests_total{endpoint="health",status="200"}' in response.get_data(as_text=True)


# --- predict


@pytest.mark.parametrize("number", [0, 1, 2, 33, 1300])
def test_one_item_per_task_in_order(client: FlaskClient, number: int) -> None:
    texts = [TEXTS[index * 7 % len(TEXTS)] + " x" * (index % 9) for index in range(number)]
    results = post(client, "/predict", predict_body(tasks_of(*texts)))["results"]
    assert len(results) == number
    for text, item in zip(texts, results, strict=True):
        assert set(item) == {"result", "score", "model_version"}
        assert 0 <= item["score"] <= 1
        for region in item["result"]:
            assert (region["from_name"], region["to_name"], region["type"]) == ("label", "text", "labels")
            value = region["value"]
            assert text[value["start"] : value["end"]] == value["text"]
            assert value["labels"] in (["Person"], ["City"])
            assert 0 <= region["score"] <= 1
    ids = [region["id"] for item in results for region in item["result"]]
    assert len(set(ids)) == len(ids)
    assert ids or number == 0, "a test without regions would show nothing"


def test_each_task_has_its_own_answer(client: FlaskClient, valkey: redis.Redis) -> None:
    def spans(item: Any) -> list[tuple[Any, ...]]:
        values = [region["value"] for region in item["result"]]
        return [(value["start"], value["end"], *value["labels"]) for value in values]

    together = post(client, "/predict", predict_body(tasks_of(*TEXTS)))["results"]
    valkey.flushall()
    alone = [post(client, "/predict", predict_body(tasks_of(text)))["results"][0] for text in TEXTS]
    assert [spans(item) for item in together] == [spans(item) for item in alone]
    assert len({str(spans(item)) for item in together}) > 1


@pytest.mark.parametrize("text", [None, "", "   ", "\n"], ids=ascii)
def test_an_empty_text_has_an_empty_prediction_and_its_reason_in_the_log(
    client: FlaskClient, caplog: pytest.LogCaptureFixture, text: object
) -> None:
    caplog.set_level("INFO")
    [before, item, after] = post(client, "/predict", predict_body(tasks_of(TEXTS[0], text, TEXTS[1])))["results"]
    assert item["result"] == []
    assert item["score"] == 1.0
    assert before["model_version"] == item["model_version"] == after["model_version"]
    assert "task 2: '$text' is empty or missing" in caplog.text


def test_a_missing_text_too(client: FlaskClient) -> None:
    [item] = post(client, "/predict", predict_body([{"id": 1, "data": {"other": "x"}}]))["results"]
    assert item["result"] == []


@pytest.mark.parametrize(
    ("value", "drawn"), [(12345, "12345"), (1.5, "1.5"), (["Marie", "Paris"], "Marie,Paris"), (True, "true")]
)
def test_values_that_are_no_texts_are_labelled_as_they_are_drawn(
    client: FlaskClient, value: object, drawn: str
) -> None:
    [item, same] = post(client, "/predict", predict_body(tasks_of(value, drawn)))["results"]
    assert [region["value"] for region in item["result"]] == [region["value"] for region in same["result"]]
    assert item["score"] == same["score"] < 1


@pytest.mark.slow  # predicts texts of thousands of characters
@pytest.mark.parametrize("text", ["\ud800 Marie", "NUL \0 Marie", "{}~\\`^<", "x" * 5000, "Paris " * 800], ids=len)
def test_no_text_fails_the_batch(client: FlaskClient, text: str) -> None:
    results = post(client, "/predict", predict_body(tasks_of(TEXTS[0], text)))["results"]
    assert [set(item) for item in results] == [{"result", "score", "model_version"}] * 2


@pytest.mark.slow  # predicts 350 texts
def test_texts_asked_for_again_need_no_model(client: FlaskClient, services: Services) -> None:
    texts = [f"{text} {index}" for index in range(70) for text in TEXTS]
    first = post(client, "/predict", predict_body(tasks_of(*texts)))["results"]
    decoded, hits = count(services, "gner_windows_decoded_total"), count(services, "gner_cache_hits_total")
    second = post(client, "/predict", predict_body(tasks_of(*texts)))["results"]
    assert [item["score"] for item in second] == [item["score"] for item in first]
    assert count(services, "gner_windows_decoded_total") == decoded
    assert count(services, "gner_cache_hits_total") == hits + 350
    assert f"gner_windows_decoded_total {decoded}" in client.get("/metrics").get_data(as_text=True)


def test_projects_with_different_configs_do_not_cross_talk(services: Services, valkey: redis.Redis) -> None:
    def values(config: str, key: str) -> list[list[Any]]:
        body = predict_body(tasks_of(*TEXTS, key=key), config)
        return [
            [region["value"] for region in item["result"]]
            for item in post(client_of(services), "/predict", body)["results"]
        ]

    expected = {config: values(config, key) for config, key in ((CONFIG, "text"), (OTHER_CONFIG, "body"))}
    assert expected[CONFIG] != expected[OTHER_CONFIG]
    valkey.flushall()
    with ThreadPoolExecutor(8) as threads:
        asked = [
            (config, threads.submit(values, config, key))
            for _ in range(4)
            for config, key in ((CONFIG, "text"), (OTHER_CONFIG, "body"))
        ]
        for config, future in asked:
            assert future.result(TIMEOUT_S) == expected[config]


def test_tasks_not_done_at_the_deadline_are_empty_lists_and_done_the_next_time(
    services: Services, client: FlaskClient
) -> None:
    hurried = dataclasses.replace(services, settings=services.settings.model_copy(update={"predict_deadline_s": 1e-6}))
    tasks = tasks_of(*[f"{text} in time" for text in TEXTS * 10])
    known = tasks_of(TEXTS[0])
    post(client, "/predict", predict_body(known))
    results = post(client_of(hurried), "/predict", predict_body(known + tasks))["results"]
    assert results[0]["model_version"] == services.checkpoint.version, "what is cached is answered"
    assert len(results) == 51
    assert [] in results[1:]
    done = post(client, "/predict", predict_body(tasks))["results"]
    assert all(item["model_version"] for item in done)
    assert all(post(client_of(hurried), "/predict", predict_body(tasks))["results"]), "and in the cache"


def test_interactive_suggestions_leave_alone_what_is_there(client: FlaskClient) -> None:
    task = tasks_of(" . ".join(TEXTS))
    [item] = post(client, "/predict", predict_body(task, context={"result": []}))["results"]
    offered = item["result"]
    assert len(offered) >= 2, "the text must have spans to choose from"
    drawn = {**offered[0], "id": "drawn", "origin": "manual"}
    [item] = post(client, "/predict", predict_body(task, context={"result": [drawn]}))["results"]
    again = item["result"]
    taken = range(drawn["value"]["start"], drawn["value"]["end"])
    assert len(again) == len(offered) - 1
    assert not any(set(taken) & set(range(r["value"]["start"], r["value"]["end"])) for r in again)
    assert not {region["id"] for region in again} & {region["id"] for region in offered}


# --- errors


@pytest.mark.parametrize(
    "path",
    [
        *["/predict", "/setup", "/webhook", "/train", "/job_status", "/validate", "/delete"],
        *["/promote", "/rollback", "/forget"],
    ],
)
@pytest.mark.parametrize("body", [b"", b"{", b"nonsense", b"[1]", b"3", b"null", b'"x"', b"\xff\xfe"], ids=repr)
def test_bodies_that_are_no_objects_are_refused_in_json(client: FlaskClient, path: str, body: bytes) -> None:
    response = client.post(path, data=body, content_type="application/json")
    assert response.status_code == 400
    assert_error(response.get_json())
    assert response.get_json()["error"] == "InvalidRequest"


@pytest.mark.parametrize(
    "config",
    [
        "<View>",
        "no xml",
        "<View/>",
        '<!DOCTYPE x [<!ENTITY a "b">]><View/>',
        '<View><Choices name="c" toName="t"><Choice value="x"/></Choices><Text name="t" value="$t"/></View>',
        '<View><Labels name="l" toName="nothing"><Label value="x"/></Labels><Text name="t" value="$t"/></View>',
        # labels that the checkpoint's tokenizer does not know
        '<View><Labels name="l" toName="t"><Label value="東"/><Label value="京"/></Labels>'
        '<Text name="t" value="$text"/></View>',
    ],
)
def test_a_config_that_cannot_be_labelled_is_refused_with_the_reason(client: FlaskClient, config: str) -> None:
    answer = post(client, "/predict", predict_body(tasks_of("Marie"), config), 400)
    assert_error(answer)
    assert len(answer["detail"]) > 20


def test_setup_refuses_a_config_without_a_usable_control(client: FlaskClient) -> None:
    assert_error(post(client, "/setup", {"project": "1.1", "schema": "<View/>"}, 400), "<Labels>")


def test_a_label_set_that_leaves_no_room_is_the_users_error(client: FlaskClient) -> None:
    labels = "".join(f'<Label value="label number {index}"/>' for index in range(300))
    config = f'<View><Labels name="l" toName="t">{labels}</Labels><Text name="t" value="$text"/></View>'
    assert_error(post(client, "/predict", predict_body(tasks_of("Marie"), config), 400), "label")


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/no/such", 404), ("GET", "/predict", 405)])
def test_paths_and_methods_that_are_not_there(client: FlaskClient, method: str, path: str, status: int) -> None:
    response = client.open(path, method=method)
    assert response.status_code == status
    assert_error(response.get_json(), method, path)


def test_an_error_that_nobody_expected_is_json_without_its_inner_life(
    client: FlaskClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def break_down(*_: object) -> None:
        raise ZeroDivisionError("a secret")

    monkeypatch.setattr(Predictor, "predict", break_down)
    answer = post(client, "/predict", predict_body(tasks_of("Marie")), 500)
    assert_error(answer, "ZeroDivisionError", "log")
    assert "secret" not in json.dumps(answer)
    assert "a secret" in caplog.text, "the log has it"


def test_errors_are_counted_by_endpoint(client: FlaskClient, services: Services) -> None:
    before = count(services, "gner_requests_total", endpoint="setup", status="400")
    post(client, "/setup", {}, 400)
    assert count(services, "gner_requests_total", endpoint="setup", status="400") == before + 1


# --- webhooks


def test_new_tasks_are_predicted_before_anyone_asks(client: FlaskClient, services: Services) -> None:
    tasks = tasks_of(*[f"{text} ahead" for text in TEXTS])
    decoded = count(services, "gner_windows_decoded_total")
    answer = post(client, "/webhook", {"action": "TASKS_CREATED", "project": PROJECT, "tasks": tasks}, 202)
    assert answer["status"] == "queued"
    wait_until(lambda: count(services, "gner_windows_decoded_total") == decoded + len(tasks))
    hits = count(services, "gner_cache_hits_total")
    results = post(client, "/predict", predict_body(tasks))["results"]
    post(client, "/predict", predict_body(tasks))
    assert len(results) == len(tasks)
    assert count(services, "gner_windows_decoded_total") == decoded + len(tasks)
    assert count(services, "gner_cache_hits_total") >= hits + len(tasks)


def test_new_tasks_of_a_project_that_cannot_be_labelled_are_logged_only(
    client: FlaskClient, caplog: pytest.LogCaptureFixture
) -> None:
    project = {**PROJECT, "label_config": "<View/>"}
    post(client, "/webhook", {"action": "TASKS_CREATED", "project": project, "tasks": tasks_of("x")}, 202)
    wait_until(lambda: "not predicted ahead" in caplog.text)


@pytest.mark.parametrize("sample", sorted(path.stem for path in SAMPLES.glob("webhook_*.json")))
def test_webhooks_as_recorded(client: FlaskClient, sample: str) -> None:
    response = client.post("/webhook", json=recorded(sample))
    assert response.status_code in ((409,) if sample.endswith("START_TRAINING") else (200, 202))
    assert response.is_json


# --- annotations become examples


KEY = "1.1795333437"
CREATED_AT = "2026-11-22T07:43:57.5Z"


def recorded(sample: str) -> Any:
    return json.loads((SAMPLES / f"{sample}.json").read_text(encoding="utf-8"))


def project(config: str = CONFIG) -> dict[str, Any]:
    return {**PROJECT, "label_config": config, "created_at": CREATED_AT}


def saved(number: int, action: str = "ANNOTATION_CREATED", label: str = "Person") -> dict[str, Any]:
    """An annotation of a task of its own, both with this number."""
    region = {
        "id": "r",
        "from_name": "label",
        "to_name": "text",
        "type": "labels",
        "value": {"start": 0, "end": 5, "text": "Marie", "labels": [label]},
        "origin": "manual",
    }
    annotation = {"id": number, "task": number, "result": [region], "updated_at": "2026-11-22T08:00:00Z"}
    task = {"id": number, "data": {"text": f"Marie went to Paris , x {number}"}}
    return {"action": action, "project": project(), "annotation": annotation, "task": task}


def save(client: FlaskClient, numbers: Sequence[int]) -> list[Any]:
    return [post(client, "/webhook", saved(number)) for number in numbers]


def event(action: str, **fields: Any) -> dict[str, Any]:
    return {"action": action, "project": project(), **fields}


def test_an_annotation_is_stored_before_it_is_answered_and_once(client: FlaskClient, services: Services) -> None:
    expected = {"action": "ANNOTATION_CREATED", "status": "stored", "changed": 1}
    ignored = count(services, "gner_ignored_annotations_total")
    assert save(client, [7, 7]) == [expected, {**expected, "status": "ignored", "changed": 0}]
    assert count(services, "gner_ignored_annotations_total") == ignored + 1
    [annotation] = services.examples.annotations(KEY)
    assert (annotation.id, annotation.texts[0].passage.text) == (7, "Marie went to Paris , x 7")
    [example] = services.examples.snapshot(KEY).examples
    assert [(span.start, span.end, span.label) for span in example.texts[0].spans] == [(0, 5, "person")]


@pytest.mark.parametrize(("ahead", "status"), [(timedelta(hours=23), 200), (timedelta(hours=25), 400)])
def test_a_save_that_is_dated_far_in_the_future_is_refused(
    client: FlaskClient, services: Services, ahead: timedelta, status: int
) -> None:
    body = saved(8)
    body["annotation"]["updated_at"] = (datetime.now(timezone.utc) + ahead).isoformat()
    answer = post(client, "/webhook", body, status)
    assert bool(services.examples.projects()) == (status == 200)
    if status == 400:
        assert_error(answer, "annotation 8", "1.0 days after this machine's clock")


def test_annotations_as_recorded_come_and_go(client: FlaskClient, services: Services) -> None:
    def ids() -> set[int]:
        return {annotation.id for known in services.examples.projects() for annotation in annotations_of(known.key)}

    annotations_of = services.examples.annotations
    created = recorded("webhook_ANNOTATION_CREATED")
    assert post(client, "/webhook", created)["changed"] == 1
    assert ids() == {created["annotation"]["id"]}
    gone = {**recorded("webhook_ANNOTATIONS_DELETED"), "annotations": [{"id": created["annotation"]["id"]}]}
    assert post(client, "/webhook", gone)["changed"] == 1
    assert post(client, "/webhook", created)["changed"] == 0, "a creation that comes late"
    assert ids() == set()


def test_a_task_goes_with_its_annotations(client: FlaskClient, services: Services) -> None:
    save(client, [1, 2])
    assert post(client, "/webhook", event("TASKS_DELETED", tasks=[{"id": 1}]))["changed"] == 1
    assert [annotation.id for annotation in services.examples.annotations(KEY)] == [2]


def test_a_changed_label_config_tells_what_it_makes_of_the_examples(client: FlaskClient) -> None:
    save(client, [1, 2])
    config = CONFIG.replace('<Label value="Person"/>', '<Label value="Human"/>')
    answer = post(client, "/webhook", {"action": "PROJECT_UPDATED", "project": project(config)})
    assert answer["status"] == "stored"
    assert (answer["examples"]["spans_dropped"], answer["examples"]["removed_labels"]) == (2, ["Person"])


def test_projects_keep_to_themselves(client: FlaskClient, services: Services) -> None:
    save(client, [1])
    other = {**saved(1), "project": {**project(), "id": 2}}
    assert post(client, "/webhook", other)["changed"] == 1
    assert [known.key for known in services.examples.projects()] == [KEY, KEY.replace("1.", "2.", 1)]


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"annotation": {"id": "x", "task": 1, "result": []}}, "annotation.id is 'x'"),
        ({"annotation": {"id": 1, "task": 9, "result": []}}, "annotation 1 is of task 9"),
        ({"annotation": {"id": 1, "task": 1, "result": {}}}, "annotation.result"),
        ({"task": None}, "task is missing"),
        ({"project": {"id": None}}, "project.id"),
        ({"project": {**PROJECT, "created_at": "yesterday"}}, "'yesterday'"),
    ],
)
def test_a_malformed_annotation_is_refused_and_nothing_is_stored(
    client: FlaskClient, services: Services, wrong: dict[str, Any], named: str
) -> None:
    assert_error(post(client, "/webhook", {**saved(1), **wrong}, 400), named)
    assert services.examples.projects() == ()


def test_new_tasks_are_noted_for_their_texts(client: FlaskClient, services: Services) -> None:
    post(client, "/webhook", event("TASKS_CREATED", tasks=tasks_of(*TEXTS[:2])), 202)
    wait_until(lambda: len(services.examples.unlabelled_texts(KEY)) == 2)
    assert {text.passage.text for text in services.examples.unlabelled_texts(KEY)} == set(TEXTS[:2])


# --- training


def test_training_needs_something_to_learn_from(client: FlaskClient) -> None:
    save(client, [1, 2, 3])
    answer = post(client, "/webhook", event("START_TRAINING"), 409)
    assert answer["error"] == "NotEnoughExamples"
    assert_error(answer, KEY, "3 accepted annotations", "at least 4")


def test_start_training_enqueues_one_job_and_job_status_tells_of_it(client: FlaskClient) -> None:
    save(client, [1, 2, 3, 4])
    job = post(client, "/webhook", event("START_TRAINING"), 201)["job"]
    assert post(client, "/webhook", event("START_TRAINING"), 201)["job"] == job
    expected = {"job": job, "project": KEY, "job_status": "queued", "progress": {}}
    assert post(client, "/job_status", {"job": job}) == expected
    assert client.get("/job_status", query_string={"job": job}).get_json() == expected


@pytest.mark.parametrize("job", ["abc", "ä b", "*"])
def test_a_job_that_nobody_knows_is_gone(client: FlaskClient, job: str) -> None:
    assert_error(post(client, "/job_status", {"job": job}, 410), job)
    assert client.get("/job_status", query_string={"job": job}).status_code == 410


def test_get_job_status_without_a_job(client: FlaskClient) -> None:
    assert client.get("/job_status").status_code == 400


def test_a_syncing_backend_trains_on_what_it_may_find_in_label_studio(services: Services, valkey_url: str) -> None:  # noqa: ARG001
    reachable = {"label_studio_url": "http://localhost:8080", "label_studio_api_key": "key"}
    syncing = dataclasses.replace(services, settings=services.settings.model_copy(update=reachable))
    assert post(client_of(syncing), "/webhook", event("START_TRAINING"), 201)["job"]


def test_enough_annotations_are_trained_on_unasked(client: FlaskClient) -> None:
    answers = save(client, range(1, 22))
    assert [("job" in answer) for answer in answers] == [False] * 19 + [True] * 2
    assert answers[19]["job"] == answers[20]["job"]


@pytest.mark.parametrize("extra_params", [{"train_after": 3}, '{"train_after": 3}'])
def test_extra_params_say_how_many_are_enough_and_null_does_not_erase_them(
    client: FlaskClient, extra_params: object
) -> None:
    for given in (extra_params, None, ""):
        post(client, "/setup", {"project": KEY, "schema": CONFIG, "extra_params": given})
    assert ["job" in answer for answer in save(client, [1, 2, 3])] == [False, False, True]


def test_of_the_extra_params_only_what_is_used_is_stored(client: FlaskClient, services: Services) -> None:
    given = {"train_after": 3, "openai_key": "s3cret"}
    post(client, "/setup", {"project": KEY, "schema": CONFIG, "extra_params": given})
    assert services.examples.params(KEY) == {"train_after": 3}


def test_setup_makes_a_project_known(client: FlaskClient, services: Services) -> None:
    post(client, "/setup", {"project": KEY, "schema": CONFIG})
    known = services.examples.project(KEY)
    assert known is not None
    assert [control.control for control in known.controls] == ["label"]


def train_body(numbers: Sequence[int]) -> dict[str, Any]:
    events = [saved(number) for number in numbers]
    annotations = [{**event["task"], "annotations": [event["annotation"]]} for event in events]
    return {"annotations": annotations, "project": KEY, "label_config": CONFIG, "params": {}}


def test_train_brings_its_annotations(client: FlaskClient, services: Services) -> None:
    assert post(client, "/train", train_body(range(1, 6)), 201)["job"]
    assert len(services.examples.annotations(KEY)) == 5
    assert_error(post(client, "/train", {**train_body([1]), "project": None}, 400), "project")


def test_train_refuses_too_few(client: FlaskClient) -> None:
    assert_error(post(client, "/train", train_body([1, 2]), 409), "2 accepted annotations")


# --- while the store is away


@pytest.fixture(scope="module")
def storeless(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FlaskClient]:
    model_dir = tmp_path_factory.mktemp("data")
    with running(model=str(checkpoint), redis_url="redis://127.0.0.1:1", model_dir=model_dir) as services:
        yield client_of(services)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/webhook", saved(1)),
        ("/webhook", event("ANNOTATIONS_DELETED", annotations=[{"id": 1}])),
        ("/webhook", event("TASKS_DELETED", tasks=[{"id": 1}])),
        ("/webhook", event("PROJECT_UPDATED")),
        ("/webhook", event("START_TRAINING")),
        ("/train", train_body([1])),
        ("/job_status", {"job": "x"}),
        ("/forget", {"task": 1}),
    ],
)
def test_without_the_store_nothing_is_acknowledged(storeless: FlaskClient, path: str, body: dict[str, Any]) -> None:
    answer = post(storeless, path, body, 503)
    assert answer["error"] == "StoreUnavailable"
    assert_error(answer, "does not answer")


def test_without_the_store_predictions_go_on(storeless: FlaskClient) -> None:
    setup = post(storeless, "/setup", {"project": KEY, "schema": CONFIG, "extra_params": {"train_after": 3}})
    results = post(storeless, "/predict", predict_body(tasks_of(*TEXTS)))["results"]
    assert {item["model_version"] for item in results} == {setup["model_version"]}
    assert post(storeless, "/webhook", event("TASKS_CREATED", tasks=tasks_of("x")), 202)["status"] == "queued"
    assert storeless.get("/versions").status_code == 200
    assert storeless.get("/health").status_code == 200


# --- versions


@pytest.fixture
def versions(services: Services, client: FlaskClient) -> Iterator[tuple[str, str]]:
    """Two versions of the project, the second trained from the first; they answer otherwise than the base."""
    save(client, [1, 2, 3, 4])
    loaded = checkpoints.load(services.checkpoint, torch.device("cpu"), torch.float32)
    adapters = Adapters(loaded.family)
    base = services.checkpoint.version
    names = ("tiny-p1-first", "tiny-p1-second")
    for number, (name, parent) in enumerate(zip(names, (base, names[0]), strict=True)):
        for parameter in adapters.new(name, AdapterSettings()):
            nn.init.normal_(parameter, std=0.5, generator=torch.Generator().manual_seed(number))
        with services.registry.new_folder(KEY) as folder:
            adapters.save(name, folder)
            info = VersionInfo(name, KEY, base, parent, f"2026-11-22T0{number}:00:00Z", "published", "it is better")
            seen = ((1, 1), (2, 2)) if number == 0 else ((3, 3),)
            services.registry.publish(folder, dataclasses.replace(info, examples=seen), promote=False)
    yield names
    shutil.rmtree(services.settings.model_dir / "versions")
    services.served.refresh()


def served_to(client: FlaskClient, key: str) -> tuple[str, str]:
    """The version that /setup tells, and the one that predictions carry."""
    setup = post(client, "/setup", {"project": key, "schema": CONFIG})["model_version"]
    results = post(client, "/predict", {**predict_body(tasks_of(*TEXTS)), "project": key})["results"]
    [version] = {item["model_version"] for item in results}
    return setup, version


def wait_until_served(client: FlaskClient, version: str) -> None:
    wait_until(lambda: served_to(client, KEY) == (version, version))


def test_a_promoted_version_is_served_to_its_project_alone_and_can_be_rolled_back(
    client: FlaskClient, services: Services, versions: tuple[str, str]
) -> None:
    base, (first, second) = services.checkpoint.version, versions
    assert client.get("/versions").get_json() == {"versions": [base, first, second]}
    assert served_to(client, KEY) == (base, base)
    for version in (first, second):
        assert post(client, "/promote", {"project": KEY, "version": version}) == {"current": version}
        wait_until_served(client, version)
    assert served_to(client, "2.1795333438") == (base, base)
    described = client.get("/versions", query_string={"project": "1"}).get_json()
    assert (described["project"], described["current"], described["served"]) == (KEY, second, second)
    assert [info["version"] for info in described["versions"]] == [first, second]
    assert described["versions"][1]["parent"] == first
    assert described["problems"] == []
    assert post(client, "/rollback", {"project": 1}) == {"current": first}
    assert post(client, "/rollback", {"project": 1}) == {"current": base}
    wait_until_served(client, base)
    assert_error(post(client, "/rollback", {"project": 1}, 409), KEY)


def test_a_damaged_version_is_refused_and_the_one_before_goes_on(
    client: FlaskClient, services: Services, versions: tuple[str, str]
) -> None:
    adapter = services.registry.folder(KEY, versions[0]) / "adapter_model.safetensors"
    adapter.write_bytes(b"nonsense")
    assert_error(post(client, "/promote", {"project": KEY, "version": versions[0]}, 409), versions[0])
    base = services.checkpoint.version
    assert served_to(client, KEY) == (base, base)


@pytest.mark.parametrize(
    ("path", "body", "status", "named"),
    [
        ("/promote", {"project": "1", "version": "nonsense"}, 404, "nonsense"),
        ("/promote", {"project": "8", "version": "nonsense"}, 404, "'8'"),
        ("/promote", {"project": "1"}, 400, "version"),
        ("/promote", {"project": "1", "version": 3}, 400, "version is 3"),
        ("/promote", {"version": "x"}, 400, "project is missing or null"),
        ("/promote", {"project": "../..", "version": "x"}, 404, "'../..'"),
        ("/rollback", {"project": True}, 400, "project is True"),
        ("/rollback", {"project": "1"}, 409, KEY),
        ("/forget", {}, 400, "task or annotation"),
        ("/forget", {"task": 1, "annotation": 1}, 400, "task and annotation"),
        ("/forget", {"task": "x"}, 400, "task is 'x'"),
        ("/forget", {"annotation": 99}, 404, "annotation 99"),
        ("/forget", {"task": 1, "project": "8"}, 404, "'8'"),
    ],
)
def test_what_cannot_be_steered_is_said(
    client: FlaskClient, path: str, body: dict[str, Any], status: int, named: str
) -> None:
    save(client, [1])
    assert_error(post(client, path, body, status), named)


def test_versions_of_an_unknown_project_name_what_there_is(client: FlaskClient) -> None:
    save(client, [1])
    response = client.get("/versions", query_string={"project": "77"})
    assert response.status_code == 404
    assert_error(response.get_json(), "'77'", KEY, "('p')")


# --- forgetting


def test_forgetting_takes_the_example_and_its_predictions_and_tells_who_saw_it(
    client: FlaskClient, services: Services, versions: tuple[str, str]
) -> None:
    task = saved(2)["task"]
    post(client, "/predict", predict_body([task]))
    decoded = count(services, "gner_windows_decoded_total")
    [forgotten] = post(client, "/forget", {"annotation": 2})["forgotten"]
    assert forgotten["project"] == KEY
    assert forgotten["annotation_ids"] == [2]
    assert forgotten["predictions"] >= 1
    assert forgotten["versions"] == list(versions), "the second was trained from the first"
    assert "job" not in forgotten
    assert [annotation.id for annotation in services.examples.annotations(KEY)] == [1, 3, 4]
    post(client, "/predict", predict_body([task]))
    assert count(services, "gner_windows_decoded_total") == decoded + 1, "it was cached no more"
    assert post(client, "/webhook", saved(2))["changed"] == 0, "no late event brings it back"


def test_forgetting_can_ask_for_a_training_without_it(client: FlaskClient, versions: tuple[str, str]) -> None:
    [forgotten] = post(client, "/forget", {"task": "3", "project": 1, "retrain": True})["forgotten"]
    assert forgotten["versions"] == [versions[1]]
    assert post(client, "/job_status", {"job": forgotten["job"]})["job_status"] == "queued"


def test_what_is_stored_no_more_can_still_have_been_learnt(client: FlaskClient, versions: tuple[str, str]) -> None:
    post(client, "/webhook", event("TASKS_DELETED", tasks=[{"id": 3}]))
    [forgotten] = post(client, "/forget", {"task": 3})["forgotten"]
    assert (forgotten["annotation_ids"], forgotten["versions"]) == ([], [versions[1]])


def test_a_deleted_project_leaves_nothing(client: FlaskClient, services: Services, versions: tuple[str, str]) -> None:
    post(client, "/predict", predict_body([saved(1)["task"]]))
    deleted = post(client, "/delete", {"project": KEY})["deleted"]
    assert deleted["annotation_ids"] == [1, 2, 3, 4]
    assert deleted["predictions"] >= 1
    assert set(deleted["versions"]) == {*versions}
    assert services.examples.project(KEY) is None
    assert services.registry.versions(KEY) == ()


# --- basic auth


def test_with_basic_auth_everything_but_the_checks_of_health_asks_for_it(services: Services) -> None:
    guarded = dataclasses.replace(
        services, settings=services.settings.model_copy(update={"basic_auth_user": "ada", "basic_auth_pass": "pä:ss"})
    )
    app = create_app(guarded)
    client = app.test_client()

    def status(path: str, method: str, credentials: str | None) -> int:
        token = base64.b64encode((credentials or "").encode()).decode()
        headers = {} if credentials is None else {"Authorization": f"Basic {token}"}
        return client.open(path, method=method, headers=headers).status_code

    assert status("/health", "GET", None) == 200
    for rule in app.url_map.iter_rules():
        for method in (rule.methods or set()) - {"OPTIONS", "HEAD"}:
            if rule.endpoint in ("static", "backend.status.health", "backend.status.ready"):
                continue
            assert status(rule.rule, method, None) == 401, rule.rule
            assert status(rule.rule, method, "ada:pä:ss") != 401, rule.rule
    for wrong in ("", "ada", "ada:", "ada:wrong", ":pä:ss", "bob:pä:ss"):
        assert status("/versions", "GET", wrong) == 401, wrong
    response = client.get("/versions")
    assert response.headers["WWW-Authenticate"].startswith("Basic")
    assert_error(response.get_json(), "basic auth")
    assert client.get("/versions", headers={"Authorization": "Bearer xyz"}).status_code == 401


# --- too many at once


def test_who_comes_when_too_many_wait_is_told_to_come_again(services: Services, valkey_url: str) -> None:  # noqa: ARG001
    few = dataclasses.replace(services, settings=services.settings.model_copy(update={"threads": 2}))
    app = create_app(few)
    busy, released = threading.Event(), threading.Event()

    def keep_the_model_busy(_: object) -> None:
        busy.set()
        assert released.wait(TIMEOUT_S)

    action = services.batcher.run(keep_the_model_busy)
    assert busy.wait(TIMEOUT_S)
    with ThreadPoolExecutor(1) as threads:
        body = predict_body(tasks_of("Marie Curie", "in Paris"))
        first = threads.submit(lambda: app.test_client().post("/predict", json=body).status_code)
        wait_until(lambda: count(services, "gner_queued_windows") == 2)
        second = app.test_client().post("/predict", json=body)
        assert app.test_client().get("/health").status_code == 200
        released.set()
        assert first.result(TIMEOUT_S) == 200
    action.result(TIMEOUT_S)
    assert second.status_code == 503
    assert second.headers["Retry-After"] == "5"
    assert_error(second.get_json(), "GNER_THREADS")


# --- before the model is ready, and without one


def test_health_and_setup_answer_before_the_model_is_ready(checkpoint: Path, valkey_url: str) -> None:
    services = build(Settings(model=str(checkpoint), redis_url=valkey_url, predict_deadline_s=0.05))
    client = client_of(services)  # nothing has been started: the model loads for ever
    health = client.get("/health")
    assert (health.status_code, health.get_json()["state"]) == (200, "loading")
    setup = post(client, "/setup", {"project": "1.1", "schema": CONFIG})
    assert (setup["model_version"], setup["state"]) == (services.checkpoint.version, "loading")
    assert_error(post(client, "/predict", predict_body(tasks_of("Marie")), 503), "still loading")
    services.predictor.start()
    services.stop()


def test_a_model_that_cannot_be_loaded_is_told_by_health_and_predict(
    checkpoint: Path, tmp_path: Path, valkey_url: str
) -> None:
    broken = Path(shutil.copytree(checkpoint, tmp_path / "broken"))
    (broken / "model.safetensors").write_bytes(b"nonsense")
    services = build(Settings(model=str(broken), redis_url=valkey_url))
    services.start()
    try:
        with pytest.raises(ModelNotReady):
            services.batcher.codec(TIMEOUT_S)
        client = client_of(services)
        health = client.get("/health")
        assert health.status_code == 503
        assert (health.get_json()["status"], health.get_json()["state"]) == ("DOWN", "failed")
        assert str(broken) in health.get_json()["reason"]
        assert_error(post(client, "/predict", predict_body(tasks_of("Marie")), 503), str(broken))
    finally:
        services.stop()


def test_the_sequential_decoder_answers_the_same(checkpoint: Path, services: Services, valkey_url: str) -> None:
    def values(of: Services) -> list[list[tuple[Any, ...]]]:
        results = post(client_of(of), "/predict", predict_body(tasks_of(*TEXTS)))["results"]
        return [
            [(r["value"]["start"], r["value"]["end"], *r["value"]["labels"]) for r in item["result"]]
            for item in results
        ]

    with running(model=str(checkpoint), redis_url=valkey_url, decoding="sequential") as sequential:
        assert values(sequential) == values(services)
        assert count(sequential, "gner_cache_hits_total") == 0, "decoding is part of the key"


def test_without_a_cache(checkpoint: Path) -> None:
    with running(model=str(checkpoint), cache="off", redis_url="redis://127.0.0.1:1") as services:
        client = client_of(services)
        assert client.get("/health").get_json()["cache"] == "off"
        for _ in range(2):
            assert len(post(client, "/predict", predict_body(tasks_of(*TEXTS)))["results"]) == len(TEXTS)
        assert count(services, "gner_windows_decoded_total") == 2 * len(TEXTS)
