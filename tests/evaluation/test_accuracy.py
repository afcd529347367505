"""Scores, compared with cases worked out by hand."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from backend.engine import checkpoint as checkpoints
from backend.engine.tagger import Tagger, WordsQuestion
from backend.errors import CorpusError
from backend.evaluation.accuracy import bootstrap, evaluate, score, scored_tags
from backend.evaluation.corpora import Corpus, read_corpora
from backend.ner.bio import Sentence, mentions
from backend.ner.scores import Counts
from backend.pretraining.checkpoint import build, export
from tests.support import small_recipe as small

EXPECTED = [["B-per", "I-per", "O", "B-loc"], ["O", "B-loc"], ["O", "O"]]


@pytest.mark.parametrize(
    ("predicted", "correct", "num_predicted"),
    [
        pytest.param(EXPECTED, 3, 3, id="all correct"),
        pytest.param(
            [["B-per", "O", "O", "B-loc"], ["O", "B-loc"], ["O", "O"]], 2, 3, id="an entity that lacks a word is wrong"
        ),
        pytest.param([["B-loc", "I-loc", "O", "B-loc"], ["O", "B-loc"], ["O", "O"]], 2, 3, id="another label is wrong"),
        pytest.param(
            [["B-per", "I-per", "O", "B-loc"], ["O", "O"], ["B-per", "O"]], 2, 3, id="one missed, one spurious"
        ),
        pytest.param([["O"] * 4, ["O"] * 2, ["O"] * 2], 0, 0, id="nothing"),
    ],
)
def test_strict_counts(predicted: list[list[str]], correct: int, num_predicted: int) -> None:
    result = score(EXPECTED, predicted)
    assert result.total == Counts(correct, num_predicted, 3)
    assert result.f1 == pytest.approx(2 * correct / (num_predicted + 3))


def test_counts_by_label() -> None:
    result = score(EXPECTED, [["B-per", "I-per", "O", "O"], ["B-loc", "B-loc"], ["O", "O"]])
    assert result.by_label == {"per": Counts(1, 1, 1), "loc": Counts(1, 2, 2)}
    assert result.by_label["loc"].precision == 0.5
    assert result.by_label["loc"].recall == 0.5


def test_nothing_expected_and_nothing_predicted() -> None:
    assert score([["O"]], [["O"]]).f1 == 0.0


_TAGS = st.sampled_from(["O", "B-a", "I-a", "B-b", "I-b"])


@given(st.lists(st.lists(st.tuples(_TAGS, _TAGS), min_size=1, max_size=6), min_size=1, max_size=5))
def test_totals_are_those_of_exact_matches(rows: list[list[tuple[str, str]]]) -> None:
    """Compare nervaluate's totals with sets of (start, end, label), on legal tags."""
    expected = [_legal([pair[0] for pair in row]) for row in rows]
    predicted = [_legal([pair[1] for pair in row]) for row in rows]
    expected_mentions = {(index, mention) for index, tags in enumerate(expected) for mention in mentions(tags)}
    predicted_mentions = {(index, mention) for index, tags in enumerate(predicted) for mention in mentions(tags)}
    assert score(expected, predicted).total == Counts(
        len(expected_mentions & predicted_mentions), len(predicted_mentions), len(expected_mentions)
    )


def _legal(tags: list[str]) -> list[str]:
    result: list[str] = []
    for bio in tags:
        continues = bool(result) and result[-1] != "O" and result[-1][2:] == bio[2:]
        result.append("B-" + bio[2:] if bio[0] == "I" and not continues else bio)
    return result


def test_the_interval_holds_the_score_and_narrows_with_more_sentences() -> None:
    expected = [["B-a", "O"], ["O", "B-a"]] * 20
    predicted = [["B-a", "O"], ["O", "O"]] * 20
    low, high = bootstrap(expected, predicted)
    assert low < score(expected, predicted).f1 < high
    narrow_low, narrow_high = bootstrap(expected * 10, predicted * 10)
    assert low < narrow_low < narrow_high < high
    assert bootstrap(expected, expected) == (1.0, 1.0)


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
    expected = score(
        [scored_tags(s.tags, corpus) for s in sentences], [scored_tags(row.tags, corpus) for row in tagged]
    )
    assert entry.score == expected
    assert scored_tags(("B-person", "O", "B-place"), corpus) == ("O", "O", "B-place")
