"""Training, on corpora of a few sentences and an encoder of two layers."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from backend.errors import CorpusError
from backend.evaluation.corpora import read_corpora
from backend.ner.casing import NUM_KINDS
from backend.pretraining.checkpoint import build, build_from
from backend.pretraining.data import hold_out
from backend.pretraining.trainer import pretrain
from tests.support import small_recipe as small


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.write_encoder(tmp_path_factory.mktemp("encoder") / "model")


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.write_corpora(tmp_path_factory.mktemp("corpora") / "ner")


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_a_stopped_run_goes_on_where_it_stopped(encoder: Path, corpora: Path, tmp_path: Path) -> None:
    whole = small.recipe(steps=6, report_every_steps=3, dropout=0.2)
    pretrain(whole, corpora, tmp_path / "whole", encoder_folder=encoder, quiet=True)
    pretrain(whole, corpora, tmp_path / "parts", encoder_folder=encoder, stop_after_s=0.0, quiet=True)
    assert not (tmp_path / "parts" / "model.safetensors").exists()
    pretrain(whole, corpora, tmp_path / "parts", encoder_folder=encoder, quiet=True)
    a, b = _weights(tmp_path / "whole"), _weights(tmp_path / "parts")
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)
    logs = [
        [json.loads(line) for line in (tmp_path / run / "training-log.jsonl").read_text().splitlines()]
        for run in ("whole", "parts")
    ]
    assert [entry["step"] for entry in logs[0]] == [3, 6] == [entry["step"] for entry in logs[1]]
    assert logs[0][1]["f1"] == logs[1][1]["f1"]
    assert logs[0][0]["f1"].keys() == {"drugs", "news"}
    assert "<svg" in (tmp_path / "whole" / "training.svg").read_text()


def test_dropout_changes_the_training_and_nothing_that_is_published(
    encoder: Path, corpora: Path, tmp_path: Path
) -> None:
    for name, dropout in (("without", 0.0), ("with", 0.3)):
        recipe = small.recipe(steps=4, report_every_steps=4, dropout=dropout)
        pretrain(recipe, corpora, tmp_path / name, encoder_folder=encoder, quiet=True)
    plain, dropped = _weights(tmp_path / "without"), _weights(tmp_path / "with")
    assert not torch.equal(
        plain["decoder.bert.embeddings.word_embeddings.weight"],
        dropped["decoder.bert.embeddings.word_embeddings.weight"],
    )
    configs = [(tmp_path / name / "config.json").read_text() for name in ("without", "with")]
    assert configs[0] == configs[1]


@pytest.mark.slow  # two new processes, each of which imports torch and waits for the other at every step
def test_two_processes_train_one_model(encoder: Path, corpora: Path, tmp_path: Path) -> None:
    recipe = small.recipe(steps=4, processes=2)
    pretrain(recipe, corpora, tmp_path, encoder_folder=encoder, quiet=True)
    before = build(recipe, _training_words(corpora), encoder).learner.model.state_dict()
    after = _weights(tmp_path)
    # the parts of both processes have changed
    moved = [name for name in after if not torch.equal(after[name].float(), before[name].to(after[name].dtype).float())]
    assert "encoder.embeddings.word_embeddings.weight" in moved
    assert "decoder.bert.embeddings.word_embeddings.weight" in moved


def _training_words(folder: Path) -> list[tuple[str, ...]]:
    training, _ = hold_out(read_corpora(folder), small.recipe())
    return [sentence.words for corpus in training for sentence in corpus.train]


def test_a_missing_corpus_is_named(encoder: Path, corpora: Path, tmp_path: Path) -> None:
    recipe = small.recipe()
    wanted = replace(recipe, mixture=replace(recipe.mixture, shares={"news": 1.0, "tweets": 1.0}))
    with pytest.raises(CorpusError, match="tweets"):
        pretrain(wanted, corpora, tmp_path, encoder_folder=encoder, quiet=True)


def test_a_run_begins_from_a_checkpoint(encoder: Path, corpora: Path, tmp_path: Path) -> None:
    first = replace(small.recipe(), architecture=replace(small.recipe().architecture, vocabulary_size=100))
    pretrain(first, corpora, tmp_path / "first", encoder_folder=encoder, quiet=True)
    second = replace(first, architecture=replace(first.architecture, vocabulary_size=_vocabulary(tmp_path / "first")))
    second = replace(second, architecture=replace(second.architecture, marks_case=True))
    built = build_from(tmp_path / "first", second)
    before, begun = _weights(tmp_path / "first"), built.learner.model.state_dict()
    kinds = begun["encoder.embeddings.token_type_embeddings.weight"]
    row = before["encoder.embeddings.token_type_embeddings.weight"][0].float()
    assert torch.equal(kinds, row.expand(NUM_KINDS, -1))
    same = [name for name in before if "token_type" not in name or name.startswith("decoder")]
    assert all(torch.equal(begun[name], before[name].float()) for name in same)

    pretrain(second, corpora, tmp_path / "second", encoder_folder=encoder, begin_from=tmp_path / "first", quiet=True)
    assert json.loads((tmp_path / "second" / "gner.json").read_text())["marks_case"] is True
    after = _weights(tmp_path / "second")["encoder.embeddings.token_type_embeddings.weight"]
    assert after.shape[0] == NUM_KINDS
    assert not torch.equal(after[0], after[1])  # Ada is a Capital, left is not
    again = build_from(tmp_path / "second", second).learner.model.state_dict()
    assert torch.equal(again["encoder.embeddings.token_type_embeddings.weight"], after.float())
    tokenizers = [json.loads((tmp_path / run / "tokenizer_config.json").read_text()) for run in ("first", "second")]
    assert tokenizers[0] == tokenizers[1]


def _vocabulary(folder: Path) -> int:
    size: int = json.loads((folder / "config.json").read_text())["vocab_size"]
    return size
