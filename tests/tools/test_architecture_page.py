"""docs/architecture.md tells of the code that there is."""

import re
from pathlib import Path

from backend.learning import example_store

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
BACKEND = ROOT / "backend"


def section(title: str) -> str:
    """The text under a heading, up to the next one."""
    return PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]


def test_every_file_and_folder_of_the_backend_is_shown() -> None:
    tree = section("Folders").split("```")[1]
    shown = {name.removesuffix(".py") for name in re.findall(r"^  ([\w-]+(?:\.py)?)", tree, re.MULTILINE)}
    there = {path.stem for path in BACKEND.iterdir() if path.is_dir() or path.suffix == ".py"}
    assert shown == there - {"__init__", "__pycache__"}


def test_modules_that_are_named_exist() -> None:
    named = set(re.findall(r"`((?:ner|engine|serving|labelstudio|learning|evaluation|pretraining)/\w+)`", PAGE))
    assert len(named) > 10
    assert [name for name in named if not (BACKEND / f"{name}.py").is_file() and not (BACKEND / name).is_dir()] == []


def test_every_key_of_a_project_is_in_the_table() -> None:
    documented = set(re.findall(r"`gner:project:<project>:(\w+)`", section("Redis keys")))
    assert documented == set(example_store._PARTS)


def test_every_endpoint_is_in_the_table() -> None:
    decorator = re.compile(r"@routes\.(?:get|post|route)\(\"(/\w*)\"")
    files = [*(BACKEND / "labelstudio").glob("routes.py"), *(BACKEND / "labelstudio").glob("routes/*.py")]
    served = {path for file in files for path in decorator.findall(file.read_text(encoding="utf-8"))}
    rows = "".join(line.split("|")[1] for line in section("HTTP endpoints").splitlines() if line.startswith("| `"))
    assert served == set(re.findall(r"(/\w*)`", rows))
