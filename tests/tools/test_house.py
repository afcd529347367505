"""What tools/house.py counts, on small trees."""

import json
from pathlib import Path

import pytest

from tools import house

ONE_LINE = "def _f() -> None: ...\n"


def tree(root: Path, files: dict[str, str]) -> house.House:
    """Write files and measure them."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return house.measure(root)


def long_function(name: str, lines: int) -> str:
    return f"def {name}() -> None:\n" + "    ...\n" * (lines - 1)


def test_a_subfolder_counts_for_itself(tmp_path: Path) -> None:
    found = tree(
        tmp_path,
        {
            "backend/a.py": "x = 1\ny = 2\n",
            "backend/ner/b.py": "z = 3\n",
            "tests/test_a.py": "",
            "other/c.py": "w = 1\n",
        },
    )
    assert found.folders == {"backend": (1, 2), "backend/ner": (1, 1), "tests": (1, 0)}


def test_a_function_is_as_long_as_its_lines_without_decorators(tmp_path: Path) -> None:
    text = "@decorate\n@again\ndef f() -> None:\n    x = 1\n\n    return\n"
    found = tree(tmp_path, {"backend/a.py": text})
    assert found.lengths["backend"].longest == 4


def test_a_nested_function_counts_on_its_own_and_in_its_outer_one(tmp_path: Path) -> None:
    text = "class A:\n    def outer(self) -> None:\n        async def inner() -> None:\n            ...\n        ...\n"
    found = tree(tmp_path, {"backend/a.py": text})
    names = [(f.name, f.lines) for f in house.functions_of(house.read(tmp_path, tmp_path / "backend/a.py"))]
    assert names == [("A.outer", 4), ("A.outer.inner", 2)]
    assert found.lengths["backend"].count == 2


def test_median_and_p90_are_of_all_functions_of_an_area(tmp_path: Path) -> None:
    text = "".join(long_function(f"f{n}", n) for n in range(2, 12))
    found = tree(tmp_path, {"backend/a.py": text, "tests/test_a.py": ONE_LINE}).lengths
    assert (found["backend"].median, found["backend"].p90, found["backend"].longest) == (6.5, 10, 11)
    assert "backend/a.py:55 f11" in found["backend"].longest_name
    assert found["tests"].count == 1


@pytest.mark.parametrize(
    ("text", "annotated", "total"),
    [
        ("def f(): ...", 0, 1),
        ("def f(a: int, /, b, *c: int, d: int = 0, **e) -> None: ...", 4, 6),
        ("class A:\n    def f(self, a: int) -> None: ...", 2, 2),
        ("class A:\n    @classmethod\n    def f(cls) -> None: ...", 1, 1),
        ("class A:\n    @staticmethod\n    def f(a) -> None: ...", 1, 2),
        ("class A:\n    def f(self) -> None:\n        def g(self) -> None: ...", 2, 3),
        ("x = lambda a: a", 0, 0),
    ],
)
def test_arguments_and_returns_are_counted(tmp_path: Path, text: str, annotated: int, total: int) -> None:
    found = tree(tmp_path, {"backend/a.py": text}).annotated.get("backend", house.Share(0, 0))
    assert (found.count, found.total) == (annotated, total)


def test_public_names_are_modules_classes_functions_and_methods(tmp_path: Path) -> None:
    text = '''"""A module."""
class A:
    """A class."""
    def __init__(self) -> None: ...
    def method(self) -> None: ...
    def _private(self) -> None: ...
    @property
    def p(self) -> int:
        """A property."""
    @p.setter
    def p(self, value: int) -> None: ...
class _Private:
    def method(self) -> None: ...
def f() -> None:
    """A function."""
    def inner() -> None: ...
'''
    found = tree(
        tmp_path, {"backend/a.py": text, "backend/_b.py": "class C: ...", "tests/test_a.py": ONE_LINE}
    ).documented
    assert (found.count, found.total, found.missing) == (4, 5, ["backend/a.py A.method"])


def test_handlers_of_everything_are_listed(tmp_path: Path) -> None:
    handlers = [
        "except:",
        "except Exception as error:",
        "except (OSError, BaseException):",
        "except (OSError, KeyError):",
    ]
    text = "".join(f"try: ...\n{handler} ...\n" for handler in handlers)
    found = tree(tmp_path, {"backend/a.py": text, "tests/test_a.py": text}).broad_excepts
    assert found == [
        "backend/a.py:2 except",
        "backend/a.py:4 except Exception",
        "backend/a.py:6 except (OSError, BaseException)",
    ]


A_AND_B = [["backend.a", "backend.b"]]


@pytest.mark.parametrize(
    ("files", "cycles"),
    [
        ({"backend/a.py": "import backend.b", "backend/b.py": "x = 1"}, []),
        ({"backend/a.py": "import backend.b", "backend/b.py": "from backend import a"}, A_AND_B),
        ({"backend/a.py": "from backend.b import x", "backend/b.py": "def f():\n    import backend.a"}, A_AND_B),
        ({"backend/p/a.py": "from . import b", "backend/p/b.py": "from .a import x"}, [["backend.p.a", "backend.p.b"]]),
        (
            {"backend/p/__init__.py": "from .a import x", "backend/p/a.py": "from backend.p import y"},
            [["backend.p", "backend.p.a"]],
        ),
        (
            {
                "backend/p/__init__.py": "from .a import x",
                "backend/p/a.py": "from backend.p import b",
                "backend/p/b.py": "",
            },
            [],
        ),
        (
            {
                "backend/a.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import backend.b",
                "backend/b.py": "import backend.a",
            },
            [],
        ),
        (
            {
                "backend/a.py": "import backend.b",
                "backend/b.py": "import backend.c",
                "backend/c.py": "import backend.a",
            },
            [["backend.a", "backend.b", "backend.c"]],
        ),
    ],
)
def test_import_cycles_at_run_time_are_found(tmp_path: Path, files: dict[str, str], cycles: list[list[str]]) -> None:
    assert tree(tmp_path, files).import_cycles == cycles


GOOD = '"""A module."""\ndef f(a: int) -> None:\n    """A function."""\n'


@pytest.mark.parametrize(
    ("files", "complaint"),
    [
        ({"backend/a.py": GOOD}, None),
        ({"backend/a.py": GOOD + ONE_LINE * 18 + long_function("_g", 60)}, None),
        ({"backend/a.py": GOOD + long_function("_g", 61)}, "function over 60 lines: backend/a.py:4 _g: 61 lines"),
        (
            {"backend/a.py": GOOD, "tests/a.py": long_function("g", 61)},
            "function over 60 lines: tests/a.py:1 g: 61 lines",
        ),
        ({"backend/a.py": GOOD, "tests/a.py": "x = 1\n" * 3001}, "folder over 3,000 lines: tests has 3,001"),
        ({"backend/a.py": GOOD + long_function("_g", 21)}, "median of function lengths is 11.5, over 10"),
        (
            {"backend/a.py": GOOD + "".join(long_function(f"_g{n}", 26) for n in range(3))},
            "p90 of function lengths is 26, over 25",
        ),
        ({"backend/a.py": GOOD + "def _g(a) -> None: ...\n"}, "not annotated: backend/a.py:4 _g"),
        ({"backend/a.py": GOOD + "def g() -> None: ...\n"}, "no docstring: backend/a.py g"),
        (
            {"backend/a.py": GOOD + "import backend.b", "backend/b.py": GOOD + "import backend.a"},
            "import cycle: backend.a <-> backend.b",
        ),
    ],
)
def test_check_names_each_broken_limit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], files: dict[str, str], complaint: str | None
) -> None:
    tree(tmp_path, files)
    assert house.main([str(tmp_path)]) == 0
    assert capsys.readouterr().err == ""
    assert house.main([str(tmp_path), "--check"]) == (complaint is not None)
    told = capsys.readouterr().err.splitlines()
    assert told == [] if complaint is None else complaint in told


def test_a_share_is_rounded_down() -> None:
    assert str(house.Share(9_999, 10_000)) == "99.9 % (9,999 of 10,000)"


def test_json_holds_the_same_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tree(tmp_path, {"backend/a.py": GOOD})
    house.main([str(tmp_path), "--json"])
    figures = json.loads(capsys.readouterr().out)
    assert figures["folders"] == {"backend": [1, 3]}
    assert figures["documented"]["count"] == 2


def test_the_text_names_folders_and_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tree(tmp_path, {"backend/ner/a.py": GOOD})
    house.main([str(tmp_path)])
    text = capsys.readouterr().out
    assert "backend/ner                       1       3" in text
    assert "backend: annotated 100.0 % (2 of 2)" in text


def test_this_repository_keeps_the_limits() -> None:
    assert house.broken_limits(house.measure(Path(__file__).parents[2])) == []


def test_nothing_at_all_can_be_measured(tmp_path: Path) -> None:
    assert house.main([str(tmp_path), "--check"]) == 0
