"""The bytes of a request body -> JSON values, without the traps of JSON.

Everything refused here would fail later, in a place where only a stack trace is left, or would be read differently by
whoever wrote it: values nested too deeply, `NaN`, huge integers, an object with a key twice. Half of a surrogate pair
is not refused: one odd sign in one text must not fail a thousand tasks, and it is labelled like any other.
"""

import json
import re
from typing import Any

import numpy as np

from backend.errors import InvalidRequest

MAX_DEPTH = 64  # Label Studio's deepest, a webhook's regions, has eight levels

_SHOWN_BYTES = 40
_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_TOO_MANY_DIGITS = re.compile(rb"[0-9]{4300}")  # Python reads no longer integers


def parse_json(body: bytes) -> Any:
    """Raises InvalidRequest, which says what is wrong and where."""
    if not body.strip():
        raise InvalidRequest("the body is empty; expected JSON")
    _check_depth(body)
    try:
        return json.loads(body, object_pairs_hook=_object, parse_constant=_refuse_constant)
    except ValueError as error:  # UnicodeDecodeError, too
        reason = "a number has too many digits" if _TOO_MANY_DIGITS.search(body) else str(error)
        raise InvalidRequest(f"the body is not JSON ({reason}); it begins with {body[:_SHOWN_BYTES]!r}") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise InvalidRequest(f"an object of the body has the key {twice[:_SHOWN_BYTES]!r} more than once")
    return found


def _refuse_constant(name: str) -> Any:
    raise InvalidRequest(f"the body holds {name}, which JSON does not have; expected a number or null")


def _check_depth(body: bytes) -> None:
    """Before the parser sees it: CPython 3.11 miscounts its stack after a RecursionError of the parser."""
    signs = np.frombuffer(_STRING.sub(b"", body), dtype=np.uint8) | 0x20  # `[` becomes `{`, and `]` becomes `}`
    steps = (signs == ord("{")).astype(np.int8) - (signs == ord("}"))
    if len(steps) and steps.cumsum(dtype=np.int64).max() > MAX_DEPTH:
        raise InvalidRequest(f"the body is nested more than {MAX_DEPTH} levels deep")
