"""The example label configs and tasks that are part of the project."""

import json
from typing import Any

from tests.support.paths import ROOT, SAMPLES


def config(name: str) -> str:
    """The label config in a file of the project."""
    return (ROOT / name).read_text(encoding="utf-8")


def samples(name: str) -> list[dict[str, Any]]:
    """The tasks of samples/`name`."""
    tasks: list[dict[str, Any]] = json.loads((SAMPLES / name).read_text(encoding="utf-8"))
    return tasks
