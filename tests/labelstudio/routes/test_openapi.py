"""The description of the endpoints is complete, and true as far as it can be checked without calling them."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]

from backend.app import build, create_app
from backend.settings import Settings
from tests.support import paths

DESCRIBED: dict[str, Any] = json.loads((paths.ROOT / "backend/labelstudio/openapi.json").read_text(encoding="utf-8"))


def operations() -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in DESCRIBED["paths"].items():
        for method, operation in methods.items():
            yield path, method, operation


def test_every_endpoint_is_described_and_nothing_else(valkey_url: str) -> None:
    app = create_app(build(Settings(redis_url=valkey_url)))
    there = {
        (re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule), method.lower())
        for rule in app.url_map.iter_rules()
        if rule.endpoint != "static"
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    }
    assert {(path, method) for path, method, _ in operations()} == there
    answer = app.test_client().get("/openapi.json").get_json()
    assert answer["paths"] == DESCRIBED["paths"]
    assert re.fullmatch(r"[0-9.]+.*", answer["info"]["version"])


def test_operations_have_names_of_their_own_and_say_what_they_do() -> None:
    names = [operation["operationId"] for _, _, operation in operations()]
    assert len({*names}) == len(names)
    assert all(operation["summary"] for _, _, operation in operations())


def test_references_lead_somewhere() -> None:
    for name in re.findall(r'"#/components/([^"]+)"', json.dumps(DESCRIBED)):
        kind, _, of_kind = name.partition("/")
        assert of_kind in DESCRIBED["components"][kind]


@pytest.mark.parametrize("name", sorted(DESCRIBED["components"]["schemas"]))
def test_schemas_are_valid(name: str) -> None:
    Draft202012Validator.check_schema(DESCRIBED["components"]["schemas"][name])
