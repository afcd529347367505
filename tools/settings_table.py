"""Writes the table in docs/settings.md from backend.settings.

python tools/settings_table.py            rewrite the table
python tools/settings_table.py --check    fail if it is not up to date
"""

import argparse
import sys
from pathlib import Path

from backend import settings

PAGE = Path(__file__).parent.parent / "docs" / "settings.md"
BEGIN = "<!-- begin: written by tools/settings_table.py -->\n\n"
END = "\n<!-- end -->\n"


def table() -> str:
    """All settings as a Markdown table, in the order of the class."""
    rows = [("variable", "flag", "default", "meaning"), ("---", "---", "---", "---")]
    for name, field in settings.Settings.model_fields.items():
        default = "" if field.default in ("", None) else str(field.default)
        rows.append((f"`{settings.variable(name)}`", f"`{settings.flag(name)}`", default, field.description or ""))
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |\n" for row in rows)


def with_table(page: str, new_table: str) -> str:
    """The page with another table. Raises ValueError if a marker is missing."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"expected the lines {BEGIN.strip()!r} and {END.strip()!r} in the page")
    return before + begin + new_table + end + after


def main(arguments: list[str] | None = None) -> int:
    """The command line. Returns the exit status."""
    parser = argparse.ArgumentParser(description="Writes the table in docs/settings.md from backend.settings.")
    parser.add_argument("--check", action="store_true", help="fail if the table is not up to date; write nothing")
    check = parser.parse_args(arguments).check
    page = PAGE.read_text(encoding="utf-8")
    wanted = with_table(page, table())
    if check and page != wanted:
        print("docs/settings.md is not up to date; run python tools/settings_table.py", file=sys.stderr)
        return 1
    if not check:
        PAGE.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
