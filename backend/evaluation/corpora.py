"""Reads NER corpora in CoNLL format (see `ner.conll`). Does not import torch.

A folder of corpora has one folder for each collection. Most collections are one corpus: `train.conll`, `dev.conll`,
`test.conll`. Others have several, each with its own label set: `book-restaurant.train.conll` in the folder `snips`
belongs to the corpus `snips/book-restaurant`.
"""

from dataclasses import dataclass
from pathlib import Path

from backend.errors import CorpusError
from backend.ner.bio import Sentence
from backend.ner.conll import label_set, read_conll

SPLITS = ("train", "dev", "test")


@dataclass(frozen=True, slots=True)
class Corpus:
    """Sentences with one label set. `labels` is sorted and covers all splits. A missing split is empty."""

    name: str
    labels: tuple[str, ...]
    train: tuple[Sentence, ...]
    dev: tuple[Sentence, ...]
    test: tuple[Sentence, ...]
    scored: tuple[str, ...] = ()  # the labels whose entities count; empty: all

    @property
    def collection(self) -> str:
        """The folder that the corpus is from: `snips` for `snips/play-music`, otherwise its own name."""
        return self.name.split("/")[0]


def read_corpora(folder: Path) -> tuple[Corpus, ...]:
    """Every corpus in a folder, sorted by name. Raises CorpusError if there is none or one is malformed."""
    if not folder.is_dir():
        raise CorpusError(f"no folder of corpora at {folder}")
    corpora = [corpus for path in sorted(folder.iterdir()) if path.is_dir() for corpus in _read_corpus(path)]
    if not corpora:
        raise CorpusError(f"no *.conll file in the folders of {folder}")
    return tuple(corpora)


def _read_corpus(folder: Path) -> list[Corpus]:
    splits_of_corpus: dict[str, dict[str, tuple[Sentence, ...]]] = {}
    for path in sorted(folder.glob("*.conll")):
        *own_name, split = path.stem.split(".")
        if split not in SPLITS:
            raise CorpusError(f"{path}: expected a name that ends with one of {[f'{name}.conll' for name in SPLITS]}")
        splits_of_corpus.setdefault("/".join([folder.name, *own_name]), {})[split] = read_conll(path)
    return [
        Corpus(
            name,
            label_set(sentence for sentences in splits.values() for sentence in sentences),
            train=splits.get("train", ()),
            dev=splits.get("dev", ()),
            test=splits.get("test", ()),
        )
        for name, splits in splits_of_corpus.items()
    ]
