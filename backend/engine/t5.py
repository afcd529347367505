"""T5's layers, run with less overhead than in transformers.

transformers adds the position bias to the mask again in every layer, attends to the source through a bias of zeros, and
reads the model's config in every layer. Here both biases are computed once per pass. The linear layers are called as
modules, so adapters and quantised layers work as in transformers. float16 is not supported: T5's feed-forward layers
overflow in it.

Source: Raffel et al. 2020, "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer" (T5).
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import EncoderDecoderCache


class T5Layers:
    """The encoder or the decoder of a T5 model, whose layers may be on several devices."""

    def __init__(self, stack: Any) -> None:
        """`stack` is the model's `encoder` or `decoder`."""
        self._stack = stack

    def encode(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Token ids and mask, both (batch, source) -> hidden states (batch, source, hidden)."""
        hidden: Tensor = self._stack.embed_tokens(ids)
        bias = _hide(self._distance_bias(ids.shape[1], ids.shape[1]), mask.bool()[:, None, None, :])
        for block in self._stack.block:
            attention, feed_forward = block.layer
            hidden, bias = _to_device_of(block, hidden, bias)
            normed = _norm(attention.layer_norm, hidden)
            keys, values = _key_values(attention.SelfAttention, normed)
            hidden = hidden + _attend(attention.SelfAttention, normed, keys, values, bias)
            hidden = hidden + feed_forward.DenseReluDense(_norm(feed_forward.layer_norm, hidden))
        return _norm(self._stack.final_layer_norm, hidden)

    def decode(
        self,
        tokens: Tensor,
        mask: Tensor,
        cache: EncoderDecoderCache,
        source_hidden: Tensor,
        source_mask: Tensor | None,
    ) -> Tensor:
        """Tokens (batch, width) that follow the cache's columns -> hidden states (batch, width, hidden).

        `mask` is (batch, columns + width), `source_mask` (batch, source); None if no source is padded. The tokens
        become columns of the key-value cache; the source's key-values are computed by the first call and kept there.
        """
        hidden: Tensor = self._stack.embed_tokens(tokens)
        bias = self._causal_bias(tokens.shape[1], mask)
        source_bias = None if source_mask is None else _source_bias(source_mask, bias, hidden)
        for index, block in enumerate(self._stack.block):
            attention, cross, feed_forward = block.layer
            hidden, bias = _to_device_of(block, hidden, bias)
            normed = _norm(attention.layer_norm, hidden)
            keys, values = cache.self_attention_cache.update(*_key_values(attention.SelfAttention, normed), index)
            hidden = hidden + _attend(attention.SelfAttention, normed, keys, values, bias)
            if source_bias is not None:
                (source_bias,) = _to_device_of(block, source_bias)
            keys, values = _source_key_values(block, index, cache, source_hidden)
            normed = _norm(cross.layer_norm, hidden)
            hidden = hidden + _attend(cross.EncDecAttention, normed, keys, values, source_bias)
            hidden = hidden + feed_forward.DenseReluDense(_norm(feed_forward.layer_norm, hidden))
        return _norm(self._stack.final_layer_norm, hidden)

    def _causal_bias(self, width: int, mask: Tensor) -> Tensor:
        """(batch, heads, width, columns): the distance bias, without columns that are masked or come later."""
        columns = mask.shape[1]
        earlier = torch.ones(width, columns, dtype=torch.bool, device=mask.device).tril(columns - width)
        return _hide(self._distance_bias(width, columns), mask.bool()[:, None, None, :] & earlier)

    def _distance_bias(self, width: int, columns: int) -> Tensor:
        """(1, heads, width, columns): the relative position bias of the last `width` of `columns` tokens."""
        attention = self._stack.block[0].layer[0].SelfAttention
        embedding = attention.relative_attention_bias
        # from the last query and the first column to the first query and the last column
        distances = torch.arange(1 - columns, width, device=embedding.weight.device)
        buckets = attention._relative_position_bucket(
            distances,
            bidirectional=not attention.is_decoder,
            num_buckets=attention.relative_attention_num_buckets,
            max_distance=attention.relative_attention_max_distance,
        )
        by_distance: Tensor = embedding(buckets).T
        # each query sees the same row of distances, shifted by one
        return by_distance.unfold(1, columns, 1).flip(1)[None]


def _source_bias(source_mask: Tensor, bias: Tensor, hidden: Tensor) -> Tensor:
    """(batch, heads, width, source): zero, except at padding. `bias` is that of self-attention."""
    _, heads, width, _ = bias.shape
    seen = source_mask.bool()[:, None, None, :].expand(-1, heads, width, -1)
    return _hide(hidden.new_zeros(()), seen)


def _source_key_values(
    block: Any, index: int, cache: EncoderDecoderCache, source_hidden: Tensor
) -> tuple[Tensor, Tensor]:
    """The source's keys and values in block `index`, computed on first use."""
    if not cache.is_updated.get(index):
        (source,) = _to_device_of(block, source_hidden)
        cache.cross_attention_cache.update(*_key_values(block.layer[1].EncDecAttention, source), index)
        cache.is_updated[index] = True
    cached: Any = cache.cross_attention_cache.layers[index]
    return cached.keys, cached.values


def _to_device_of(block: Any, *tensors: Tensor) -> list[Tensor]:
    device = block.layer[0].layer_norm.weight.device
    return [tensor.to(device) for tensor in tensors]


def _norm(norm: Any, hidden: Tensor) -> Tensor:
    """RMS norm. The result has the norm's dtype: `hidden` is float32 after feed-forward weights kept in float32."""
    weight: Tensor = norm.weight
    hidden = hidden.to(weight.device)  # the last layer may be on another device
    normed = functional.rms_norm(hidden, weight.shape, weight.to(hidden.dtype), norm.variance_epsilon)
    return normed.to(weight.dtype)


def _hide(bias: Tensor, seen: Tensor) -> Tensor:
    """The bias where `seen`, elsewhere the lowest finite number, so that a row that sees nothing has no NaN."""
    return torch.where(seen.to(bias.device), bias, torch.finfo(bias.dtype).min)


def _key_values(attention: Any, states: Tensor) -> tuple[Tensor, Tensor]:
    """Both (batch, heads, tokens, size)."""
    return _by_head(attention, attention.k(states)), _by_head(attention, attention.v(states))


def _attend(attention: Any, normed: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
    """Attention as (batch, tokens, hidden), to be added to the hidden states. T5 does not scale its scores."""
    query = _by_head(attention, attention.q(normed))
    if query.device.type == "cpu" and query.dtype == torch.bfloat16:
        found = _attend_in_steps(query, keys, values, bias)
    else:
        found = functional.scaled_dot_product_attention(query, keys, values, attn_mask=bias, scale=1.0)
    added: Tensor = attention.o(found.transpose(1, 2).flatten(2))
    return added


def _attend_in_steps(query: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
    """The same as torch's fused attention, which takes up to twice the time in bfloat16 on a CPU."""
    queries, keys, values = (states.flatten(0, 1) for states in (query, keys, values))
    if bias is None:
        scores = torch.bmm(queries, keys.transpose(1, 2))
    else:
        scores = torch.baddbmm(bias.flatten(0, 1), queries, keys.transpose(1, 2))
    return torch.bmm(scores.softmax(-1), values).view_as(query)


def _by_head(attention: Any, states: Tensor) -> Tensor:
    return states.view(*states.shape[:2], attention.n_heads, attention.key_value_proj_dim).transpose(1, 2)
