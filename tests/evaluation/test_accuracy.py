"""Scores, against cases worked out by hand."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from backend.cli import main
from backend.engine import checkpoint as checkpoints
from backend.engine.tagger import Tagger, WordsQuestion
from backend.errors import CorpusError
from backend.evaluation.accuracy import (
    average_f1,
    bootstrap,
    counted,
    evaluate,
    read_predictions,
    score,
    score_predictions,
)
from backend.evaluation.corpora import Corpus, read_corpora
from backend.ner.bio import Sentence, mentions
from backend.ner.scores import Counts
from backend.pretraining.checkpoint import build, export
from tests.support import small_recipe as small

GOLD = [["B-per", "I-per", "O", "B-loc"], ["O", "B-loc"], ["O", "O"]]


@pytest.mark.parametrize(
    ("found", "right", "num_found"),
    [
        pytest.param(GOLD, 3, 3, id="all right"),
        pytest.param([["B-per", "O", "O", "B-loc"], ["O", "B-loc"], ["O", "O"]], 2, 3, id="a word short is wrong"),
        pytest.param([["B-loc", "I-loc", "O", "B-loc"], ["O", "B-loc"], ["O", "O"]], 2, 3, id="another label is wrong"),
        pytest.param(
            [["B-per", "I-per", "O", "B-loc"], ["O", "O"], ["B-per", "O"]], 2, 3, id="one missed, one made up"
        ),
        pytest.param([["O"] * 4, ["O"] * 2, ["O"] * 2], 0, 0, id="nothing"),
    ],
)
def test_strict_counts(found: list[list[str]], right: int, num_found: int) -> None:
    result = score(GOLD, found)
    assert result.total == Counts(right, num_found, 3)
    assert result.f1 == pytest.approx(2 * right / (num_found + 3))


def test_counts_by_label() -> None:
    result = score(GOLD, [["B-per", "I-per", "O", "O"], ["B-loc", "B-loc"], ["O", "O"]])
    assert result.by_label == {"per": Counts(1, 1, 1), "loc": Counts(1, 2, 2)}
    assert result.by_label["loc"].precision == 0.5
    assert result.by_label["loc"].recall == 0.5


def test_nothing_there_and_nothing_found() -> None:
    assert score([["O"]], [["O"]]).f1 == 0.0


_TAGS = st.sampled_from(["O", "B-a", "I-a", "B-b", "I-b"])


@given(st.lists(st.lists(st.tuples(_TAGS, _TAGS), min_size=1, max_size=6), min_size=1, max_size=5))
def test_totals_are_those_of_exact_matches(rows: list[list[tuple[str, str]]]) -> None:
    """nervaluate's totals against sets of (start, end, label), on legal tags."""
    gold = [_legal([pair[0] for pair in row]) for row in rows]
    found = [_legal([pair[1] for pair in row]) for row in rows]
    there = {(index, mention) for index, tags in enumerate(gold) for mention in mentions(tags)}
    actual = {(index, mention) for index, tags in enumerate(found) for mention in mentions(tags)}
    assert score(gold, found).total == Counts(len(there & actual), len(actual), len(there))


def _legal(tags: list[str]) -> list[str]:
    result: list[str] = []
    for bio in tags:
        continues = bool(result) and result[-1] != "O" and result[-1][2:] == bio[2:]
        result.append("B-" + bio[2:] if bio[0] == "I" and not continues else bio)
    return result


def test_the_interval_holds_the_score_and_narrows_with_more_sentences() -> None:
    gold = [["B-a", "O"], ["O", "B-a"]] * 20
    found = [["B-a", "O"], ["O", "O"]] * 20
    low, high = bootstrap(gold, found)
    assert low < score(gold, found).f1 < high
    narrow_low, narrow_high = bootstrap(gold * 10, found * 10)
    assert low < narrow_low < narrow_high < high
    assert bootstrap(gold, gold) == (1.0, 1.0)


def _line(dataset: str, tagged: str, output: str) -> str:
    words, labels = zip(*(item[:-1].split("(") for item in tagged.split()), strict=True)
    instance = {"words": words, "labels": labels, "id": "7"}
    record = {"dataset": dataset, "label_list": ["actor", "city"], "instance": instance, "prediction": output}
    return json.dumps(record)


def test_the_papers_scoring(tmp_path: Path) -> None:
    path = tmp_path / "predictions.jsonl"
    lines = [
        # found: george clooney; the second mention is the same entity and counts once on both sides
        _line("films", "George(B-actor) Clooney(I-actor) is(O) George(B-actor) Clooney(I-actor)",
              "george(B-actor) clooney(I-actor) is(O) george(B-actor) clooney(I-actor)"),
        # "the Rome" and "Rome" are the same once normalised; "is" was skipped by the model; director is no label here
        _line("films", "the(B-city) Rome(I-city) is(O) old(O)", "the(O) rome(B-city) old(B-director)"),
        # one right of two there, and one made up: F1 0.5
        _line("trips", "Rome(B-city) or(O) Oslo(B-city)", "Rome(B-city) or(B-city) Oslo(O)"),
    ]  # fmt: skip
    path.write_text("\n".join(lines) + "\n")
    scores = score_predictions(read_predictions(path))
    assert scores == {"films": Counts(2, 2, 2), "trips": Counts(1, 2, 2)}
    assert average_f1(scores) == pytest.approx(0.75)


@pytest.mark.parametrize(
    "line", ["{", "[]", '{"dataset": "x"}', _line("films", "Rome(B-city)", "x").replace('["B-city"]', "[]")]
)
def test_a_malformed_prediction_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "predictions.jsonl"
    path.write_text(_line("films", "Rome(B-city)", "Rome(B-city)") + "\n" + line + "\n")
    with pytest.raises(CorpusError, match="line 2"):
        read_predictions(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained checkpoint, in `checkpoint`, and corpora, in `ner`."""
    path = tmp_path_factory.mktemp("evaluation")
    built = build(small.recipe(), [("Ada",)], small.write_encoder(path / "encoder"))
    export(built.learner, built.tokenizer, small.recipe(), torch.float32, path / "checkpoint")
    small.write_corpora(path / "ner")
    return path


def _load(folder: Path) -> checkpoints.LoadedModel:
    return checkpoints.load(checkpoints.resolve(str(folder / "checkpoint")), torch.device("cpu"), torch.float32)


def test_a_checkpoint_is_scored_corpus_by_corpus(folder: Path) -> None:
    loaded = _load(folder)
    corpora = read_corpora(folder / "ner")
    tagger = Tagger.of(loaded)
    found = list(evaluate(tagger, corpora, "train", quiet=True))
    assert [(entry.name, entry.num_sentences) for entry in found] == [("drugs", 2), ("news", 4)]
    assert [entry.score.total.expected for entry in found] == [3, 6]
    for entry in found:
        assert entry.draft is not None
        assert entry.agreement is not None
        assert 0.0 <= entry.agreement <= 1.0
    with pytest.raises(CorpusError, match="no sentences in the dev split"):
        next(evaluate(tagger, corpora, "dev", quiet=True))
    with pytest.raises(CorpusError, match="no split 'exam'"):
        next(evaluate(tagger, corpora, "exam", quiet=True))


def test_the_command(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["evaluate", "--checkpoint", str(folder / "checkpoint"), "--data", str(folder / "ner")]
    assert main([*arguments, "--split", "train", "--corpus", "news", "--limit", "3", "--save-scores"]) == 0
    output = capsys.readouterr().out
    assert "| news | train | 3 |" in output
    assert "drugs" not in output
    assert set(json.loads((folder / "checkpoint" / "gner.json").read_text())["scores"]) == {"news"}
    assert main([*arguments, "--corpus", "tweets"]) == 2
    assert "tweets" in capsys.readouterr().err


def test_the_command_on_predictions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "predictions.jsonl"
    path.write_text(_line("trips", "Rome(B-city) or(O) Oslo(B-city)", "Rome(B-city) or(B-city) Oslo(O)") + "\n")
    assert main(["evaluate", "--predictions", str(path)]) == 0
    assert "| trips | 0.5000 | 0.5000 | 0.5000 |" in capsys.readouterr().out


def test_each_sentence_is_asked_with_its_own_labels_and_only_scored_ones_count(folder: Path) -> None:
    loaded = _load(folder)
    sentences = (
        Sentence(("Ada", "left", "Rome"), ("B-person", "O", "B-place"), ("person", "place")),
        Sentence(("aspirin", "cures"), ("B-chemical", "O"), ("chemical",)),
    )
    corpus = Corpus("own", ("chemical", "person", "place"), (), sentences, (), ("place", "chemical"))
    [entry] = evaluate(Tagger.of(loaded), [corpus], "dev", quiet=True)
    assert entry.score.total.expected == 2
    assert {*entry.score.by_label} <= {"place", "chemical"}
    tagged = Tagger.of(loaded).tag_words([WordsQuestion(s.words, s.labels) for s in sentences])
    expected = score([counted(s.tags, corpus) for s in sentences], [counted(row.tags, corpus) for row in tagged])
    assert entry.score == expected
    assert counted(("B-person", "O", "B-place"), corpus) == ("O", "O", "B-place")


def test_the_written_corpus_is_measured_beside_those_of_the_folder(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["evaluate", "--data", str(folder / "ner"), "--checkpoint", str(folder / "checkpoint")]
    assert main([*command, "--corpus", "written", "--split", "dev", "--limit", "1"]) == 0
    assert "| written | dev | 1 |" in capsys.readouterr().out
