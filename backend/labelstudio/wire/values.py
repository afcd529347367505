"""Checks of single JSON values: each returns it, or raises InvalidRequest saying what was expected."""

from typing import Any

from backend.errors import InvalidRequest

_SHOWN_CHARS = 80
_MAX_NAME_CHARS = 200
_MAX_ID_DIGITS = 20  # a 64-bit key has 19
_MAX_ID = 10**_MAX_ID_DIGITS


def as_object(value: object, name: str) -> dict[str, Any]:
    """A JSON object."""
    if not isinstance(value, dict):
        raise InvalidRequest(f"{name} is {shown(value)}; expected an object")
    return value


def as_list(value: object, name: str) -> list[Any]:
    """A JSON list."""
    if not isinstance(value, list):
        raise InvalidRequest(f"{name} is {shown(value)}; expected a list")
    return value


def as_string(value: object, name: str) -> str:
    """A string that is not empty."""
    if not isinstance(value, str) or not value:
        raise InvalidRequest(f"{name} is {shown(value)}; expected a string that is not empty")
    return value


def as_name(value: object, name: str) -> str:
    """A string that names something, not a long one."""
    text = as_string(value, name)
    if len(text) > _MAX_NAME_CHARS:
        raise InvalidRequest(f"{name} is {shown(text)}; expected at most {_MAX_NAME_CHARS} characters")
    return text


def as_optional_string(value: object, name: str) -> str:
    """A string; null is an empty one."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise InvalidRequest(f"{name} is {shown(value)}; expected a string or null")
    return value


def as_integer(value: object, name: str) -> int:
    """A whole number, or a string of digits."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < _MAX_ID:
        return value
    if isinstance(value, str) and _is_id(value):
        return int(value)
    raise InvalidRequest(f"{name} is {shown(value)}; expected an integer")


def _is_id(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= _MAX_ID_DIGITS


def shown(value: object) -> str:
    """A value for an error message: of lists and objects only their kind, since they may hold secrets or texts."""
    if value is None:
        return "missing or null"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if isinstance(value, dict):
        return f"an object with {len(value)} keys"
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARS else text[:_SHOWN_CHARS] + "..."
