"""README and docs read easily: wrapped lines, short sentences, links that lead somewhere."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]

MAX_LINE = 120
MAX_WORDS = 30

_FENCE = re.compile(r"^ *```.*?^ *```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"!?\[([^\]]*)\]\([^)]*\)")
_ITEM = re.compile(r"^ *(?:[-*]|\d+\.) ", re.MULTILINE)
_SENTENCE_END = re.compile(r"(?<=[.!?])[*_)\"]* +|(?<=[.!?])[*_]*$")


def sentences(page: str) -> Iterator[str]:
    """The sentences of a page's paragraphs and list items; an inline code span counts as one word."""
    prose = re.sub(r"`[^`]+`", "code", _LINK.sub(r"\1", _FENCE.sub("", page)))
    for block in re.split(r"\n{2,}", _ITEM.sub("\n\n", prose)):
        if not block.lstrip().startswith(("#", "|", "<!--")):
            yield from filter(None, _SENTENCE_END.split(" ".join(block.split())))


@pytest.mark.parametrize(
    ("page", "expected"),
    [
        ("One. Two\nlines.\n\nThree!", ["One.", "Two lines.", "Three!"]),
        ("# Heading\n\n| a. b |\n|---|\n\n```sh\ncode. here\n```\n", []),
        ("- **An item.** Its text.\n- Another `with. code`.", ["**An item.", "Its text.", "Another code."]),
        ("See [the page. Really](docs/a.md).", ["See the page.", "Really."]),
        ("3.10 is not two sentences.", ["3.10 is not two sentences."]),
    ],
)
def test_sentences_are_found(page: str, expected: list[str]) -> None:
    assert list(sentences(page)) == expected


def test_no_line_of_the_readme_is_long() -> None:
    assert [line for line in README.splitlines() if len(line) > MAX_LINE] == []


# the lab notes are a log, full of figures
@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "lab-notes.md"], ids=lambda page: page.name)
def test_prose_is_wrapped_and_sentences_are_short(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    prose = [line for line in _FENCE.sub("", text).splitlines() if not line.startswith("|")]
    assert [line for line in prose if len(line) > MAX_LINE] == []
    assert [sentence for sentence in sentences(text) if len(sentence.split()) > MAX_WORDS] == []


def test_the_readme_names_the_two_commands() -> None:
    assert re.search(r"^make serve\b", README, re.MULTILINE)
    assert re.search(r"^make test\b", README, re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_that_exist(page: Path) -> None:
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    targets = [target.partition("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", text)]
    local = [target for target in targets if target and not target.startswith(("http:", "https:", "mailto:"))]
    assert [target for target in local if not (page.parent / target).exists()] == []
