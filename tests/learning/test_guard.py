"""The guard set's format, and the file that is shipped."""

from pathlib import Path

import pytest

from backend.errors import CorpusError
from backend.learning.guard import halves, read_guard
from backend.ner import segment
from backend.ner.spans import Passage


def written(folder: Path, text: str) -> Path:
    path = folder / "guard.txt"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_sentence_has_its_entities_marked(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        "# people\n\nlabels: person, city of birth\n[Ada Byron](person) left [Rome](city of birth).\nIt rained.\n",
    )
    first, second = read_guard(path)
    assert first.passage.text == "Ada Byron left Rome."
    assert first.labels == ("person", "city of birth")
    assert [(first.passage.text[s.start : s.end], s.label) for s in first.spans] == [
        ("Ada Byron", "person"),
        ("Rome", "city of birth"),
    ]
    assert (second.passage, second.spans) == (Passage("It rained."), ())


@pytest.mark.parametrize(
    ("line", "text", "entities"),
    [
        pytest.param(r"A \[sic] word", "A [sic] word", [], id="a bracket"),
        pytest.param(r"back\\slash", "back\\slash", [], id="a backslash"),
        pytest.param(r"[A\]B](person)", "A]B", ["A]B"], id="a closing bracket in an entity"),
        pytest.param("she (and he) left]", "she (and he) left]", [], id="brackets that open nothing"),
        pytest.param("👩‍🔬 [Zoë](person)!", "👩‍🔬 Zoë!", ["Zoë"], id="offsets are code points"),
        pytest.param("[A](person)-[B](person)", "A-B", ["A", "B"], id="entities at punctuation"),
        pytest.param("#tag is a comment", None, [], id="a comment"),
    ],
)
def test_of_marks(line: str, text: str | None, entities: list[str], tmp_path: Path) -> None:
    sentences = read_guard(written(tmp_path, f"labels: person\nAnother one.\n{line}\n"))
    found = [(s.passage.text, [s.passage.text[span.start : span.end] for span in s.spans]) for s in sentences[1:]]
    assert found == ([] if text is None else [(text, entities)])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no sentence"),
        ("labels: person\n", "holds no sentence"),
        ("It rained.\n", "line 1: expected 'labels:' before the first sentence"),
        ("labels: person,\nx\n", "line 1: expected labels that differ"),
        ("labels: a, a\nx\n", "line 1: expected labels that differ"),
        ("labels: O\nx\n", "line 1: expected labels that differ"),
        ("labels: person\n[Ada](city) left\n", "line 2: label 'city' is not of this block, which has person"),
        ("labels: person\n[Ada] left\n", r"line 2: expected \]\(label\)"),
        ("labels: person\n[Ada](person left\n", r"line 2: expected \]\(label\)"),
        ("labels: person\n[Ada left\n", "line 2: a '\\[' without its"),
        ("labels: person\n[Ada [Byron](person)](person)\n", "line 2: a '\\[' inside an entity"),
        ("labels: person\n[](person)\n", "line 2: an entity without text"),
        ("labels: person\nAda\\\n", "line 2: a backslash at the end"),
        ("labels: person\n[Ad](person)a left\n", "line 2: the entity 'Ad' begins or ends inside a word"),
        ("labels: person\nIt rained.\n\nIt rained.\n", "line 4: the sentence of line 2 again"),
    ],
)
def test_what_is_not_of_the_format_is_refused_with_its_line(content: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=message):
        read_guard(written(tmp_path, content))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"cannot read .*none\.txt"):
        read_guard(tmp_path / "none.txt")


def test_the_shipped_set_is_large_and_varied() -> None:
    sentences = read_guard()
    assert len(sentences) >= 300
    assert len({sentence.labels for sentence in sentences}) >= 5
    labels = {label for sentence in sentences for label in sentence.labels}
    used = {span.label for sentence in sentences for span in sentence.spans}
    assert len(used) >= 0.8 * len(labels)
    assert any(not sentence.spans for sentence in sentences), "sentences without entities teach O"


def test_both_halves_have_their_part_of_every_large_block() -> None:
    sentences = read_guard()
    guard = halves(sentences)
    assert set(guard.training) | set(guard.gate) == set(sentences)
    assert not set(guard.training) & set(guard.gate)
    for labels in {sentence.labels for sentence in sentences}:
        number = sum(sentence.labels == labels for sentence in sentences)
        in_gate = sum(sentence.labels == labels for sentence in guard.gate)
        assert number < 30 or 0.25 < in_gate / number < 0.75, labels


def test_a_sentence_keeps_its_half_when_others_come(tmp_path: Path) -> None:
    few = read_guard(written(tmp_path, "labels: a\none\ntwo\nthree\nfour\n"))
    more = read_guard(written(tmp_path, "labels: a\nzero\none\ntwo\nthree\nfour\nfive\n"))
    assert set(halves(few).gate) <= set(halves(more).gate)
    assert set(halves(few).training) <= set(halves(more).training)


def test_its_words_are_those_of_the_segmenter() -> None:
    for sentence in read_guard():
        words = segment.words(sentence.passage.text)
        tags = segment.tags_of(sentence.spans, words)
        assert sum(tag.startswith("B-") for tag in tags) == len(sentence.spans)
