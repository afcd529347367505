"""The guard set: varied labelled sentences, written for this project and shipped with it.

A model that is trained on a project must not forget what it could do before. Half of the sentences are replayed in
training; the gate measures with the other half. The half that a sentence is in depends on its text alone. No torch.

The file has blocks. A block begins with a line such as `labels: person, organization, location`: the labels that are
asked for in its sentences. Every other line is a sentence with marked entities,
`[Angela Merkel](person) met [Barack Obama](person) in [Berlin](location).` A backslash makes the next character plain
text, such as `\\[`. Lines that begin with # are comments. Blank lines are ignored.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from backend.errors import CorpusError
from backend.learning.examples import LabelledText
from backend.ner import segment
from backend.ner.bio import OUTSIDE
from backend.ner.spans import Passage, Span

GUARD = Path(__file__).with_name("guard.txt")

_LABELS = "labels:"


@dataclass(frozen=True, slots=True)
class Guard:
    """The two halves: lessons for training, and sentences that the gate measures with."""

    training: tuple[LabelledText, ...]
    gate: tuple[LabelledText, ...]


def halves(sentences: Sequence[LabelledText]) -> Guard:
    """Split by a hash of each text, so that no sentence changes its half when others are added."""
    gate = [hashlib.sha256(sentence.passage.text.encode()).digest()[0] % 2 == 1 for sentence in sentences]
    return Guard(
        tuple(sentence for sentence, is_gate in zip(sentences, gate, strict=True) if not is_gate),
        tuple(sentence for sentence, is_gate in zip(sentences, gate, strict=True) if is_gate),
    )


def read_guard(path: Path = GUARD) -> tuple[LabelledText, ...]:
    """All sentences of a file, in order. Raises CorpusError with the file, the line and what was expected."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise CorpusError(f"cannot read {path}: {error}") from error
    labels: tuple[str, ...] = ()
    sentences: list[LabelledText] = []
    first_line_of: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith("#"):
            continue
        try:
            if line.startswith(_LABELS):
                labels = _labels(line)
                continue
            sentence = _sentence(line, labels)
        except ValueError as error:
            raise CorpusError(f"{path}, line {number}: {error}") from error
        text = sentence.passage.text
        if text in first_line_of:
            raise CorpusError(f"{path}, line {number}: the sentence of line {first_line_of[text]} again")
        first_line_of[text] = number
        sentences.append(sentence)
    if not sentences:
        raise CorpusError(f"{path} holds no sentence")
    return tuple(sentences)


def _labels(line: str) -> tuple[str, ...]:
    labels = tuple(label.strip() for label in line.removeprefix(_LABELS).split(","))
    if "" in labels or OUTSIDE in labels or len(set(labels)) < len(labels):
        raise ValueError(f"expected labels that differ, with commas between them, found {line!r}")
    return labels


def _sentence(line: str, labels: tuple[str, ...]) -> LabelledText:
    if not labels:
        raise ValueError(f"expected {_LABELS!r} before the first sentence, found {line!r}")
    text, spans = _unmarked(line.strip(), labels)
    words = segment.words(text)
    starts, ends = {word.start for word in words}, {word.end for word in words}
    for span in spans:
        if span.start not in starts or span.end not in ends:
            raise ValueError(f"the entity {text[span.start : span.end]!r} begins or ends inside a word")
    return LabelledText(Passage(text), labels, spans)


def _unmarked(line: str, labels: tuple[str, ...]) -> tuple[str, tuple[Span, ...]]:
    """A marked line -> its text and its entities."""
    text: list[str] = []
    spans: list[Span] = []
    opened: int | None = None
    index = 0
    while index < len(line):
        sign = line[index]
        if sign == "\\":
            index += 1
            if index == len(line):
                raise ValueError("a backslash at the end of the line")
            text.append(line[index])
        elif sign == "[":
            if opened is not None:
                raise ValueError(f"a '[' inside an entity, in {line!r}")
            opened = len(text)
        elif sign == "]" and opened is not None:
            label, index = _label_at(line, index + 1)
            if label not in labels:
                raise ValueError(f"label {label!r} is not of this block, which has {', '.join(labels)}")
            if opened == len(text):
                raise ValueError(f"an entity without text, in {line!r}")
            spans.append(Span(opened, len(text), label, 1.0))
            opened = None
            continue
        else:
            text.append(sign)
        index += 1
    if opened is not None:
        raise ValueError(f"a '[' without its ']', in {line!r}")
    return "".join(text), tuple(spans)


def _label_at(line: str, index: int) -> tuple[str, int]:
    """The label in the parentheses that begin at `index`, and the index behind them."""
    end = line.find(")", index)
    if line[index : index + 1] != "(" or end < 0:
        raise ValueError(f"expected ](label) behind an entity, found {line[index - 1 :]!r}")
    return line[index + 1 : end], end + 1
