"""The bodies of /promote, /rollback and /forget, which people write by hand."""

from backend.errors import InvalidRequest
from backend.labelstudio.wire.values import as_integer, as_name, as_object
from backend.management import Wanted


def parse_project(body: object) -> str:
    """The `project` of a body: an id or a key. Raises InvalidRequest."""
    value = as_object(body, "the body").get("project")
    return as_name(str(value) if isinstance(value, int) and not isinstance(value, bool) else value, "project")


def parse_version(body: object) -> str:
    """The `version` of a body. Raises InvalidRequest."""
    return as_name(as_object(body, "the body").get("version"), "version")


def parse_wanted(body: object) -> Wanted:
    """`task` or `annotation` of a body, one of them. Raises InvalidRequest."""
    fields = as_object(body, "the body")
    given = {name: fields[name] for name in ("task", "annotation") if fields.get(name) is not None}
    if len(given) != 1:
        raise InvalidRequest(f"{' and '.join(given) or 'nothing'} is to be forgotten; give task or annotation, an id")
    [(name, value)] = given.items()
    wanted = as_integer(value, name)
    return Wanted(wanted, None) if name == "task" else Wanted(None, wanted)
