"""What a run trains on and what it holds out."""

from pathlib import Path

import pytest

from backend.evaluation.corpora import Corpus, read_corpora
from backend.ner.bio import Sentence
from backend.pretraining.data import hold_out, with_dev
from tests.support import small_recipe as small


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.write_corpora(tmp_path_factory.mktemp("corpora") / "ner")


def test_what_is_held_out_is_never_trained_on(corpora: Path) -> None:
    everything = {corpus.name: {*corpus.train} for corpus in read_corpora(corpora)}
    training, chosen_by = hold_out(read_corpora(corpora), small.recipe())
    for corpus, held in zip(training, chosen_by, strict=True):
        assert not {*corpus.train} & {*held.dev}
        assert {*corpus.train} | {*held.dev} == everything[corpus.name]
    assert any(corpus.dev for corpus in chosen_by)


def test_published_dev_splits_are_trained_on_test_splits_never() -> None:
    first, second, third = (Sentence((word,), ("O",)) for word in ("a", "b", "c"))
    [corpus] = with_dev([Corpus("x", ("thing",), train=(first,), dev=(second,), test=(third,))])
    assert (corpus.train, corpus.test) == ((first, second), (third,))
