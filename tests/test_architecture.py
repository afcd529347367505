"""Imports follow one direction, and importing a module has no side effects."""

import ast
import importlib
import inspect
import json
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.support.paths import ROOT

BACKEND = ROOT / "backend"

# What each part may import of the others:
#   cli -> web -> app -> labelstudio -> management -> serving -> learning -> engine -> ner   (the service)
#   cli -> worker -> labelstudio -> learning                                                (its training process)
#   pretraining -> evaluation -> learning -> engine -> ner                                  (how a checkpoint is made)
LEAVES = {"settings", "errors", "metrics"}
MAY_IMPORT: dict[str, set[str] | None] = {
    "ner": {"errors"},
    "engine": LEAVES | {"ner"},
    "store": LEAVES,
    "learning": LEAVES | {"store", "processes", "engine", "ner"},
    "evaluation": LEAVES | {"learning", "engine", "ner"},
    "pretraining": LEAVES | {"evaluation", "learning", "engine", "ner"},
    "serving": LEAVES | {"store", "learning", "engine", "ner"},
    "management": LEAVES | {"serving", "learning"},
    "labelstudio": LEAVES | {"store", "management", "serving", "learning", "engine", "ner"},
    "app": LEAVES | {"store", "management", "labelstudio", "serving", "learning", "engine", "ner"},
    "web": LEAVES | {"app", "processes", "store"},
    "worker": LEAVES | {"store", "processes", "labelstudio", "learning", "engine", "ner"},
    "processes": set(),
    "cli": None,  # everything
    "settings": {"errors"},
    "errors": set(),
    "metrics": set(),
}
# The modules of `learning` that train a model.
TRAINING_MODULES = {"finetune", "targets"}
MODULES = sorted(path for path in BACKEND.rglob("*.py"))


def name_of(path: Path) -> str:
    """The full name of the module in a file."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def part_of(module: str) -> str:
    """backend.ner.segment -> ner."""
    return [*module.split("."), ""][1]


def is_ours(module: str) -> bool:
    """Whether a module belongs to this project."""
    return module.split(".")[0] == "backend"


def ids(paths: list[Path]) -> list[str]:
    return [name_of(path) for path in paths]


class _Imports(ast.NodeVisitor):
    """Collects the imports of a module: all of them, and those that run when it is imported."""

    def __init__(self, package: str) -> None:
        self.everywhere: set[str] = set()
        self.at_import: set[str] = set()
        self._package = package.split(".")
        self._depth = 0  # in functions and in `if TYPE_CHECKING:`

    def _add(self, module: str) -> None:
        self.everywhere.add(module)
        if not self._depth:
            self.at_import.add(module)

    def _visit_deferred(self, nodes: list[ast.stmt]) -> None:
        self._depth += 1
        for node in nodes:
            self.visit(node)
        self._depth -= 1

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self._visit_deferred(node.body)

    def visit_If(self, node: ast.If) -> None:
        if ast.unparse(node.test).endswith("TYPE_CHECKING"):
            self._visit_deferred(node.body)
            for other in node.orelse:
                self.visit(other)
        else:
            self.generic_visit(node)

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self._add(alias.name)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        base = node.module or ""
        if node.level:
            base = ".".join([*self._package[: len(self._package) - node.level + 1], base]).rstrip(".")
        for alias in node.names:
            full = f"{base}.{alias.name}"
            as_path = ROOT.joinpath(*full.split("."))
            is_module = is_ours(base) and (as_path.with_suffix(".py").is_file() or as_path.is_dir())
            self._add(full if is_module else base)


@cache
def tree_of(path: Path) -> ast.Module:
    """The syntax tree of a file."""
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def _visited(path: Path) -> _Imports:
    package = name_of(path) if path.stem == "__init__" else name_of(path).rpartition(".")[0]
    visitor = _Imports(package)
    visitor.visit(tree_of(path))
    return visitor


def imports(path: Path) -> set[str]:
    """Full names of all modules that a file imports: in functions and for type checking too."""
    return _visited(path).everywhere


def imports_at_import(path: Path) -> set[str]:
    """Of these, the modules that are loaded as soon as the file itself is imported."""
    return _visited(path).at_import


def test_every_part_has_its_place_in_the_graph() -> None:
    assert {part_of(name_of(path)) for path in MODULES} - {""} <= set(MAY_IMPORT)


@pytest.mark.parametrize("path", MODULES, ids=ids(MODULES))
def test_imports_go_one_way(path: Path) -> None:
    own = part_of(name_of(path))
    allowed = MAY_IMPORT.get(own, set())
    used = {part_of(module) for module in imports(path) if is_ours(module)} - {own, ""}
    assert allowed is None or used <= allowed, f"{name_of(path)} may not import {sorted(used - allowed)}"


def test_the_parts_form_no_cycle() -> None:
    graph = {part: allowed for part, allowed in MAY_IMPORT.items() if allowed is not None}
    assert cycle_in(graph) is None


def test_no_module_is_part_of_an_import_cycle() -> None:
    known = set(map(name_of, MODULES))
    graph = {name_of(path): imports_at_import(path) & known - {name_of(path)} for path in MODULES}
    assert cycle_in(graph) is None


@pytest.mark.parametrize(
    ("graph", "expected"),
    [
        ({"a": {"b"}, "b": {"c"}, "c": set()}, None),
        ({"a": {"b", "c"}, "b": {"c"}, "c": set()}, None),
        ({"a": {"b"}, "b": {"c"}, "c": {"b"}}, ["b", "c", "b"]),
        ({"a": {"a"}}, ["a", "a"]),
    ],
)
def test_a_cycle_is_found(graph: dict[str, set[str]], expected: list[str] | None) -> None:
    assert cycle_in(graph) == expected


def cycle_in(graph: dict[str, set[str]]) -> list[str] | None:
    """Nodes along some cycle, the first one repeated at the end; None without one."""
    finished: set[str] = set()

    def search(node: str, path: list[str]) -> list[str] | None:
        if node in path:
            return [*path[path.index(node) :], node]
        if node in finished:
            return None
        for following in sorted(graph.get(node, ())):
            if found := search(following, [*path, node]):
                return found
        finished.add(node)
        return None

    return next(filter(None, (search(node, []) for node in sorted(graph))), None)


def test_nobody_imports_a_module_that_does_not_exist() -> None:
    known = set(map(name_of, MODULES))
    for path in MODULES:
        assert set(filter(is_ours, imports(path))) <= known, name_of(path)


@pytest.mark.parametrize("path", MODULES, ids=ids(MODULES))
def test_torch_is_for_the_engine_and_for_training(path: Path) -> None:
    libraries = {module.split(".")[0] for module in imports(path)}
    if libraries & {"torch", "transformers", "safetensors", "peft", "accelerate"}:
        part = part_of(name_of(path))
        is_training = part == "learning" and path.stem in TRAINING_MODULES
        allowed = part in {"engine", "evaluation", "pretraining"} or is_training
        assert allowed, f"{name_of(path)} imports {sorted(libraries)}"


@pytest.mark.parametrize(
    ("part", "forbidden"),
    [
        ("ner", {"torch", "transformers", "numpy", "flask", "redis", "rq", "label_studio_sdk", "pydantic"}),
        ("engine", {"flask", "redis", "rq", "label_studio_sdk", "label_studio_ml"}),
        ("serving", {"torch", "flask", "rq", "label_studio_sdk", "label_studio_ml"}),
        ("learning", {"flask", "label_studio_ml"}),
        ("labelstudio", {"torch", "redis", "rq", "transformers"}),
    ],
)
def test_each_part_keeps_to_its_libraries(part: str, forbidden: set[str]) -> None:
    for path in MODULES:
        if part_of(name_of(path)) == part:
            assert not {module.split(".")[0] for module in imports(path)} & forbidden, name_of(path)


def test_the_environment_is_read_by_settings_alone() -> None:
    for path in MODULES:
        names = {
            node.attr
            for node in ast.walk(tree_of(path))
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "os"
        }
        # those that start child processes pass the environment on to them, with the lifeline
        allowed = part_of(name_of(path)) in {"settings", "cli", "processes", "worker"}
        assert allowed or not names & {"environ", "getenv"}, name_of(path)


# --- what is loaded when a process starts


# Imports modules step by step, and writes which modules are loaded after each step to a file.
PROGRAM = """
import contextlib, importlib, io, json, logging, os, sys, threading
steps, report = json.loads(sys.argv[1]), sys.argv[2]
loaded = {}
for step, names in steps.items():
    for name in names:
        if name == "--help":
            from backend.cli import main
            with contextlib.redirect_stdout(io.StringIO()) as help, contextlib.suppress(SystemExit):
                main(["--help"])
            assert "serve" in help.getvalue(), help.getvalue()
        else:
            importlib.import_module(name)
    loaded[step] = sorted(sys.modules)
assert threading.active_count() == 1, threading.enumerate()
assert not logging.getLogger().handlers, logging.getLogger().handlers
assert os.listdir(".") == [], os.listdir(".")
with open(report, "w", encoding="utf-8") as file:
    json.dump(loaded, file)
"""


def loaded_after(steps: dict[str, list[str]], tmp_path: Path) -> dict[str, set[str]]:
    """The modules that a new interpreter has loaded after each step, earlier steps included.

    The interpreter must print nothing, write no file, and leave no thread and no handler at the root logger.
    """
    (tmp_path / "empty").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(steps), str(tmp_path / "loaded.json")],
        cwd=tmp_path / "empty",
        env={"PYTHONPATH": str(ROOT), "PATH": "", "HOME": str(tmp_path / "empty"), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    loaded = json.loads((tmp_path / "loaded.json").read_text(encoding="utf-8"))
    return {step: set(modules) for step, modules in loaded.items()}


def below(loaded: set[str], *packages: str) -> set[str]:
    """Those of the loaded modules that are one of these or lie in one of these."""
    return {module for module in loaded if any(module == p or module.startswith(f"{p}.") for p in packages)}


@pytest.mark.slow  # a new interpreter imports every library
def test_importing_has_no_effect_and_the_worker_loads_nothing_that_serves(tmp_path: Path) -> None:
    """One interpreter for both: a new one takes seconds to import torch."""
    steps = {
        "help": ["--help"],
        "worker": ["backend.worker"],
        "training": ["backend.learning.finetune", "backend.engine.adapters"],
        "everything": ids(MODULES),
    }
    loaded = loaded_after(steps, tmp_path)
    assert "torch" not in loaded["help"], "the command line answers at once"
    assert "backend.learning.jobs" in loaded["worker"]
    serving = ("backend.serving", "backend.app", "backend.web", "backend.labelstudio")
    assert not below(loaded["worker"], *serving, "torch", "peft", "flask", "label_studio_sdk")
    assert not below(loaded["worker"], "backend.learning.finetune", "backend.evaluation", "backend.pretraining")
    assert not below(loaded["training"], *serving, "backend.pretraining")
    assert set(ids(MODULES)) <= loaded["everything"]


@pytest.mark.slow  # a new interpreter imports every library
def test_what_serves_loads_nothing_that_trains_or_evaluates(tmp_path: Path) -> None:
    """One interpreter for all three entry points: what is loaded after the last was not loaded before either."""
    entry_points = ["backend.labelstudio.routes", "backend.app", "backend.web"]
    loaded = loaded_after({module: [module] for module in entry_points}, tmp_path)
    for module in entry_points:
        assert module in loaded[module]
        assert not below(loaded[module], "peft", "backend.learning.finetune", "backend.worker")
        assert not below(loaded[module], "backend.evaluation", "backend.pretraining")


# --- what a store may still hold


def test_a_job_that_an_older_release_queued_still_runs() -> None:
    """Such a job names a function and its arguments; tests/test_worker.py runs one with a real worker."""
    queued = '["backend.worker.train", null, ["5.1795333437"], {}]'  # what RQ's JSON serializer stores
    name, instance, arguments, keywords = json.loads(queued)
    module, _, attribute = name.rpartition(".")
    function: Callable[..., Any] = getattr(importlib.import_module(module), attribute)
    assert instance is None
    assert inspect.signature(function).bind(*arguments, **keywords).args == ("5.1795333437",)
