"""What a run trains on and what it holds out."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from backend.evaluation.corpora import Corpus, read_corpora
from backend.ner.bio import Sentence
from backend.pretraining.checkpoint import build
from backend.pretraining.data import Stream, hold_out, materials, with_dev
from backend.pretraining.mixture import Mixture
from backend.pretraining.written import written_corpora
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


def test_a_pool_is_divided_into_batches_of_like_length(corpora: Path, tmp_path: Path) -> None:
    recipe = small.recipe()
    training, _ = hold_out(read_corpora(corpora), recipe)
    built = build(recipe, [("Ada",)], small.write_encoder(tmp_path / "encoder"))
    stream = Stream(Mixture(training, recipe.mixture), built.sample_encoder, recipe, rank=0)
    batches = [next(iter(stream)) for _ in range(4)]
    tokens = [int(batch.source_mask.sum() + batch.target_mask.sum()) for batch in batches]
    limit = recipe.schedule.batch_tokens
    assert all(count <= limit or len(batch.source) == 1 for count, batch in zip(tokens, batches, strict=True))
    again = Stream(Mixture(training, recipe.mixture), built.sample_encoder, recipe, rank=0, pool=stream.pool, taken=3)
    assert (stream.pool, stream.taken) == (0, 4)
    assert torch.equal(next(iter(again)).source, batches[3].source)


@pytest.mark.slow  # reads the whole written corpus twice
def test_the_written_corpus_is_trained_on_without_its_dev_parts(corpora: Path) -> None:
    recipe = small.recipe()
    wanted = replace(recipe, mixture=replace(recipe.mixture, shares={**recipe.mixture.shares, "written": 1.0}))
    training, held_out = materials(corpora, replace(wanted, written_held_out_max=7))
    [trained] = [corpus for corpus in with_dev(training) if corpus.collection == "written"]
    written, apart = written_corpora()
    assert trained.train == written.train
    held = {corpus.name: corpus.dev for corpus in held_out if corpus.name.startswith("written")}
    assert held == {"written": written.dev[:7], "written-unseen-types": apart.dev[:7]}
