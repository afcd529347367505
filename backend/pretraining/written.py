"""The written corpus: passages that were written for this project, with a schema each. No torch.

`written/README.md` says where it comes from and what its fields are. Three parts of it are kept apart:

- what is trained on;
- dev: one text of twenty, by a hash of the text;
- unseen types: the types of `written/unseen-types.txt` are never asked in training, and of the passages that ask one
  of them a third, by a hash of the text, is not trained on either. Those passages are asked with all their types,
  and scored on the unseen ones alone.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from backend.errors import CorpusError
from backend.evaluation.corpora import Corpus
from backend.ner import segment
from backend.ner.bio import Sentence
from backend.ner.spans import Span

WRITTEN = "written"
UNSEEN_TYPES = "written-unseen-types"
FOLDER = Path(__file__).with_name("written")

_DEV = 20  # one text of so many
_UNSEEN = 3  # one of so many passages that ask an unseen type


@dataclass(frozen=True, slots=True)
class Passage:
    """A text in words, with the types that it is asked for and its entities of those types."""

    source: str
    sentence: Sentence


def read_written(path: Path = FOLDER / "written.jsonl") -> tuple[Passage, ...]:
    """All passages of a file, in the words of the serving segmenter.

    Raises CorpusError, naming file and line, for what is no passage, and for a span that cuts a word.
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


def _passage(line: str) -> Passage:
    raw = json.loads(line)
    labels, text = tuple(raw["labels"]), raw["text"]
    spans = [Span(start, end, label, 1.0) for start, end, label in raw["spans"]]
    unknown = {span.label for span in spans} - {*labels}
    if unknown or not labels:
        raise ValueError(f"entities of {sorted(unknown)}, but asked are {labels}")
    words = segment.words(text)
    return Passage(
        raw["source"],
        Sentence(tuple(word.text for word in words), tuple(segment.tags_of(spans, words)), labels),
    )


def read_unseen_types(path: Path = FOLDER / "unseen-types.txt") -> frozenset[str]:
    """The names that are never asked in training, in lower case. Raises CorpusError if the file cannot be read."""
    try:
        return frozenset(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise CorpusError(f"cannot read {path}: {error}") from error


def written_corpora(folder: Path = FOLDER) -> tuple[Corpus, Corpus]:
    """`written` with its train and dev split, and `written-unseen-types` with a dev split alone.

    Raises CorpusError if a file is missing or malformed.
    """
    return split(read_written(folder / "written.jsonl"), read_unseen_types(folder / "unseen-types.txt"))


def split(passages: Iterable[Passage], unseen: frozenset[str]) -> tuple[Corpus, Corpus]:
    """The three parts. What is asked in train and dev does not hold an unseen type; entities of it are O there."""
    train: list[Sentence] = []
    dev: list[Sentence] = []
    apart: list[Sentence] = []
    for passage in passages:
        sentence = passage.sentence
        number = _hash(" ".join(sentence.words))
        new = [label for label in sentence.labels if label.lower() in unseen]
        if new and number // _DEV % _UNSEEN == 0:
            apart.append(sentence)
            continue
        known = without(sentence, new)
        if known.labels:
            (dev if number % _DEV == 0 else train).append(known)
    scored = tuple(sorted({label for sentence in apart for label in sentence.labels if label.lower() in unseen}))
    return (
        Corpus(WRITTEN, _labels(train + dev), tuple(train), tuple(dev), ()),
        Corpus(UNSEEN_TYPES, _labels(apart), (), tuple(apart), (), scored),
    )


def without(sentence: Sentence, labels: Iterable[str]) -> Sentence:
    """The sentence as it is when these types are not asked: their words are O."""
    left_out = {*labels}
    return Sentence(
        sentence.words,
        tuple("O" if tag[2:] in left_out else tag for tag in sentence.tags),
        tuple(label for label in sentence.labels if label not in left_out),
    )


def _labels(sentences: Iterable[Sentence]) -> tuple[str, ...]:
    return tuple(sorted({label for sentence in sentences for label in sentence.labels}))


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
