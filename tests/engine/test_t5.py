"""Our T5 layers compute what those of transformers compute."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache

from backend.engine.t5 import T5Layers
from tests.support import tiny

RAGGED, EVEN = (7, 90, 33), (50, 50, 50)  # beyond the distances that have a bucket each
WIDTHS = (40, 1, 17)
LACKING = 5  # columns that one row has fewer of its own than the others

Say = Callable[[Any, tuple[int, ...]], Tensor]


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


def tokens(width: int, seed: int) -> Tensor:
    return torch.randint(3, 100, (3, width), generator=torch.Generator().manual_seed(seed))


def mask_of(lengths: tuple[int, ...]) -> Tensor:
    return (torch.arange(max(lengths))[None, :] < torch.tensor(lengths)[:, None]).long()


def encoded_by_transformers(model: Any, lengths: tuple[int, ...]) -> Tensor:
    mask = mask_of(lengths)
    hidden: Tensor = model.encoder(input_ids=tokens(max(lengths), 0), attention_mask=mask).last_hidden_state
    return hidden[mask.bool()]


def encoded(model: Any, lengths: tuple[int, ...]) -> Tensor:
    mask = mask_of(lengths)
    return T5Layers(model.encoder).encode(tokens(max(lengths), 0), mask)[mask.bool()]


def decoded_by_transformers(model: Any, lengths: tuple[int, ...]) -> Tensor:
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())

    def forward(fed: Tensor, mask: Tensor, source: Tensor, source_mask: Tensor) -> Tensor:
        output = model.decoder(
            input_ids=fed,
            attention_mask=mask,
            encoder_hidden_states=source,
            encoder_attention_mask=source_mask,
            past_key_values=cache,
            use_cache=True,
        )
        hidden: Tensor = output.last_hidden_state
        return hidden

    return in_passes(model, lengths, forward)


def decoded(model: Any, lengths: tuple[int, ...]) -> Tensor:
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    layers = T5Layers(model.decoder)

    def forward(fed: Tensor, mask: Tensor, source: Tensor, source_mask: Tensor) -> Tensor:
        return layers.decode(fed, mask, cache, source, source_mask if min(lengths) < max(lengths) else None)

    return in_passes(model, lengths, forward)


def in_passes(
    model: Any, lengths: tuple[int, ...], forward: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
) -> Tensor:
    """Several passes, each after the columns of the passes before; the hidden states of each row's own tokens."""
    source_mask = mask_of(lengths)
    source = model.encoder(input_ids=tokens(max(lengths), 0), attention_mask=source_mask).last_hidden_state
    mask = torch.ones(3, sum(WIDTHS), dtype=torch.long)
    mask[1, :LACKING] = 0
    said, columns = [], 0
    for number, width in enumerate(WIDTHS):
        columns += width
        said.append(forward(tokens(width, number), mask[:, :columns], source, source_mask))
    return torch.cat(said, dim=1)[mask.bool()]


@pytest.mark.parametrize("lengths", [RAGGED, EVEN], ids=["ragged", "even"])
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [(encoded, encoded_by_transformers), (decoded, decoded_by_transformers)],
    ids=["encoder", "decoder"],
)
@pytest.mark.parametrize("seed", range(3))
def test_layers_compute_what_those_of_transformers_compute(
    ours: Say, theirs: Say, lengths: tuple[int, ...], seed: int
) -> None:
    model = tiny.t5_model(seed)
    exact = theirs(model, lengths)
    torch.testing.assert_close(ours(model, lengths), exact, rtol=1e-5, atol=1e-5)
    rounded = model.bfloat16()
    assert_as_exact(ours, theirs, rounded, lengths, exact)
    for name, module in rounded.named_modules():
        if name.endswith("wo"):
            module.float()  # as transformers may keep them beside layers of less precision
    assert_as_exact(ours, theirs, rounded, lengths, exact)


def assert_as_exact(ours: Say, theirs: Say, rounded: Any, lengths: tuple[int, ...], exact: Tensor) -> None:
    error, their_error = ((say(rounded, lengths) - exact).abs().mean() for say in (ours, theirs))
    assert 0 < error < 1.5 * their_error
