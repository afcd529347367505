"""Checkpoint folders: written, loaded, and continued."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from backend.engine.draft_head import DraftHead
from backend.errors import CheckpointError, InvalidSettings
from backend.pretraining.checkpoint import build, build_from, export
from backend.pretraining.recipe import read_recipe
from tests.support import small_recipe as small


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.write_encoder(tmp_path_factory.mktemp("encoder") / "model")


def test_an_exported_folder_loads_as_it_was(encoder: Path, tmp_path: Path) -> None:
    recipe = small.recipe()
    built = build(recipe, [("Ada",)], encoder)
    export(built.learner, built.tokenizer, recipe, torch.float32, tmp_path)
    model = AutoModelForSeq2SeqLM.from_pretrained(tmp_path, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    encoding = tokenizer(["person, place : ada left rome ."], return_tensors="pt")
    assert tokenizer.convert_ids_to_tokens(encoding["input_ids"][0])[:5] == ["[CLS]", "person", ",", "place", ":"]
    target = torch.tensor([[tokenizer.cls_token_id, *tokenizer.encode("ada(O) left(O)", add_special_tokens=False)]])
    built.learner.eval()
    with torch.no_grad():
        expected = built.learner.model(**encoding, decoder_input_ids=target).logits
        assert torch.equal(model(**encoding, decoder_input_ids=target).logits, expected)
        assert model.generate(**encoding, max_length=5)[0, 0] == tokenizer.cls_token_id
    names = load_file(tmp_path / "model.safetensors")
    embeddings = [name for name in names if names[name].shape[0] == len(tokenizer) and names[name].dim() == 2]
    assert len(embeddings) == 2  # one each for encoder and decoder; the decoder's is also its output
    head = DraftHead.load(tmp_path / "draft_head.safetensors")
    assert torch.equal(head.label.weight, built.learner.head.label.weight)
    described = json.loads((tmp_path / "gner.json").read_text())
    assert described["template"] == recipe.template
    assert read_recipe(tmp_path / "recipe.json") == recipe


def _vocabulary(folder: Path) -> int:
    size: int = json.loads((folder / "config.json").read_text())["vocab_size"]
    return size


def test_a_folder_to_begin_from_must_suit_the_recipe(encoder: Path, tmp_path: Path) -> None:
    recipe = small.recipe()
    with pytest.raises(CheckpointError, match="missing"):
        build_from(tmp_path / "missing", recipe)
    built = build(recipe, [("Ada",)], encoder)
    export(built.learner, built.tokenizer, recipe, torch.float32, tmp_path)
    size = _vocabulary(tmp_path)
    deeper = replace(recipe.architecture, vocabulary_size=size, decoder_layers=3)
    with pytest.raises(InvalidSettings, match="decoder_layers 2, not 3"):
        build_from(tmp_path, replace(recipe, architecture=deeper))
