"""The bodies of /promote, /rollback and /forget, which people write by hand."""

from backend.errors import InvalidRequest
from backend.labelstudio.wire.values import as_object
from backend.management import Wanted


def parse_project(body: object) -> str:
    """The `project` of a body: an id or a key. Raises InvalidRequest."""
    value = as_object(body, "the body").get("project")
    if isinstance(value, str | int) and not isinstance(value, bool) and str(value):
        return str(value)
    raise InvalidRequest(f"project is {value!r:.80}; expected an id or a key")


def parse_version(body: object) -> str:
    """The `version` of a body. Raises InvalidRequest."""
    value = as_object(body, "the body").get("version")
    if isinstance(value, str) and value:
        return value
    raise InvalidRequest(f"version is {value!r:.80}; expected a version's name")


def parse_wanted(body: object) -> Wanted:
    """`task` or `annotation` of a body, one of them. Raises InvalidRequest."""
    fields = as_object(body, "the body")
    given = {name: fields[name] for name in ("task", "annotation") if fields.get(name) is not None}
    if len(given) != 1:
        raise InvalidRequest(f"{' and '.join(given) or 'nothing'} is to be forgotten; give task or annotation, an id")
    [(name, value)] = given.items()
    if isinstance(value, str) and value.isascii() and value.isdigit():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise InvalidRequest(f"{name} is {value!r:.80}; expected an id")
    return Wanted(value, None) if name == "task" else Wanted(None, value)
