"""What differs between model families: T5, encoder-decoders of BERT's kind, and causal models.

A Family begins a batch's memory (the encoder's output, or the prompt's key-values) and runs target tokens behind it.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import DynamicCache, EncoderDecoderCache
from transformers.activations import NewGELUActivation

from backend.engine.batches import batches_by_length
from backend.engine.codec import EncodedPrompt
from backend.engine.draft_head import DraftHead, stack
from backend.engine.memory import Feed, Memory
from backend.engine.t5 import T5Layers

# Measured on 16 prompts of 200 tokens, T5-base in bfloat16, and of 100 tokens, gner-mini: see docs/decisions.md.
_CPU_ENCODER_TOKENS = 512

Encoder = Callable[[Tensor, Tensor], Tensor]  # ids and mask (batch, source) -> hidden states (batch, source, hidden)


class Family(Protocol):
    """One kind of model, loaded."""

    model: Any

    def begin(self, prompts: Sequence[EncodedPrompt]) -> Memory:
        """Run the encoder, or the prompts but for their last token."""
        ...

    def draft(self, prompts: Sequence[EncodedPrompt], memory: Memory) -> Tensor | None:
        """Guessed tag logits (batch, words, tags) from the source alone, or None if this checkpoint makes none."""
        ...

    def forward(self, memory: Memory, feed: Feed) -> Tensor:
        """Hidden states (batch, width, hidden) of the fed tokens, whose key-values become columns of the memory."""
        ...

    def logits(self, hidden: Tensor, token_ids: Tensor) -> Tensor:
        """The head's rows of `token_ids` (tokens,) at `hidden` (positions, hidden): (positions, tokens) in float32."""
        ...


def pad(
    rows: Sequence[Sequence[int]], device: torch.device, *, left: bool = False, fill: int = 0
) -> tuple[Tensor, Tensor]:
    """Rows of token ids -> ids and mask, both (batch, longest)."""
    width = max(len(row) for row in rows)
    ids, mask = [], []
    for row in rows:
        gap = width - len(row)
        ids.append([fill] * gap + list(row) if left else list(row) + [fill] * gap)
        mask.append([0] * gap + [1] * len(row) if left else [1] * len(row) + [0] * gap)
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def _encode(encoder: Encoder, prompts: Sequence[EncodedPrompt], start_token: int, device: torch.device) -> Memory:
    """Run the encoder; the target is still empty."""
    ids, mask = pad([prompt.source_ids for prompt in prompts], device)
    lengths = [len(prompt.source_ids) for prompt in prompts]
    target = DynamicCache()
    return Memory(
        cache=EncoderDecoderCache(target, DynamicCache()),
        target=target,
        start_tokens=[start_token] * len(prompts),
        filled=[0] * len(prompts),
        source_hidden=_encoded(encoder, ids, mask, lengths),
        source_mask=mask if min(lengths) < max(lengths) else None,
    )


def _encoded(encoder: Encoder, ids: Tensor, mask: Tensor, lengths: Sequence[int]) -> Tensor:
    """The encoder's output (batch, source, hidden).

    A CPU gets a few rows of like length at a time: there is less padding, and what a layer works on stays in its cache.
    """
    if ids.device.type != "cpu":
        return encoder(ids, mask)
    groups = batches_by_length(lengths, max_tokens=_CPU_ENCODER_TOKENS)
    widths = [max(lengths[row] for row in rows) for rows in groups]
    parts = [encoder(ids[rows, :width], mask[rows, :width]) for rows, width in zip(groups, widths, strict=True)]
    states = parts[0].new_zeros(*ids.shape, parts[0].shape[-1])
    for rows, width, part in zip(groups, widths, parts, strict=True):
        states[rows, :width] = part
    return states


def _rows_of_head(hidden: Tensor, head: Any, token_ids: Tensor) -> Tensor:
    """The linear layer `head` at these tokens alone: (positions, tokens) in float32. It may lie on another GPU."""
    token_ids = token_ids.to(head.weight.device)
    logits: Tensor = hidden.to(head.weight.device) @ head.weight[token_ids].T
    if head.bias is not None:
        logits = logits + head.bias[token_ids]
    return logits.float()


def _fuse_gelu(model: Any) -> None:
    """GELU's tanh form in one step instead of eight: in bfloat16 it is also rounded once instead of eight times."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, NewGELUActivation):
                setattr(module, name, nn.GELU(approximate="tanh"))


class T5Family:
    """T5 and Flan-T5."""

    def __init__(self, model: Any) -> None:
        _fuse_gelu(model)
        self.model = model
        self._encoder, self._decoder = T5Layers(model.encoder), T5Layers(model.decoder)
        self._scale = model.config.d_model**-0.5 if model.config.scale_decoder_outputs else 1.0

    def begin(self, prompts: Sequence[EncodedPrompt]) -> Memory:
        start_token = self.model.config.decoder_start_token_id
        return _encode(self._encoder.encode, prompts, start_token, self.model.device)

    def draft(self, prompts: Sequence[EncodedPrompt], memory: Memory) -> Tensor | None:  # noqa: ARG002
        return None

    def forward(self, memory: Memory, feed: Feed) -> Tensor:
        assert isinstance(memory.cache, EncoderDecoderCache)
        assert memory.source_hidden is not None
        return self._decoder.decode(feed.tokens, feed.mask, memory.cache, memory.source_hidden, memory.source_mask)

    def logits(self, hidden: Tensor, token_ids: Tensor) -> Tensor:
        return _rows_of_head(hidden * self._scale, self.model.lm_head, token_ids)


class BertToBertFamily:
    """EncoderDecoderModel with a BERT encoder and a BERT decoder: the bundled checkpoint's kind."""

    def __init__(self, model: Any, draft_head: DraftHead | None = None) -> None:
        """The draft head reads the encoder's output as it is; the decoder a projection, where their sizes differ."""
        self.model = model
        self._projection = getattr(model, "enc_to_dec_proj", nn.Identity())
        self._draft_head = draft_head
        self._head = model.decoder.cls.predictions

    def begin(self, prompts: Sequence[EncodedPrompt]) -> Memory:
        start_token = self.model.generation_config.decoder_start_token_id
        return _encode(self._run_encoder, prompts, start_token, self.model.device)

    def _run_encoder(self, ids: Tensor, mask: Tensor) -> Tensor:
        hidden: Tensor = self.model.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        return hidden

    def draft(self, prompts: Sequence[EncodedPrompt], memory: Memory) -> Tensor | None:
        places = [prompt.places for prompt in prompts if prompt.places is not None]
        if self._draft_head is None or memory.source_hidden is None or len(places) < len(prompts):
            return None
        logits: Tensor = self._draft_head(memory.source_hidden, *stack(places, self.model.device))
        return logits

    def forward(self, memory: Memory, feed: Feed) -> Tensor:
        output = self.model.decoder.bert(
            input_ids=feed.tokens,
            position_ids=feed.positions,
            attention_mask=feed.mask,
            encoder_hidden_states=self._projection(memory.source_hidden),
            encoder_attention_mask=memory.source_mask,
            past_key_values=memory.cache,
            use_cache=True,
        )
        hidden: Tensor = output.last_hidden_state
        return hidden

    def logits(self, hidden: Tensor, token_ids: Tensor) -> Tensor:
        transformed = self._head.transform(hidden)
        return _rows_of_head(transformed, self._head.decoder, token_ids)


class CausalFamily:
    """LLaMA and other decoder-only models. The prompt's key-values are the memory."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def begin(self, prompts: Sequence[EncodedPrompt]) -> Memory:
        heads = [prompt.source_ids[:-1] for prompt in prompts]
        cache = DynamicCache()
        lengths = [len(head) for head in heads]
        if max(lengths):
            ids, mask = pad(heads, self.model.device, left=True)
            positions = (mask.cumsum(1) - 1).clamp(min=0)
            self.model.model(
                input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
            )
        return Memory(
            cache=cache,
            target=cache,
            start_tokens=[prompt.source_ids[-1] for prompt in prompts],
            filled=lengths,
            num_columns=max(lengths),
        )

    def draft(self, prompts: Sequence[EncodedPrompt], memory: Memory) -> Tensor | None:  # noqa: ARG002
        return None

    def forward(self, memory: Memory, feed: Feed) -> Tensor:
        output = self.model.model(
            input_ids=feed.tokens,
            position_ids=feed.positions,
            attention_mask=feed.mask,
            past_key_values=memory.cache,
            use_cache=True,
        )
        hidden: Tensor = output.last_hidden_state
        return hidden

    def logits(self, hidden: Tensor, token_ids: Tensor) -> Tensor:
        return _rows_of_head(hidden, self.model.lm_head, token_ids)
