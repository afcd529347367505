"""Figures about the code, and the limits that this project keeps.

    python tools/house.py                 the figures
    python tools/house.py --json          the same as JSON
    python tools/house.py --check         fails and names each broken limit
    python tools/house.py ROOT            another checkout

Lines of a function run from `def` to its last line; a function inside another counts on its own as well.
"""

import argparse
import ast
import json
import math
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

AREAS = ("backend", "tests", "tools")
CODE = "backend"  # docstrings, excepts, imports, median and p90 are about this area; the other limits about all

MAX_FUNCTION_LINES = 60
MAX_MEDIAN_LINES = 10
MAX_P90_LINES = 25
MAX_FOLDER_LINES = 3_000
MIN_DOCUMENTED = 0.92

Def = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, slots=True)
class Function:
    """One function or method, and how much of its signature is annotated."""

    name: str  # qualified, inside its module
    where: str  # file:line
    lines: int
    slots: int  # arguments and the return value, without self and cls
    annotated: int

    @property
    def is_long(self) -> bool:
        """Whether it breaks the limit."""
        return self.lines > MAX_FUNCTION_LINES


@dataclass(frozen=True, slots=True)
class Share:
    """So many of a total, and the names of the others."""

    count: int
    total: int
    missing: list[str] = field(default_factory=list)

    @property
    def ratio(self) -> float:
        """The share, 0..1; of nothing, all."""
        return self.count / self.total if self.total else 1.0

    def __str__(self) -> str:
        # rounded down: 99.97 % is not 100 %
        return f"{math.floor(self.ratio * 1000) / 10:.1f} % ({self.count:,} of {self.total:,})"


@dataclass(frozen=True, slots=True)
class Lengths:
    """How long functions are, in lines."""

    count: int
    median: float
    p90: int
    longest: int
    longest_name: str

    def __str__(self) -> str:
        figures = f"median {self.median:g}, p90 {self.p90}, max {self.longest}"
        return f"{self.count:,} functions, {figures} {self.longest_name}".rstrip()


@dataclass(frozen=True, slots=True)
class Module:
    """One parsed file."""

    path: str  # relative to the root, with slashes
    name: str  # dotted
    lines: int
    tree: ast.Module

    @property
    def folder(self) -> str:
        """The folder that holds the file."""
        return self.path.rpartition("/")[0]


@dataclass(frozen=True, slots=True)
class House:
    """All figures of a checkout."""

    folders: dict[str, tuple[int, int]]  # files and lines, of the folder itself
    lengths: dict[str, Lengths]  # by area
    annotated: dict[str, Share]  # by area
    documented: Share
    broad_excepts: list[str]
    import_cycles: list[list[str]]
    long_functions: list[str]


def measure(root: Path) -> House:
    """Read every Python file of a checkout's areas."""
    modules = [read(root, path) for area in AREAS for path in sorted((root / area).rglob("*.py"))]
    functions = {area: [f for m in of_area(modules, area) for f in functions_of(m)] for area in AREAS}
    code = of_area(modules, CODE)
    return House(
        folders=folder_sizes(modules),
        lengths={area: lengths_of(found) for area, found in functions.items() if found},
        annotated={area: annotated_share(found) for area, found in functions.items() if found},
        documented=documented_share(code),
        broad_excepts=[line for module in code for line in broad_excepts(module)],
        import_cycles=cycles(import_graph(code)),
        long_functions=[
            f"{f.where} {f.name}: {f.lines} lines" for found in functions.values() for f in found if f.is_long
        ],
    )


def read(root: Path, path: Path) -> Module:
    """Parse one file. Raises SyntaxError for what is not Python."""
    text = path.read_text(encoding="utf-8")
    relative = path.relative_to(root)
    parts = relative.with_suffix("").parts
    name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    return Module(relative.as_posix(), name, len(text.splitlines()), ast.parse(text, str(path)))


def of_area(modules: Iterable[Module], area: str) -> list[Module]:
    """The modules of one area."""
    return [module for module in modules if module.path.startswith(area + "/")]


def folder_sizes(modules: Iterable[Module]) -> dict[str, tuple[int, int]]:
    """Files and lines by folder; a subfolder counts for itself."""
    sizes: dict[str, list[int]] = defaultdict(list)
    for module in modules:
        sizes[module.folder].append(module.lines)
    return {folder: (len(lines), sum(lines)) for folder, lines in sorted(sizes.items())}


# Functions


def functions_of(module: Module) -> list[Function]:
    """Every function and method of a module, nested ones too."""
    return [function(module, qualified, node, in_class) for qualified, node, in_class in definitions(module.tree)]


def definitions(node: ast.AST, prefix: str = "", in_class: bool = False) -> Iterator[tuple[str, Def, bool]]:
    """(qualified name, definition, whether it is a method) of all functions below a node."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, Def):
            yield prefix + child.name, child, in_class
            yield from definitions(child, f"{prefix}{child.name}.")
        elif isinstance(child, ast.ClassDef):
            yield from definitions(child, f"{prefix}{child.name}.", in_class=True)
        else:
            yield from definitions(child, prefix, in_class)


def function(module: Module, name: str, node: Def, in_class: bool) -> Function:
    """Measure one definition."""
    arguments = node.args
    positional = [*arguments.posonlyargs, *arguments.args]
    if in_class and "staticmethod" not in decorators(node):
        positional = positional[1:]
    others = [arguments.vararg, *arguments.kwonlyargs, arguments.kwarg]
    slots = [argument.annotation for argument in [*positional, *others] if argument is not None] + [node.returns]
    lines = (node.end_lineno or node.lineno) - node.lineno + 1
    annotated = sum(slot is not None for slot in slots)
    return Function(name, f"{module.path}:{node.lineno}", lines, len(slots), annotated)


def decorators(node: Def) -> set[str]:
    """The last names of a definition's decorators."""
    return {ast.unparse(decorator).split("(")[0].split(".")[-1] for decorator in node.decorator_list}


def lengths_of(functions: list[Function]) -> Lengths:
    """Median, p90 (nearest rank) and the longest. Needs at least one function."""
    lines = sorted(function.lines for function in functions)
    longest = max(functions, key=lambda function: function.lines)
    p90 = lines[math.ceil(0.9 * len(lines)) - 1]
    return Lengths(len(lines), statistics.median(lines), p90, longest.lines, f"({longest.where} {longest.name})")


def annotated_share(functions: list[Function]) -> Share:
    """How many arguments and return values are annotated."""
    missing = [f"{f.where} {f.name}" for f in functions if f.annotated < f.slots]
    return Share(sum(f.annotated for f in functions), sum(f.slots for f in functions), missing)


# Docstrings


def documented_share(modules: Iterable[Module]) -> Share:
    """How many public modules, classes, functions and methods have a docstring."""
    found = [(name, ast.get_docstring(node) is not None) for module in modules for name, node in public_names(module)]
    return Share(sum(has for _, has in found), len(found), [name for name, has in found if not has])


def public_names(module: Module) -> Iterator[tuple[str, ast.Module | ast.ClassDef | Def]]:
    """The module itself and what it defines; names that begin with an underscore, and all in them, are left out."""
    if any(part.startswith("_") for part in module.name.split(".")):
        return
    yield module.path, module.tree
    yield from public_members(f"{module.path} ", module.tree)


def public_members(prefix: str, node: ast.Module | ast.ClassDef) -> Iterator[tuple[str, ast.ClassDef | Def]]:
    """Public classes, functions and methods right below a node and its public classes."""
    for child in node.body:
        if not isinstance(child, Def | ast.ClassDef) or child.name.startswith("_"):
            continue
        if isinstance(child, Def) and decorators(child) & {"overload", "setter", "deleter"}:
            continue
        yield prefix + child.name, child
        if isinstance(child, ast.ClassDef):
            yield from public_members(f"{prefix}{child.name}.", child)


# Excepts


def broad_excepts(module: Module) -> list[str]:
    """Handlers of everything: `except:`, `except Exception` and `except BaseException`."""
    found = [node for node in ast.walk(module.tree) if isinstance(node, ast.ExceptHandler)]
    handlers = sorted(found, key=lambda node: node.lineno)
    return [f"{module.path}:{node.lineno} {caught(node)}" for node in handlers if is_broad(node)]


def is_broad(handler: ast.ExceptHandler) -> bool:
    """Whether a handler catches everything."""
    if handler.type is None:
        return True
    kinds = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return any(isinstance(kind, ast.Name) and kind.id in {"Exception", "BaseException"} for kind in kinds)


def caught(handler: ast.ExceptHandler) -> str:
    """The handler's head, as it is written."""
    return f"except {ast.unparse(handler.type)}" if handler.type else "except"


# Imports


def import_graph(modules: list[Module]) -> dict[str, set[str]]:
    """Which module imports which other; inside functions too, but not for type checking alone."""
    known = {module.name for module in modules}
    return {module.name: set(imported_by(module, known)) & known - {module.name} for module in modules}


def imported_by(module: Module, known: set[str]) -> Iterator[str]:
    """Dotted names of the modules that a module imports. `from a import b` is about a.b if that is a known module."""
    for node in run_time_nodes(module.tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = absolute(module, node)
            full_names = (f"{base}.{alias.name}" for alias in node.names)
            yield from (name if name in known else base for name in full_names)


def run_time_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes, without the bodies of `if TYPE_CHECKING`."""
    yield node
    children: Iterable[ast.AST] = ast.iter_child_nodes(node)
    if isinstance(node, ast.If) and ast.unparse(node.test).split(".")[-1] == "TYPE_CHECKING":
        children = node.orelse
    for child in children:
        yield from run_time_nodes(child)


def absolute(module: Module, node: ast.ImportFrom) -> str:
    """The package that an import is from, relative dots resolved."""
    if not node.level:
        return node.module or ""
    package = module.name if module.path.endswith("/__init__.py") else module.name.rpartition(".")[0]
    parts = package.split(".")
    return ".".join([*parts[: len(parts) - node.level + 1], *([node.module] if node.module else [])])


def cycles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """Groups of modules that reach each other, sorted."""
    reach = {name: reachable(graph, name) for name in graph}
    groups = {
        frozenset(other for other in reach[name] if name in reach[other]) for name in graph if name in reach[name]
    }
    return sorted(sorted(group) for group in groups)


def reachable(graph: Mapping[str, set[str]], start: str) -> set[str]:
    """All that a module imports, directly or through others."""
    seen: set[str] = set()
    ahead = list(graph[start])
    while ahead:
        name = ahead.pop()
        if name not in seen:
            seen.add(name)
            ahead += graph[name]
    return seen


# Limits and output


def broken_limits(house: House) -> list[str]:
    """One line per broken limit; empty when all are kept."""
    return [
        *(f"function over {MAX_FUNCTION_LINES} lines: {name}" for name in house.long_functions),
        *folder_limits(house.folders),
        *length_limits(house.lengths),
        *(f"not annotated: {name}" for share in house.annotated.values() for name in share.missing),
        *documented_limit(house.documented),
        *(f"import cycle: {' <-> '.join(group)}" for group in house.import_cycles),
    ]


def folder_limits(folders: Mapping[str, tuple[int, int]]) -> list[str]:
    """Folders that are too long."""
    sizes = ((folder, lines) for folder, (_, lines) in folders.items() if lines > MAX_FOLDER_LINES)
    return [f"folder over {MAX_FOLDER_LINES:,} lines: {folder} has {lines:,}" for folder, lines in sizes]


def length_limits(lengths: Mapping[str, Lengths]) -> list[str]:
    """Whether functions are too long on the whole."""
    if CODE not in lengths:
        return []
    found = lengths[CODE]
    limits = (("median", found.median, MAX_MEDIAN_LINES), ("p90", found.p90, MAX_P90_LINES))
    return [f"{name} of function lengths is {value:g}, over {limit}" for name, value, limit in limits if value > limit]


def documented_limit(share: Share) -> list[str]:
    """Whether too many public names have no docstring."""
    if share.ratio >= MIN_DOCUMENTED:
        return []
    return [f"documented: {share}, under {MIN_DOCUMENTED:.0%}", *(f"no docstring: {name}" for name in share.missing)]


def report(house: House) -> str:
    """The figures as text."""
    files, lines = (sum(size[i] for size in house.folders.values()) for i in (0, 1))
    sizes = {**house.folders, "all": (files, lines)}
    return "\n".join(
        [
            f"{'folder':28} {'files':>6} {'lines':>7}",
            *(f"{folder:28} {count:6} {lines:7,}" for folder, (count, lines) in sizes.items()),
            "",
            *(f"{area}: {lengths}" for area, lengths in house.lengths.items()),
            *(f"{area}: annotated {share}" for area, share in house.annotated.items()),
            f"functions over {MAX_FUNCTION_LINES} lines {len(house.long_functions)}",
            f"{CODE}: public names documented {house.documented}",
            f"{CODE}: broad excepts {len(house.broad_excepts)}",
            *(f"  {line}" for line in house.broad_excepts),
            f"{CODE}: import cycles {len(house.import_cycles)}",
            *(f"  {' <-> '.join(group)}" for group in house.import_cycles),
        ]
    )


def main(arguments: list[str] | None = None) -> int:
    """The command line. Returns the exit status."""
    parser = argparse.ArgumentParser(description="Figures about the code, and the limits that this project keeps.")
    parser.add_argument("root", nargs="?", type=Path, default=Path(__file__).parent.parent, help="a checkout")
    parser.add_argument("--check", action="store_true", help="fail, and name each limit that is broken")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(arguments)
    house = measure(options.root)
    print(json.dumps(asdict(house), indent=2) if options.json else report(house))
    broken = broken_limits(house) if options.check else []
    for line in broken:
        print(line, file=sys.stderr)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
