from pathlib import Path

import pytest

from backend.errors import CorpusError
from backend.evaluation.corpora import read_corpora
from backend.ner.bio import Mention, Sentence, mentions
from backend.ner.conll import label_set, read_conll

SHARED = Path("../shared/data/ner")


def _write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())
    return path


def test_a_file_is_words_and_tags(tmp_path: Path) -> None:
    path = _write(tmp_path / "train.conll", "Ada\tB-person\nwrote\tO\n\n\nA\tB-creative work\nNote\tI-creative work\n")
    assert read_conll(path) == (
        Sentence(("Ada", "wrote"), ("B-person", "O")),
        Sentence(("A", "Note"), ("B-creative work", "I-creative work")),
    )


def test_crlf_and_words_with_odd_signs(tmp_path: Path) -> None:
    path = _write(tmp_path / "train.conll", "a\u2028b\tO\r\n🙂\tO\r\n\r\nx\tO")
    assert [sentence.words for sentence in read_conll(path)] == [("a\u2028b", "🙂"), ("x",)]


@pytest.mark.parametrize("line", ["word", "word O", "\tO", "word\tX-person", "word\tB-", "word\tB- ", "word\tperson"])
def test_a_malformed_line_is_named(tmp_path: Path, line: str) -> None:
    path = _write(tmp_path / "train.conll", f"fine\tO\n{line}\n")
    with pytest.raises(CorpusError, match=r"train\.conll, line 2"):
        read_conll(path)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="cannot read"):
        read_conll(tmp_path / "train.conll")
    (tmp_path / "latin.conll").write_bytes(b"caf\xe9\tO\n")
    with pytest.raises(CorpusError, match="cannot read"):
        read_conll(tmp_path / "latin.conll")


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("O O", []),
        ("B-a I-a O B-b", [Mention(0, 2, "a"), Mention(3, 4, "b")]),
        ("B-a B-a", [Mention(0, 1, "a"), Mention(1, 2, "a")]),
        ("I-a I-a I-b", [Mention(0, 2, "a"), Mention(2, 3, "b")]),
        ("O I-a", [Mention(1, 2, "a")]),
        ("", []),
    ],
)
def test_mentions(tags: str, expected: list[Mention]) -> None:
    assert mentions(tags.split()) == expected


def test_corpora_and_their_parts(tmp_path: Path) -> None:
    _write(tmp_path / "news" / "train.conll", "Ada\tB-person\n")
    _write(tmp_path / "news" / "test.conll", "Rome\tB-place\n")
    _write(tmp_path / "intents" / "play-music.train.conll", "play\tO\njazz\tB-genre\n")
    _write(tmp_path / "intents" / "rate-book.train.conll", "five\tB-rating value\n")
    _write(tmp_path / "SOURCES.md", "not a corpus")
    corpora = read_corpora(tmp_path)
    assert [(corpus.name, corpus.collection, corpus.labels) for corpus in corpora] == [
        ("intents/play-music", "intents", ("genre",)),
        ("intents/rate-book", "intents", ("rating value",)),
        ("news", "news", ("person", "place")),
    ]
    assert [len(split) for split in (corpora[2].train, corpora[2].dev, corpora[2].test)] == [1, 0, 1]


def test_a_folder_without_corpora(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="no folder"):
        read_corpora(tmp_path / "missing")
    with pytest.raises(CorpusError, match=r"no \*\.conll"):
        read_corpora(tmp_path)
    _write(tmp_path / "news" / "validation.conll", "a\tO\n")
    with pytest.raises(CorpusError, match=r"validation\.conll"):
        read_corpora(tmp_path)


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"the shared corpora are not at {SHARED}")
def test_the_shared_corpora_are_well_formed() -> None:
    corpora = {corpus.name: corpus for corpus in read_corpora(SHARED)}
    assert len(corpora["wikigold"].train) == 1396
    assert len(corpora["wnut17"].dev) == 1009
    assert corpora["crossner-ai"].labels == label_set(corpora["crossner-ai"].test)
    assert sum(len(corpus.test) for corpus in corpora.values() if corpus.collection == "snips") == 700
