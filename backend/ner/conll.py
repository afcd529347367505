"""Sentences in CoNLL format: one `TOKEN<TAB>TAG` per line, a blank line between sentences.

Tags are `O`, `B-label` or `I-label`. A label is plain English and may contain spaces.
"""

from collections.abc import Iterable
from pathlib import Path

from backend.errors import CorpusError
from backend.ner.bio import Sentence, is_tag, label_of


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
    # not splitlines(): a token may contain U+2028 and the like
    for number, line in enumerate([*text.replace("\r\n", "\n").split("\n"), ""], start=1):
        if not line.strip():
            if words:
                sentences.append(Sentence(tuple(words), tuple(tags)))
                words, tags = [], []
            continue
        word, separator, tag = line.rpartition("\t")
        if not separator or not word.strip():
            raise CorpusError(f"{path}, line {number}: expected TOKEN<TAB>TAG, found {line!r}")
        if not is_tag(tag):
            raise CorpusError(f"{path}, line {number}: expected O, B-label or I-label, found {tag!r}")
        words.append(word)
        tags.append(tag)
    return tuple(sentences)


def label_set(sentences: Iterable[Sentence]) -> tuple[str, ...]:
    """The labels of the sentences, sorted."""
    labels = {label_of(tag) for sentence in sentences for tag in sentence.tags}
    return tuple(sorted(label for label in labels if label is not None))
