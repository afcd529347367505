"""T5's layers as serving runs them.

transformers' own stacks add the position bias to the mask again in every layer, attend to the source through a bias of
zeros, and ask in every layer what the model's config says. Here both biases are made once a pass. The linear layers are
called as the modules that they are, so adapters and quantised layers work as they do in transformers. float16, in which
T5's feed-forward layers overflow, is not provided for.

Source: Raffel et al. 2020, "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer" (T5).
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import EncoderDecoderCache


class T5Layers:
    """The encoder or the decoder of a T5 model, which may be spread over several devices."""

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
        """Tokens (batch, width) behind the cache's columns -> hidden states (batch, width, hidden).

        `mask` is (batch, columns + width), `source_mask` (batch, source), None where no source is padded. The tokens'
        key-values become columns of the cache; those of the source are computed by the first call and kept there.
        """
        width, columns = tokens.shape[1], mask.shape[1]
        hidden: Tensor = self._stack.embed_tokens(tokens)
        behind = torch.ones(width, columns, dtype=torch.bool, device=mask.device).tril(columns - width)
        bias = _hide(self._distance_bias(width, columns), mask.bool()[:, None, None, :] & behind)
        source_bias = None
        if source_mask is not None:
            seen = source_mask.bool()[:, None, None, :].expand(-1, bias.shape[1], width, -1)
            source_bias = _hide(hidden.new_zeros(()), seen)
        for index, block in enumerate(self._stack.block):
            attention, cross, feed_forward = block.layer
            hidden, bias = _to_device_of(block, hidden, bias)
            normed = _norm(attention.layer_norm, hidden)
            keys, values = cache.self_attention_cache.update(*_key_values(attention.SelfAttention, normed), index)
            hidden = hidden + _attend(attention.SelfAttention, normed, keys, values, bias)
            if not cache.is_updated.get(index):
                (source,) = _to_device_of(block, source_hidden)
                cache.cross_attention_cache.update(*_key_values(cross.EncDecAttention, source), index)
                cache.is_updated[index] = True
            if source_bias is not None:
                (source_bias,) = _to_device_of(block, source_bias)
            kept: Any = cache.cross_attention_cache.layers[index]
            normed = _norm(cross.layer_norm, hidden)
            hidden = hidden + _attend(cross.EncDecAttention, normed, kept.keys, kept.values, source_bias)
            hidden = hidden + feed_forward.DenseReluDense(_norm(feed_forward.layer_norm, hidden))
        return _norm(self._stack.final_layer_norm, hidden)

    def _distance_bias(self, width: int, columns: int) -> Tensor:
        """(1, heads, width, columns): what distance adds to the scores of the last `width` of `columns` tokens."""
        attention = self._stack.block[0].layer[0].SelfAttention
        embedding = attention.relative_attention_bias
        # from the last query's distance to the first column to the first query's to the last
        distances = torch.arange(1 - columns, width, device=embedding.weight.device)
        buckets = attention._relative_position_bucket(
            distances,
            bidirectional=not attention.is_decoder,
            num_buckets=attention.relative_attention_num_buckets,
            max_distance=attention.relative_attention_max_distance,
        )
        by_distance: Tensor = embedding(buckets).T
        # each query sees the same row of distances, one further on
        return by_distance.unfold(1, columns, 1).flip(1)[None]


def _to_device_of(block: Any, *tensors: Tensor) -> list[Tensor]:
    device = block.layer[0].layer_norm.weight.device
    return [tensor.to(device) for tensor in tensors]


def _norm(norm: Any, hidden: Tensor) -> Tensor:
    """In the norm's own type: `hidden` is float32 where a model keeps its last feed-forward weights in it."""
    weight: Tensor = norm.weight
    hidden = hidden.to(weight.device)  # the last layer's may be another
    normed = functional.rms_norm(hidden, weight.shape, weight.to(hidden.dtype), norm.variance_epsilon)
    return normed.to(weight.dtype)


def _hide(bias: Tensor, seen: Tensor) -> Tensor:
    """The bias where `seen`, and the lowest number elsewhere: a row that sees nothing stays finite."""
    return torch.where(seen.to(bias.device), bias, torch.finfo(bias.dtype).min)


def _key_values(attention: Any, states: Tensor) -> tuple[Tensor, Tensor]:
    """Both (batch, heads, tokens, size)."""
    return _by_head(attention, attention.k(states)), _by_head(attention, attention.v(states))


def _attend(attention: Any, normed: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
    """(batch, tokens, hidden): what is added to the hidden states. T5 does not scale its scores."""
    query = _by_head(attention, attention.q(normed))
    if query.device.type == "cpu" and query.dtype == torch.bfloat16:
        found = _attend_in_steps(query, keys, values, bias)
    else:
        found = functional.scaled_dot_product_attention(query, keys, values, attn_mask=bias, scale=1.0)
    added: Tensor = attention.o(found.transpose(1, 2).flatten(2))
    return added


def _attend_in_steps(query: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
    """What torch's fused attention computes; in bfloat16 on a CPU that one takes up to twice the time."""
    queries, keys, values = (states.flatten(0, 1) for states in (query, keys, values))
    if bias is None:
        scores = torch.bmm(queries, keys.transpose(1, 2))
    else:
        scores = torch.baddbmm(bias.flatten(0, 1), queries, keys.transpose(1, 2))
    return torch.bmm(scores.softmax(-1), values).view_as(query)


def _by_head(attention: Any, states: Tensor) -> Tensor:
    return states.view(*states.shape[:2], attention.n_heads, attention.key_value_proj_dim).transpose(1, 2)
