"""Imports go one way, and importing does nothing."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BACKEND = ROOT / "backend"

# What each part may import of the others: cli -> app | worker -> labelstudio -> serving | learning -> engine -> ner,
# and beside the service pretraining -> evaluation -> learning -> engine -> ner.
LEAVES = {"settings", "errors", "metrics"}
MAY_IMPORT = {
    "ner": {"errors"},
    "engine": LEAVES | {"ner"},
    "store": LEAVES,
    "learning": LEAVES | {"store", "engine", "ner"},
    "evaluation": LEAVES | {"learning", "engine", "ner"},
    "pretraining": LEAVES | {"evaluation", "learning", "engine", "ner"},
    "serving": LEAVES | {"store", "learning", "engine", "ner"},
    "management": LEAVES | {"serving", "learning"},
    "labelstudio": LEAVES | {"store", "management", "serving", "learning", "engine", "ner"},
    "app": LEAVES | {"store", "management", "labelstudio", "serving", "learning", "engine", "ner"},
    "web": LEAVES | {"app"},
    "worker": LEAVES | {"store", "labelstudio", "learning", "engine", "ner"},
    "processes": set(),
    "cli": None,  # everything
    "settings": {"errors"},
    "errors": set(),
    "metrics": set(),
}
# Of `learning`, the modules that train a model.
TRAINING = {"finetune", "targets"}
MODULES = sorted(path for path in BACKEND.rglob("*.py"))


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def part_of(module: str) -> str:
    """backend.ner.segment -> ner."""
    return [*module.split("."), ""][1]


@cache
def imports(path: Path) -> frozenset[str]:
    """Full names of all modules that a file imports, inside functions too, but not for type checking alone."""
    found: set[str] = set()
    package = name_of(path) if path.stem == "__init__" else name_of(path).rpartition(".")[0]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join([*package.split(".")[: len(package.split(".")) - node.level + 1], base]).rstrip(".")
            for alias in node.names:
                full = f"{base}.{alias.name}"
                as_path = ROOT.joinpath(*full.split("."))
                is_module = as_path.with_suffix(".py").is_file() or as_path.is_dir()
                found.add(full if base.startswith("backend") and is_module else base)
    return frozenset(found)


def ids(paths: list[Path]) -> list[str]:
    return [name_of(path) for path in paths]


def test_every_part_has_its_place_in_the_graph() -> None:
    assert {part_of(name_of(path)) for path in MODULES} - {""} <= set(MAY_IMPORT)


@pytest.mark.parametrize("path", MODULES, ids=ids(MODULES))
def test_imports_go_one_way(path: Path) -> None:
    own = part_of(name_of(path))
    allowed = MAY_IMPORT.get(own, set())
    used = {part_of(module) for module in imports(path) if module.split(".")[0] == "backend"} - {own, ""}
    assert allowed is None or used <= allowed, f"{name_of(path)} may not import {sorted(used - allowed)}"


def test_nobody_imports_a_module_that_is_not_there() -> None:
    known = set(map(name_of, MODULES))
    for path in MODULES:
        ours = {module for module in imports(path) if module.split(".")[0] == "backend"}
        assert ours <= known, name_of(path)


@pytest.mark.parametrize("path", MODULES, ids=ids(MODULES))
def test_torch_is_for_the_engine_and_for_training(path: Path) -> None:
    libraries = {module.split(".")[0] for module in imports(path)}
    if libraries & {"torch", "transformers", "safetensors", "peft", "accelerate"}:
        part = part_of(name_of(path))
        allowed = part in {"engine", "evaluation", "pretraining"} or (part == "learning" and path.stem in TRAINING)
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
    allowed = {"backend.settings", "backend.cli"}  # cli hands the environment on to its child
    for path in MODULES:
        names = {
            node.attr
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "os"
        }
        assert name_of(path) in allowed or not names & {"environ", "getenv"}, name_of(path)


def test_importing_everything_does_nothing_visible(tmp_path: Path) -> None:
    """No output, no file, no thread, no child process, no handler of the root logger."""
    names = [name_of(path) for path in MODULES]
    program = (
        "import importlib, logging, os, sys, threading\n"
        f"for name in {names!r}:\n"
        "    importlib.import_module(name)\n"
        "assert threading.active_count() == 1, threading.enumerate()\n"
        "assert not logging.getLogger().handlers, logging.getLogger().handlers\n"
        "assert os.listdir('.') == [], os.listdir('.')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": "", "HOME": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=180,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def loaded_after(program: str) -> set[str]:
    """All modules that a fresh interpreter has loaded after a program."""
    program += "\nimport sys; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, check=True, timeout=120, capture_output=True, text=True
    )
    return set(done.stdout.split())


def test_the_worker_loads_nothing_that_serves_and_torch_only_to_train() -> None:
    loaded = loaded_after("import backend.worker")
    assert "backend.learning.jobs" in loaded
    serving = {module for module in loaded if module.split(".")[:2] in (["backend", "serving"], ["backend", "app"])}
    assert not serving
    assert not {"torch", "peft", "flask", "label_studio_sdk", "backend.learning.finetune"} & loaded
    training = loaded_after("import backend.worker, backend.learning.finetune, backend.engine.adapters")
    assert not {module for module in training if module.startswith("backend.serving")}


@pytest.mark.parametrize("module", ["backend.web", "backend.app", "backend.labelstudio.routes"])
def test_what_serves_loads_nothing_that_trains(module: str) -> None:
    loaded = loaded_after(f"import {module}")
    assert module in loaded
    assert not {"peft", "backend.learning.finetune", "backend.worker"} & loaded


def test_the_command_line_answers_without_loading_torch() -> None:
    program = (
        "import sys; from backend.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, timeout=60, stdout=subprocess.DEVNULL)
