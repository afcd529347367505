"""The key-value caches of a batch that is being decoded, and which columns belong to which row.

The target's key-value cache is right-aligned: of `num_columns` columns, row r owns the last `filled[r]`. This keeps
T5's relative positions exact, for they depend on distances only. The other families get absolute positions.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache

# Called between two steps of a decoder, which may be used for other prompts meanwhile.
GiveWay = Callable[[], None]


def go_on() -> None:
    """Give way to nobody."""


@dataclass(frozen=True, slots=True)
class Feed:
    """The next tokens as tensors. `tokens` and `positions` are (batch, width), `mask` is (batch, num_columns + width).

    `positions` count a row's own columns from 0. Padding at the right of short rows is masked out.
    """

    tokens: Tensor
    positions: Tensor
    mask: Tensor


@dataclass(slots=True)
class DecodingState:
    """What a batch carries from pass to pass: the encoded source or prompt, and the target decoded so far."""

    cache: EncoderDecoderCache | DynamicCache  # passed to the model
    target: DynamicCache  # the part of `cache` that grows with the target
    start_tokens: list[int]  # per row, the token before the target's first
    filled: list[int]  # per row, how many columns of `target` it owns
    num_columns: int = 0
    source_hidden: Tensor | None = None  # (batch, source, hidden), where there is an encoder
    source_mask: Tensor | None = None  # (batch, source), where sources are padded

    def feed(self, fed: Sequence[Sequence[int]], device: torch.device) -> Feed:
        """Rows of tokens -> tensors for the columns that follow the present ones."""
        width = max(map(len, fed))
        tokens = [list(row) + [0] * (width - len(row)) for row in fed]
        positions = [
            [filled + min(i, len(row) - 1) for i in range(width)] for filled, row in zip(self.filled, fed, strict=True)
        ]
        filled = torch.tensor(self.filled, device=device)[:, None]
        lengths = torch.tensor([len(row) for row in fed], device=device)[:, None]
        column = torch.arange(self.num_columns + width, device=device)[None, :]
        mask = (column >= self.num_columns - filled) & (column < self.num_columns + lengths)
        return Feed(torch.tensor(tokens, device=device), torch.tensor(positions, device=device), mask.long())

    def keep(self, accepted: Sequence[int], rows: Sequence[int]) -> None:
        """Keep the first `accepted[r]` of the tokens just fed to row r, then drop all rows but `rows`.

        Rows are right-aligned again, in as few columns as the longest row needs.
        """
        before, device = self.num_columns, self._layers[0].keys.device
        self.filled = [filled + new for filled, new in zip(self.filled, accepted, strict=True)]
        if len(rows) < len(self.filled):
            self._select_rows(list(rows))
            accepted = [accepted[row] for row in rows]
        self.num_columns = max(self.filled)
        ends = torch.tensor([before + new for new in accepted], device=device)[:, None]
        if len(set(accepted)) == 1:
            self._slice(before + accepted[0] - self.num_columns, before + accepted[0])
        else:
            self._gather((torch.arange(-self.num_columns, 0, device=device)[None, :] + ends).clamp(min=0))

    @property
    def _layers(self) -> list[Any]:
        """The target's key-value cache by layer: (batch, heads, num_columns, size) each."""
        return self.target.layers

    def _select_rows(self, rows: list[int]) -> None:
        index = torch.tensor(rows, device=self._layers[0].keys.device)
        source: Any = self.cache.cross_attention_cache.layers if isinstance(self.cache, EncoderDecoderCache) else []
        for layer in [*source, *self._layers]:
            own = index.to(layer.keys.device)  # the layers of a large model may be on several devices
            layer.keys, layer.values = layer.keys[own], layer.values[own]
        self.filled = [self.filled[row] for row in rows]
        self.start_tokens = [self.start_tokens[row] for row in rows]
        if self.source_hidden is not None:
            self.source_hidden = self.source_hidden[index.to(self.source_hidden.device)]
        if self.source_mask is not None:
            self.source_mask = self.source_mask[index.to(self.source_mask.device)]

    def _slice(self, begin: int, end: int) -> None:
        for layer in self._layers:
            layer.keys, layer.values = layer.keys[:, :, begin:end], layer.values[:, :, begin:end]

    def _gather(self, columns: Tensor) -> None:
        """`columns` (batch, new_num_columns): the old column that each new one is copied from."""
        for layer in self._layers:
            batch, heads, _, size = layer.keys.shape
            index = columns[:, None, :, None].expand(batch, heads, columns.shape[1], size).to(layer.keys.device)
            layer.keys, layer.values = layer.keys.gather(2, index), layer.values.gather(2, index)
