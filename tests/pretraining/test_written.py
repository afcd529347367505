"""The written corpus: its words are those of serving, and its splits measure new texts and new types."""

import json
from pathlib import Path

import pytest

from backend.errors import CorpusError
from backend.ner.bio import Sentence, mentions
from backend.pretraining.written import (
    FOLDER,
    WrittenPassage,
    read_synonyms,
    read_unseen_types,
    read_written,
    split,
    without,
    written_corpora,
)


def write(path: Path, **changes: object) -> Path:
    row = {
        "source": "life-01",
        "labels": ["dish", "spice"],
        "text": "Dal's cumin.",
        "spans": [[0, 3, "dish"]],
        **changes,
    }
    path.write_text(json.dumps(row) + "\n\n", encoding="utf-8")
    return path


def test_a_passage_is_words_tags_and_its_own_labels(tmp_path: Path) -> None:
    [passage] = read_written(write(tmp_path / "written.jsonl"))
    assert passage == WrittenPassage(
        "life-01", Sentence(("Dal", "'s", "cumin", "."), ("B-dish", "O", "O", "O"), ("dish", "spice"))
    )


@pytest.mark.parametrize(
    "changes", [{"labels": []}, {"labels": ["spice"]}, {"text": None}, {"spans": [[0, 3]]}, {"spans": 3}]
)
def test_a_malformed_passage_is_named(tmp_path: Path, changes: dict[str, object]) -> None:
    with pytest.raises(CorpusError, match=r"written\.jsonl, line 1"):
        read_written(write(tmp_path / "written.jsonl", **changes))


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="cannot read"):
        read_written(tmp_path / "written.jsonl")
    with pytest.raises(CorpusError, match="cannot read"):
        read_unseen_types(tmp_path / "unseen-types.txt")
    with pytest.raises(CorpusError, match="cannot read"):
        read_synonyms(tmp_path / "synonyms.txt")


def test_synonyms_are_read_by_type(tmp_path: Path) -> None:
    path = tmp_path / "synonyms.txt"
    path.write_text("dish = prepared food; meal\n\nISIN = securities identifier\n", encoding="utf-8")
    assert read_synonyms(path) == {"dish": ("prepared food", "meal"), "ISIN": ("securities identifier",)}


@pytest.mark.parametrize("line", ["dish", "= meal", "dish =", "dish = meal;", "spice = herb"])
def test_a_malformed_line_of_synonyms_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "synonyms.txt"
    path.write_text(f"spice = seasoning\n{line}\n", encoding="utf-8")
    with pytest.raises(CorpusError, match=r"synonyms\.txt, line 2: .*" + line):
        read_synonyms(path)


def test_a_removed_type_is_neither_asked_for_nor_marked() -> None:
    sentence = Sentence(("Dal", "cumin"), ("B-dish", "B-spice"), ("dish", "spice"))
    assert without(sentence, ["spice"]) == Sentence(("Dal", "cumin"), ("B-dish", "O"), ("dish",))


def test_unseen_types_are_never_trained_on() -> None:
    passages = [
        WrittenPassage("x", Sentence((f"Dal{number}", "cumin"), ("B-Dish", "B-spice"), ("Dish", "spice")))
        for number in range(300)
    ]
    written, held_out = split(passages, frozenset(["dish"]))
    assert {sentence.labels for sentence in (*written.train, *written.dev)} == {("spice",)}
    assert {sentence.labels for sentence in held_out.dev} == {("Dish", "spice")}
    assert held_out.scored == ("Dish",)
    assert not held_out.train
    texts = [sentence.words for sentence in (*written.train, *written.dev, *held_out.dev)]
    assert len(texts) == len({*texts}) == 300
    assert 60 < len(held_out.dev) < 140
    assert 4 < len(written.dev) < 25


def test_passages_only_for_training_are_all_trained_on_without_their_unseen_types() -> None:
    passages = [
        WrittenPassage("x", Sentence((f"Dal{number}", "cumin"), ("B-Dish", "B-spice"), ("Dish", "spice")))
        for number in range(100)
    ]
    nothing_left = WrittenPassage("x", Sentence(("Dal",), ("B-dish",), ("dish",)))
    written, held_out = split([], frozenset(["dish"]), [*passages, nothing_left])
    assert not written.dev
    assert not held_out.dev
    assert {sentence.words for sentence in written.train} == {passage.sentence.words for passage in passages}
    assert {(sentence.labels, sentence.tags) for sentence in written.train} == {(("spice",), ("O", "B-spice"))}


@pytest.mark.slow  # reads the whole written corpus
def test_the_bundled_corpus_and_its_parts() -> None:
    written, held_out = written_corpora()
    unseen = read_unseen_types()
    trained = {label.lower() for sentence in written.train for label in sentence.labels}
    assert not trained & unseen
    assert {label.lower() for label in held_out.scored} <= unseen
    texts = [{sentence.words for sentence in part} for part in (written.train, written.dev, held_out.dev)]
    assert len(set().union(*texts)) == sum(map(len, texts))
    assert all(mention.label in sentence.labels for sentence in held_out.dev for mention in mentions(sentence.tags))
    assert min(len(part) for part in texts) > 200


@pytest.mark.slow  # reads the whole written corpus
def test_no_text_that_is_held_out_is_among_those_only_for_training() -> None:
    held_out = {sentence.words for part in written_corpora() for sentence in part.dev}
    assert not held_out & {passage.sentence.words for passage in read_written(FOLDER / "train-only.jsonl")}


def test_the_bundled_synonyms_are_no_unseen_types_and_fit_into_a_prompt() -> None:
    synonyms = read_synonyms()
    unseen = read_unseen_types()
    assert len(synonyms) > 9000
    for name, others in synonyms.items():
        assert not {other.lower() for other in others} & unseen, name
        assert all(other.lower() != name.lower() and not set(other) & set("()[]{}<>,=") for other in others), name
