"""NER corpora in CoNLL form: one `TOKEN<TAB>TAG` a line, a blank line between sentences. No torch.

Tags are `O`, `B-label` or `I-label`; a label is plain English and may hold spaces. A folder of corpora has one folder
for each, with `train.conll`, `dev.conll`, `test.conll`, or several parts (`book-restaurant.train.conll`) that have a
label set each: then every part is a corpus of its own, named `snips/book-restaurant`.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from backend.errors import CorpusError
from backend.ner.prompt import OUTSIDE, label_of

SPLITS = ("train", "dev", "test")


class Tagged(Protocol):
    """Words and their BIO tags, one each: a Sentence, or what else has both."""

    @property
    def words(self) -> tuple[str, ...]: ...
    @property
    def tags(self) -> tuple[str, ...]: ...


@dataclass(frozen=True, slots=True)
class Sentence:
    """Words and their BIO tags, one each."""

    words: tuple[str, ...]
    tags: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Mention:
    """An entity in a sentence. `start` and `end` are word indices, half-open."""

    start: int
    end: int
    label: str


@dataclass(frozen=True, slots=True)
class Corpus:
    """Sentences with one label set. `labels` is sorted and covers all splits; a split that is not there is empty."""

    name: str
    labels: tuple[str, ...]
    train: tuple[Sentence, ...]
    dev: tuple[Sentence, ...]
    test: tuple[Sentence, ...]

    @property
    def family(self) -> str:
        """The corpus that this is a part of: `snips` for `snips/play-music`, else its own name."""
        return self.name.split("/")[0]


def mentions(tags: Sequence[str]) -> list[Mention]:
    """BIO tags -> entities. An I- that continues nothing begins one."""
    found: list[Mention] = []
    start, open_label = 0, None
    for index, tag in enumerate([*tags, OUTSIDE]):
        label = label_of(tag)
        if open_label is not None and (tag.startswith("B-") or label != open_label):
            found.append(Mention(start, index, open_label))
            open_label = None
        if label is not None and open_label is None:
            start, open_label = index, label
    return found


def mentions_by_label(tagged: Iterable[Tagged]) -> dict[str, list[tuple[str, ...]]]:
    """The words of all entities, by label."""
    found: dict[str, list[tuple[str, ...]]] = {}
    for row in tagged:
        for mention in mentions(row.tags):
            found.setdefault(mention.label, []).append(row.words[mention.start : mention.end])
    return found


def replace_mentions(row: Tagged, choose: Callable[[Mention], tuple[str, ...]]) -> Sentence:
    """The sentence with each entity's words replaced by what `choose` gives for it, in order."""
    words: list[str] = []
    tags: list[str] = []
    done = 0
    for mention in mentions(row.tags):
        words += row.words[done : mention.start]
        tags += row.tags[done : mention.start]
        chosen = choose(mention)
        words += chosen
        tags += [f"B-{mention.label}"] + [f"I-{mention.label}"] * (len(chosen) - 1)
        done = mention.end
    return Sentence((*words, *row.words[done:]), (*tags, *row.tags[done:]))


def read_conll(path: Path) -> tuple[Sentence, ...]:
    """All sentences of a file.

    Raises CorpusError, naming file and line, if the file cannot be read, a line is not `TOKEN<TAB>TAG`, or a tag
    is not BIO.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CorpusError(f"cannot read {path}: {error}") from error
    sentences: list[Sentence] = []
    words: list[str] = []
    tags: list[str] = []
    # not splitlines(): a token may be or hold U+2028 and its like
    for number, line in enumerate([*text.replace("\r\n", "\n").split("\n"), ""], start=1):
        if not line.strip():
            if words:
                sentences.append(Sentence(tuple(words), tuple(tags)))
                words, tags = [], []
            continue
        word, separator, tag = line.rpartition("\t")
        if not separator or not word.strip():
            raise CorpusError(f"{path}, line {number}: expected TOKEN<TAB>TAG, found {line!r}")
        if tag != OUTSIDE and not (tag[:2] in ("B-", "I-") and tag[2:].strip()):
            raise CorpusError(f"{path}, line {number}: expected O, B-label or I-label, found {tag!r}")
        words.append(word)
        tags.append(tag)
    return tuple(sentences)


def read_corpora(folder: Path) -> tuple[Corpus, ...]:
    """Every corpus of a folder, sorted by name. Raises CorpusError if there is none, or one is malformed."""
    if not folder.is_dir():
        raise CorpusError(f"no folder of corpora at {folder}")
    corpora = [corpus for path in sorted(folder.iterdir()) if path.is_dir() for corpus in _read_corpus(path)]
    if not corpora:
        raise CorpusError(f"no *.conll file in the folders of {folder}")
    return tuple(corpora)


def _read_corpus(folder: Path) -> list[Corpus]:
    splits_of_part: dict[str, dict[str, tuple[Sentence, ...]]] = {}
    for path in sorted(folder.glob("*.conll")):
        *part, split = path.stem.split(".")
        if split not in SPLITS:
            raise CorpusError(f"{path}: expected a name that ends in one of {[f'{name}.conll' for name in SPLITS]}")
        splits_of_part.setdefault("/".join([folder.name, *part]), {})[split] = read_conll(path)
    return [
        Corpus(
            name,
            label_set(sentence for sentences in splits.values() for sentence in sentences),
            *(splits.get(split, ()) for split in SPLITS),
        )
        for name, splits in splits_of_part.items()
    ]


def label_set(sentences: Iterable[Sentence]) -> tuple[str, ...]:
    """The labels that occur, sorted."""
    return tuple(sorted({tag[2:] for sentence in sentences for tag in sentence.tags if tag != OUTSIDE}))
