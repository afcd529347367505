"""Our T5 layers say what transformers' say."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache

from backend.engine.t5 import T5Layers

from . import tiny

LENGTHS = (7, 90, 33)  # beyond the distances that have a bucket each
WIDTHS = (40, 1, 17)


def tokens(batch: int, width: int, seed: int) -> Tensor:
    return torch.randint(3, 100, (batch, width), generator=torch.Generator().manual_seed(seed))


def mask_of(lengths: tuple[int, ...]) -> Tensor:
    return (torch.arange(max(lengths))[None, :] < torch.tensor(lengths)[:, None]).long()


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def model(request: pytest.FixtureRequest) -> Any:
    family, _ = tiny.t5()
    return family.model.to(request.param)


def assert_same(ours: Tensor, theirs: Tensor) -> None:
    exact = theirs.dtype == torch.float32
    torch.testing.assert_close(ours, theirs, rtol=1e-5 if exact else 0.05, atol=1e-5 if exact else 0.05)


@torch.inference_mode()
def test_encoder(model: Any) -> None:
    ids, mask = tokens(3, max(LENGTHS), 0), mask_of(LENGTHS)
    theirs = model.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
    ours = T5Layers(model.encoder).encode(ids, mask)
    for row, length in enumerate(LENGTHS):
        assert_same(ours[row, :length], theirs[row, :length])


@pytest.mark.parametrize("lengths", [LENGTHS, (50, 50, 50)], ids=["ragged source", "even source"])
@torch.inference_mode()
def test_decoder_goes_on_behind_its_cache(model: Any, lengths: tuple[int, ...]) -> None:
    source_mask = mask_of(lengths)
    source = model.encoder(input_ids=tokens(3, max(lengths), 0), attention_mask=source_mask).last_hidden_state
    ours_cache, theirs_cache = (EncoderDecoderCache(DynamicCache(), DynamicCache()) for _ in range(2))
    decoder, columns = T5Layers(model.decoder), 0
    for number, width in enumerate(WIDTHS):
        columns += width
        fed, mask = tokens(3, width, number), torch.ones(3, columns, dtype=torch.long)
        mask[1, :5] = 0  # a row that has fewer columns of its own
        theirs = model.decoder(
            input_ids=fed,
            attention_mask=mask,
            encoder_hidden_states=source,
            encoder_attention_mask=source_mask,
            past_key_values=theirs_cache,
            use_cache=True,
        ).last_hidden_state
        padded = source_mask if min(lengths) < max(lengths) else None
        ours = decoder.decode(fed, mask, ours_cache, source, padded)
        own = slice(5, None) if number == 0 else slice(None)  # what a padding token says is nobody's business
        assert_same(ours[1, own], theirs[1, own])
        assert_same(ours[[0, 2]], theirs[[0, 2]])
    for ours_layer, theirs_layer in zip(
        ours_cache.self_attention_cache.layers, theirs_cache.self_attention_cache.layers, strict=True
    ):
        assert ours_layer.keys.shape == theirs_layer.keys.shape
