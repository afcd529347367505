"""The written corpus: passages that were written for this project, each with its own schema.

`written/README.md` describes its origin and its fields. It has three separate parts, chosen by a hash of the text:

- train, with all of `written/train-only.jsonl`;
- dev, one text in twenty;
- unseen types. Training never asks for the types in `written/unseen-types.txt`. A third of the passages with such a
  type is held out entirely. They are evaluated with all their types in the prompt, but only the unseen types are
  scored.

This module does not import torch.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from backend.errors import CorpusError
from backend.evaluation.corpora import Corpus
from backend.ner import segment
from backend.ner.bio import OUTSIDE, Sentence, label_of
from backend.ner.spans import Span

WRITTEN = "written"
UNSEEN_TYPES = "written-unseen-types"
FOLDER = Path(__file__).with_name("written")

_DEV_INTERVAL = 20  # one text in so many belongs to dev
_UNSEEN_INTERVAL = 3  # one in so many passages with an unseen type is held out


@dataclass(frozen=True, slots=True)
class WrittenPassage:
    """A text in words, its schema, and the tags of its entities."""

    source: str
    sentence: Sentence


def read_written(path: Path = FOLDER / "written.jsonl") -> tuple[WrittenPassage, ...]:
    """All passages of a file, split into words as in serving.

    Raises CorpusError, naming file and line, if a line is not a passage or a span cuts a word.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise CorpusError(f"cannot read {path}: {error}") from error
    passages = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            passages.append(_passage(line))
        except (ValueError, KeyError, TypeError) as error:
            raise CorpusError(f"{path}, line {number}: not a passage: {error!r}") from error
    return tuple(passages)


def _passage(line: str) -> WrittenPassage:
    raw = json.loads(line)
    labels, text = tuple(raw["labels"]), raw["text"]
    spans = [Span(start, end, label, 1.0) for start, end, label in raw["spans"]]
    unknown = {span.label for span in spans} - {*labels}
    if unknown or not labels:
        raise ValueError(f"entities of {sorted(unknown)}, but the labels are {labels}")
    words = segment.words(text)
    return WrittenPassage(
        raw["source"],
        Sentence(tuple(word.text for word in words), tuple(segment.tags_of(spans, words)), labels),
    )


def read_unseen_types(path: Path = FOLDER / "unseen-types.txt") -> frozenset[str]:
    """The types that training never asks for, in lower case. Raises CorpusError if the file cannot be read."""
    return frozenset(line.strip() for line in _lines(path))


def read_synonyms(path: Path = FOLDER / "synonyms.txt") -> dict[str, tuple[str, ...]]:
    """Other names of types. Each line of the file is `type = name; name`.

    Raises CorpusError, naming file and line, if a line is not like that, and if the file cannot be read.
    """
    synonyms: dict[str, tuple[str, ...]] = {}
    for number, line in enumerate(_lines(path), start=1):
        name, equals, others = (part.strip() for part in line.partition("="))
        found = tuple(other.strip() for other in others.split(";"))
        if not name or not equals or not all(found) or name in synonyms:
            raise CorpusError(f"{path}, line {number}: expected a new type as `type = name; name`, found {line!r}")
        synonyms[name] = found
    return synonyms


def _lines(path: Path) -> list[str]:
    """Lines that are not blank."""
    try:
        return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise CorpusError(f"cannot read {path}: {error}") from error


def written_corpora(folder: Path = FOLDER) -> tuple[Corpus, Corpus]:
    """`written` with train and dev splits, and `written-unseen-types` with only a dev split.

    Raises CorpusError if a file is missing or malformed.
    """
    return split(
        read_written(folder / "written.jsonl"),
        read_unseen_types(folder / "unseen-types.txt"),
        read_written(folder / "train-only.jsonl"),
    )


def split(
    passages: Iterable[WrittenPassage], unseen: frozenset[str], train_only: Iterable[WrittenPassage] = ()
) -> tuple[Corpus, Corpus]:
    """The corpora `written` and `written-unseen-types`. In the former, the entities of unseen types are O.

    `train_only` are passages of which none is held out.
    """
    train: list[Sentence] = []
    dev: list[Sentence] = []
    held_out: list[Sentence] = []
    for passage in passages:
        sentence = passage.sentence
        number = _hash(" ".join(sentence.words))
        unseen_here = [label for label in sentence.labels if label.lower() in unseen]
        if unseen_here and number // _DEV_INTERVAL % _UNSEEN_INTERVAL == 0:
            held_out.append(sentence)
            continue
        known = without(sentence, unseen_here)
        if known.labels:
            (dev if number % _DEV_INTERVAL == 0 else train).append(known)
    for passage in train_only:
        known = without(passage.sentence, [label for label in passage.sentence.labels if label.lower() in unseen])
        if known.labels:
            train.append(known)
    scored = tuple(label for label in _labels(held_out) if label.lower() in unseen)
    return (
        Corpus(WRITTEN, _labels(train + dev), tuple(train), tuple(dev), ()),
        Corpus(UNSEEN_TYPES, _labels(held_out), (), tuple(held_out), (), scored),
    )


def without(sentence: Sentence, labels: Iterable[str]) -> Sentence:
    """The sentence without these types in its schema. The words of their entities become O."""
    removed = {*labels}
    return Sentence(
        sentence.words,
        tuple(OUTSIDE if label_of(tag) in removed else tag for tag in sentence.tags),
        tuple(label for label in sentence.labels if label not in removed),
    )


def _labels(sentences: Iterable[Sentence]) -> tuple[str, ...]:
    return tuple(sorted({label for sentence in sentences for label in sentence.labels}))


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
