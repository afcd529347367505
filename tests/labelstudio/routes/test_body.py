"""Request bodies: what JSON allows and we do not."""

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.errors import InvalidRequest
from backend.labelstudio.wire.body import MAX_DEPTH, parse_json

JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(JSON, st.booleans())
def test_json_is_read_as_it_was_written(value: Any, ascii_only: bool) -> None:
    assert parse_json(json.dumps(value, ensure_ascii=ascii_only).encode()) == value


@given(st.binary(max_size=60))
def test_no_body_is_an_unexpected_error(body: bytes) -> None:
    with suppress(InvalidRequest):
        json.dumps(parse_json(body))


@pytest.mark.parametrize(
    ("body", "named"),
    [
        (b"", "empty"),
        (b"  \n", "empty"),
        (b'{"a": 1', "not JSON"),
        (b"\xff\xfe\x00", "not JSON"),
        (b"{'a': 1}", "begins with b\"{'a': 1}\""),
        (b"[NaN]", "NaN"),
        (b"[-Infinity]", "-Infinity"),
        (b"[" + b"9" * 5000 + b"]", "too many digits"),
        (b'{"a": 1, "b": 2, "a": 3}', "'a' more than once"),
        (b'{"tasks": [{"id": 1, "id": 2}]}', "'id' more than once"),
    ],
)
def test_a_trap_is_named(body: bytes, named: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_json(body)
    assert named in str(caught.value)
    assert len(str(caught.value)) < 200


def test_half_of_a_surrogate_pair_is_a_sign_like_any_other() -> None:
    assert parse_json(b'["\\ud83dx", "\\ud83d\\ude00"]') == ["\ud83dx", "\U0001f600"]


@pytest.mark.parametrize("depth", [MAX_DEPTH + 1, 900, 100_000])
@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}")])
def test_deep_nesting_is_refused(depth: int, opening: str, closing: str) -> None:
    innermost = "1" if opening != "[" else ""
    with pytest.raises(InvalidRequest, match=f"more than {MAX_DEPTH} levels"):
        parse_json((opening * depth + innermost + closing * depth).encode())


def test_the_deepest_allowed_value_is_read() -> None:
    value: Any = []
    for _ in range(MAX_DEPTH - 1):
        value = [value]
    assert parse_json(json.dumps(value).encode()) == value
