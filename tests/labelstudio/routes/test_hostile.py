"""Whatever stands in a body, the answer is JSON: a result, or an error of the 400s that names what is wrong."""

import copy
import dataclasses
import json
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]

from backend.app import Services
from tests.labelstudio.routes.test_openapi import DESCRIBED
from tests.support.running import CONFIG, client_of, running, save_checkpoint

SAMPLES = Path(__file__).parent.parent / "samples"
REGION = {
    "id": "r1",
    "from_name": "label",
    "to_name": "text",
    "type": "labels",
    "value": {"start": 0, "end": 5, "text": "Marie", "labels": ["Person"]},
}
# A valid body for each endpoint; webhooks are the recorded ones.
BODIES: list[tuple[str, dict[str, Any]]] = [
    (
        "/predict",
        {
            "tasks": [{"id": 1, "data": {"text": "Marie in Paris"}}, {"id": 2, "data": {"text": "x"}}],
            "project": "1.1795333437",
            "label_config": CONFIG,
            "params": {"context": {"result": [REGION]}},
        },
    ),
    ("/setup", {"project": "1.1795333437", "schema": CONFIG, "extra_params": {"train_after": 5}}),
    ("/validate", {"config": CONFIG}),
    ("/job_status", {"job": "gner:1.1795333437"}),
    ("/promote", {"project": 1, "version": "x"}),
    ("/rollback", {"project": 1}),
    ("/forget", {"task": 7, "project": 1}),
    ("/duplicate_model", {"project_src": "1.1", "project_dst": "2.1"}),
    ("/delete", {"project": "77.1795333437"}),
    *(("/webhook", json.loads(path.read_text(encoding="utf-8"))) for path in sorted(SAMPLES.glob("webhook_*.json"))),
]
HOSTILE: st.SearchStrategy[Any] = st.sampled_from([
    None, True, -1, 0, 1.5, 2**63, 10**300, 1e308, "", "x", "\ud800", "\0", "9" * 5000, "../../etc/passwd", "1.1\n2",
    "$text", "<View/>", [], [[]], [None], [{}], {}, {"id": []}, {"id": {}}, {"": None}, [["a"], {"b": []}],
    {"result": [{"from_name": [], "value": {"labels": [{}]}}]}, "2026-02-30T00:00:00Z", "Z" * 100_000,
])  # fmt: skip


def test_every_endpoint_that_takes_a_body_is_tried() -> None:
    with_body = {path for path, methods in DESCRIBED["paths"].items() if "requestBody" in methods.get("post", {})}
    assert with_body - {path for path, _ in BODIES} == {"/train", "/webhook/{secret}"}


def paths_of(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to each value in a body, the body itself included."""
    yield path
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield from paths_of(child, (*path, key))


def replaced(body: Any, path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return value
    changed = copy.deepcopy(body)
    inner = changed
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return changed


@pytest.fixture(scope="module")
def services(_valkey_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    folder = tmp_path_factory.mktemp("hostile")
    checkpoint = save_checkpoint(folder / "tiny")
    with running(model=str(checkpoint), redis_url=_valkey_url, model_dir=folder / "data") as services:
        yield services


@pytest.fixture(scope="module")
def client(services: Services) -> FlaskClient:
    return client_of(services)


@lru_cache
def validator_of(path: str, status: int) -> Draft202012Validator:
    """Checks an answer to a POST against the description of the endpoints."""
    responses = DESCRIBED["paths"][path]["post"]["responses"]
    assert str(status) in responses or 400 <= status < 500, f"{path} is not described with {status}"
    if status >= 400:
        schema: Any = {"$ref": "#/components/schemas/Error"}
    else:
        schema = responses[str(status)]["content"]["application/json"]["schema"]
    return Draft202012Validator({**schema, "components": DESCRIBED["components"]})


def check(client: FlaskClient, path: str, body: Any) -> None:
    answer = client.post(path, data=json.dumps(body), content_type="application/json")
    said = answer.get_data(as_text=True)
    assert answer.status_code < 500, (path, said)
    assert answer.is_json
    assert "Traceback" not in said
    validator_of(path, answer.status_code).validate(answer.get_json())
    if answer.status_code >= 400:
        assert len(said) < 2000, (path, said[:300])


@pytest.mark.parametrize(("path", "body"), BODIES, ids=lambda value: value if isinstance(value, str) else "")
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_one_hostile_value_anywhere(client: FlaskClient, path: str, body: dict[str, Any], data: st.DataObject) -> None:
    at = data.draw(st.sampled_from(list(paths_of(body))))
    check(client, path, replaced(body, at, data.draw(HOSTILE)))


@pytest.mark.slow  # the same with many more cases: every place with every value
@pytest.mark.parametrize(("path", "body"), BODIES, ids=lambda value: value if isinstance(value, str) else "")
@settings(max_examples=1500, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_many_hostile_values(client: FlaskClient, path: str, body: dict[str, Any], data: st.DataObject) -> None:
    places = st.sampled_from(list(paths_of(body)))
    for at in data.draw(st.lists(places, min_size=1, max_size=2, unique=True)):
        try:
            body = replaced(body, at, data.draw(HOSTILE))
        except (KeyError, IndexError, TypeError):  # the place went with the one before
            continue
    check(client, path, body)


def test_a_body_that_is_too_large_is_refused_before_it_is_read(services: Services) -> None:
    limited = dataclasses.replace(services, settings=services.settings.model_copy(update={"max_body_mb": 0.001}))
    client = client_of(limited)
    answer = client.post("/validate", data=b"[" * 1001, content_type="application/json")
    assert answer.status_code == 413
    assert "1001 bytes; at most 1000" in answer.get_json()["detail"]
    assert "GNER_MAX_BODY_MB" in answer.get_json()["detail"]
    assert client.post("/validate", json={"config": CONFIG}).status_code == 200


def test_metrics_name_their_character_set_once(client: FlaskClient) -> None:
    assert client.get("/metrics").headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
