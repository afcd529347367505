"""A checkpoint that marks case: its encoder reads the case of each word as BERT's token types."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForSeq2SeqLM

from backend.engine import checkpoint as checkpoints
from backend.engine.codec import Codec, Limits
from backend.engine.decode import ExactDecoder
from backend.engine.family import BertToBertFamily, source_kinds
from backend.engine.generate import GenerateDecoder
from backend.engine.sequential import SequentialDecoder
from backend.errors import CheckpointError
from backend.ner.casing import CAPITAL, NUM_KINDS, PLAIN, UPPER
from backend.ner.prompt import PromptFormat
from tests.support import tiny

LABELS = ("person", "location")
WORDS = ("Marie", "worked", "in", "PARIS", ".")
LOWER = tuple(word.lower() for word in WORDS)


def family_with_kinds(strength: float = 2.0) -> BertToBertFamily:
    """A random model whose encoder has a row for each kind."""
    model: Any = tiny.bert_model()
    size = model.config.encoder.hidden_size
    torch.manual_seed(5)
    table = nn.Embedding(NUM_KINDS, size)
    nn.init.normal_(table.weight, std=strength)
    model.encoder.embeddings.token_type_embeddings = table
    model.config.encoder.type_vocab_size = NUM_KINDS
    return BertToBertFamily(model.eval())


def codec_of(*, marks_case: bool, locates_words: bool = False) -> Codec:
    template = PromptFormat("{labels} : {sentence}")
    return Codec(
        tiny.bert_tokenizer(),
        template,
        Limits(512, 512),
        source_ends_with_eos=True,
        locates_words=locates_words,
        marks_case=marks_case,
    )


@pytest.mark.parametrize("locates_words", [False, True])
def test_each_token_has_its_words_kind(locates_words: bool) -> None:
    codec = codec_of(marks_case=True, locates_words=locates_words)
    prompt = codec.encode(("PERSON", "location"), WORDS)
    assert prompt.source_kinds is not None
    assert len(prompt.source_kinds) == len(prompt.source_ids)
    assert (prompt.places is not None) == locates_words
    tokens = codec.tokenizer.convert_ids_to_tokens(list(prompt.source_ids))
    text = "".join(
        token.removeprefix("##") for token, kind in zip(tokens, prompt.source_kinds, strict=True) if kind == UPPER
    )
    assert text == "paris"  # but no token of the labels, whose case means nothing
    assert {kind for token, kind in zip(tokens, prompt.source_kinds, strict=True) if "mar" in token} == {CAPITAL}
    assert prompt.source_kinds[0] == prompt.source_kinds[-1] == PLAIN


def test_a_checkpoint_that_does_not_mark_case_gets_no_kinds() -> None:
    prompt = codec_of(marks_case=False).encode(LABELS, WORDS)
    assert prompt.source_kinds is None
    assert source_kinds([prompt], torch.device("cpu")) is None


def test_case_reaches_the_encoder_and_is_the_same_in_a_batch_and_alone() -> None:
    family, codec = family_with_kinds(), codec_of(marks_case=True)
    prompts = [codec.encode(LABELS, words) for words in (WORDS, LOWER, WORDS[:2])]
    together = family.begin(prompts).source_hidden
    assert together is not None
    for row, prompt in zip(together, prompts, strict=True):
        alone = family.begin([prompt]).source_hidden
        assert alone is not None
        assert torch.allclose(row[: alone.shape[1]], alone[0], atol=1e-5)
    assert not torch.allclose(together[0], together[1], atol=1e-2)


def test_case_reaches_every_decoding_method() -> None:
    family, codec = family_with_kinds(), codec_of(marks_case=True)
    prompts = [codec.encode(LABELS, words) for words in (WORDS, LOWER)]
    exact = ExactDecoder(family, 64).decode(prompts)
    assert [row.tags for row in exact] == [row.tags for row in SequentialDecoder(family).decode(prompts)]
    generate = GenerateDecoder(family.model, codec.tokenizer, num_beams=1, max_new_tokens=8)
    marked = generate.decode(prompts)
    plain = codec_of(marks_case=False)
    unmarked = generate.decode([plain.encode(LABELS, words) for words in (WORDS, LOWER)])
    assert unmarked[0].probabilities == pytest.approx(unmarked[1].probabilities, abs=1e-5)
    assert marked[0].probabilities != pytest.approx(marked[1].probabilities, abs=1e-4)


def test_gner_json_says_whether_a_checkpoint_marks_case(tmp_path: Path) -> None:
    family_with_kinds().model.save_pretrained(tmp_path)
    tiny.bert_tokenizer().save_pretrained(tmp_path)
    described = tmp_path / "gner.json"
    described.write_text(json.dumps({"template": "{labels} : {sentence}", "marks_case": True}))
    checkpoint = checkpoints.resolve(str(tmp_path))
    loaded = checkpoints.load(checkpoint, torch.device("cpu"), torch.float32)
    assert loaded.codec.encode(LABELS, WORDS).source_kinds is not None
    plain = AutoModelForSeq2SeqLM.from_pretrained(tmp_path, dtype=torch.float32)
    table = plain.encoder.embeddings.token_type_embeddings.weight
    assert torch.equal(table, loaded.family.model.encoder.embeddings.token_type_embeddings.weight)
    described.write_text(json.dumps({"marks_case": "yes"}))
    with pytest.raises(CheckpointError, match="marks_case is 'yes'"):
        checkpoints.resolve(str(tmp_path))
