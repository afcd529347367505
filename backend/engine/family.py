"""What differs between model families: T5, encoder-decoders of BERT's kind, and causal models.

A Family begins a batch's decoding state (the encoder's output, or the prompt's key-value cache), then runs target
tokens on it.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import DynamicCache, EncoderDecoderCache
from transformers.activations import NewGELUActivation

from backend.engine.batches import batches_by_length
from backend.engine.codec import EncodedPrompt
from backend.engine.decoding_state import DecodingState, Feed, GiveWay, go_on
from backend.engine.draft_head import DraftHead, stack
from backend.engine.t5 import T5Layers

# Padded tokens per encoder call on a CPU. docs/lab-notes.md has the measurements, on T5-base and gner-mini.
_CPU_ENCODER_TOKENS = 512

# ids, mask and kinds of words, if there are any (batch, source) -> hidden states (batch, source, hidden)
Encoder = Callable[[Tensor, Tensor, Tensor | None], Tensor]


class Family(Protocol):
    """One kind of model, loaded."""

    model: Any

    def begin(self, prompts: Sequence[EncodedPrompt], give_way: GiveWay = go_on) -> DecodingState:
        """Run the encoder; a causal model runs the prompts without their last token.

        Gives way between two parts, where it works in parts.
        """
        ...

    def draft(self, prompts: Sequence[EncodedPrompt], state: DecodingState) -> Tensor | None:
        """The draft head's tag logits (batch, words, tags), from the source alone. None without a draft head."""
        ...

    def forward(self, state: DecodingState, feed: Feed) -> Tensor:
        """Hidden states (batch, width, hidden) of the fed tokens, which become columns of the key-value cache."""
        ...

    def logits(self, hidden: Tensor, token_ids: Tensor) -> Tensor:
        """The language model head at `hidden` (positions, hidden), for `token_ids` (tokens,) only.

        Returns (positions, tokens) in float32.
        """
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


def _encode(
    encoder: Encoder, prompts: Sequence[EncodedPrompt], start_token: int, device: torch.device, give_way: GiveWay
) -> DecodingState:
    """Run the encoder; the target is still empty."""
    ids, mask = pad([prompt.source_ids for prompt in prompts], device)
    kinds = source_kinds(prompts, device)
    lengths = [len(prompt.source_ids) for prompt in prompts]
    target = DynamicCache()
    return DecodingState(
        cache=EncoderDecoderCache(target, DynamicCache()),
        target=target,
        start_tokens=[start_token] * len(prompts),
        filled=[0] * len(prompts),
        source_hidden=_encoded(encoder, ids, mask, kinds, lengths, give_way),
        source_mask=mask if min(lengths) < max(lengths) else None,
    )


def source_kinds(prompts: Sequence[EncodedPrompt], device: torch.device) -> Tensor | None:
    """How the word of each source token is written, (batch, source), or None for a checkpoint that is not told."""
    rows = [prompt.source_kinds for prompt in prompts if prompt.source_kinds is not None]
    return pad(rows, device)[0] if len(rows) == len(prompts) else None


def _encoded(
    encoder: Encoder, ids: Tensor, mask: Tensor, kinds: Tensor | None, lengths: Sequence[int], give_way: GiveWay
) -> Tensor:
    """The encoder's output (batch, source, hidden).

    On a CPU, a few rows of like length run at a time: less is padded, and a layer's data stays in the CPU's cache.
    """
    if ids.device.type != "cpu":
        return encoder(ids, mask, kinds)
    groups = batches_by_length(lengths, max_tokens=_CPU_ENCODER_TOKENS)
    widths = [max(lengths[row] for row in rows) for rows in groups]
    parts: list[Tensor] = []
    for rows, width in zip(groups, widths, strict=True):
        parts.append(encoder(ids[rows, :width], mask[rows, :width], None if kinds is None else kinds[rows, :width]))
        give_way()
    states = parts[0].new_zeros(*ids.shape, parts[0].shape[-1])
    for rows, width, part in zip(groups, widths, parts, strict=True):
        states[rows, :width] = part
    return states


def _rows_of_head(hidden: Tensor, head: Any, token_ids: Tensor) -> Tensor:
    """The linear layer `head` for these tokens only: (positions, tokens) in float32. It may be on another GPU."""
    token_ids = token_ids.to(head.weight.device)
    logits: Tensor = hidden.to(head.weight.device) @ head.weight[token_ids].T
    if head.bias is not None:
        logits = logits + head.bias[token_ids]
    return logits.float()


def _fuse_gelu(model: Any) -> None:
    """Run GELU's tanh form as one operation instead of eight; in bfloat16 it is then rounded once, not eight times."""
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

    def begin(self, prompts: Sequence[EncodedPrompt], give_way: GiveWay = go_on) -> DecodingState:
        """Run the encoder, with our own layers."""
        start_token = self.model.config.decoder_start_token_id
        return _encode(self._run_encoder, prompts, start_token, self.model.device, give_way)

    def _run_encoder(self, ids: Tensor, mask: Tensor, kinds: Tensor | None) -> Tensor:  # noqa: ARG002
        return self._encoder.encode(ids, mask)

    def draft(self, prompts: Sequence[EncodedPrompt], state: DecodingState) -> Tensor | None:  # noqa: ARG002
        """None: T5 checkpoints have no draft head."""
        return None

    def forward(self, state: DecodingState, feed: Feed) -> Tensor:
        """Run the decoder, with our own layers."""
        assert isinstance(state.cache, EncoderDecoderCache)
        assert state.source_hidden is not None
        return self._decoder.decode(feed.tokens, feed.mask, state.cache, state.source_hidden, state.source_mask)

    def logits(self, hidden: Tensor, token_ids: Tensor) -> Tensor:
        """The head, after the scaling that some T5 checkpoints use."""
        return _rows_of_head(hidden * self._scale, self.model.lm_head, token_ids)


class BertToBertFamily:
    """EncoderDecoderModel with a BERT encoder and a BERT decoder, as the bundled checkpoint is."""

    def __init__(self, model: Any, draft_head: DraftHead | None = None) -> None:
        """The draft head reads the encoder's output directly. The decoder reads a projection if their sizes differ."""
        self.model = model
        self._projection = getattr(model, "enc_to_dec_proj", nn.Identity())
        self._draft_head = draft_head
        self._head = model.decoder.cls.predictions

    def begin(self, prompts: Sequence[EncodedPrompt], give_way: GiveWay = go_on) -> DecodingState:
        """Run the encoder."""
        start_token = self.model.generation_config.decoder_start_token_id
        return _encode(self._run_encoder, prompts, start_token, self.model.device, give_way)

    def _run_encoder(self, ids: Tensor, mask: Tensor, kinds: Tensor | None) -> Tensor:
        output = self.model.encoder(input_ids=ids, attention_mask=mask, token_type_ids=kinds)
        hidden: Tensor = output.last_hidden_state
        return hidden

    def draft(self, prompts: Sequence[EncodedPrompt], state: DecodingState) -> Tensor | None:
        """Run the draft head; None if there is none, or if a prompt has no places."""
        places = [prompt.places for prompt in prompts if prompt.places is not None]
        if self._draft_head is None or state.source_hidden is None or len(places) < len(prompts):
            return None
        logits: Tensor = self._draft_head(state.source_hidden, *stack(places, self.model.device))
        return logits

    def forward(self, state: DecodingState, feed: Feed) -> Tensor:
        """Run the decoder on the projected source."""
        output = self.model.decoder.bert(
            input_ids=feed.tokens,
            position_ids=feed.positions,
            attention_mask=feed.mask,
            encoder_hidden_states=self._projection(state.source_hidden),
            encoder_attention_mask=state.source_mask,
            past_key_values=state.cache,
            use_cache=True,
        )
        hidden: Tensor = output.last_hidden_state
        return hidden

    def logits(self, hidden: Tensor, token_ids: Tensor) -> Tensor:
        """The head, after BERT's transform."""
        transformed = self._head.transform(hidden)
        return _rows_of_head(transformed, self._head.decoder, token_ids)


class CausalFamily:
    """LLaMA and other decoder-only models. The prompt is in the same key-value cache as the target."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def begin(self, prompts: Sequence[EncodedPrompt], give_way: GiveWay = go_on) -> DecodingState:  # noqa: ARG002
        """Run the prompts without their last token."""
        heads = [prompt.source_ids[:-1] for prompt in prompts]
        cache = DynamicCache()
        lengths = [len(head) for head in heads]
        if max(lengths):
            ids, mask = pad(heads, self.model.device, left=True)
            positions = (mask.cumsum(1) - 1).clamp(min=0)
            self.model.model(
                input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
            )
        return DecodingState(
            cache=cache,
            target=cache,
            start_tokens=[prompt.source_ids[-1] for prompt in prompts],
            filled=lengths,
            num_columns=max(lengths),
        )

    def draft(self, prompts: Sequence[EncodedPrompt], state: DecodingState) -> Tensor | None:  # noqa: ARG002
        """None: causal checkpoints have no draft head."""
        return None

    def forward(self, state: DecodingState, feed: Feed) -> Tensor:
        """Run the model on the next tokens."""
        output = self.model.model(
            input_ids=feed.tokens,
            position_ids=feed.positions,
            attention_mask=feed.mask,
            past_key_values=state.cache,
            use_cache=True,
        )
        hidden: Tensor = output.last_hidden_state
        return hidden

    def logits(self, hidden: Tensor, token_ids: Tensor) -> Tensor:
        """The head, directly."""
        return _rows_of_head(hidden, self.model.lm_head, token_ids)
