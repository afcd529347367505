"""The model with its losses, and batches of encoded samples.

The model is a `transformers` EncoderDecoderModel of two BERTs. It learns from four losses:

- decisions: where the grammar leaves a choice, cross-entropy over the legal tokens only. Decoding does the same (see
  `ner.grammar`).
- copy: cross-entropy over the whole answer, with a softmax over the tokens of the batch.
- draft: the draft head's tags (see `engine.draft_head`).
- pointer: one head of cross-attention learns to attend to the current word and to the label to write (guided
  alignment, Chen et al. 2016, arXiv:1607.01628). These places are known exactly, and the decoder takes long to find
  them by itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from backend.engine.draft_head import DraftHead
from backend.pretraining.encoding import EncodedSample, SampleEncoder

_PAD_MULTIPLE = 8  # few different shapes, little padding
_IGNORED = -100  # the target that cross_entropy ignores by default


@dataclass(frozen=True, slots=True)
class Batch:
    """Encoded samples as tensors.

    Sizes: B rows, S source tokens, T target tokens, W words, L labels, N choices, K options of a choice.
    """

    source: Tensor  # (B, S)
    source_mask: Tensor
    source_kinds: Tensor
    target_in: Tensor  # (B, T), begins with the start token
    target_mask: Tensor
    vocabulary: Tensor  # (U,), every token id in the targets and options of the batch
    target: Tensor  # (B, T), indices into vocabulary, -100 at padding
    choice_rows: Tensor  # (N,), index into the B * T positions
    choice_options: Tensor  # (N, K), indices into vocabulary
    choice_legal: Tensor  # (N, K), False at padding
    choice_correct: Tensor  # (N,), index into K
    word_pointers: Tensor  # (B, T, 2), half-open source positions, empty where there is none
    label_pointers: Tensor  # (B, T, 2)
    word_positions: Tensor  # (B, W)
    label_spans: Tensor  # (B, L, 2)
    tags: Tensor  # (B, W), -100 at padding

    def to(self, device: torch.device) -> "Batch":
        """The batch on a device."""
        return Batch(**{name: getattr(self, name).to(device, non_blocking=True) for name in self.__slots__})


def collate(rows: Sequence[EncodedSample], sample_encoder: SampleEncoder) -> Batch:
    """Pad the samples to one length and stack them."""
    targets = [row.target for row in rows]
    options = [choice.options for row in rows for choice in row.choices]
    vocabulary = np.unique(np.fromiter(chain.from_iterable([*targets, *options]), dtype=np.int64))
    num_target = _round_up(max(map(len, targets)))
    source, source_mask = _pad([row.source for row in rows])
    target_in, target_mask = _pad([sample_encoder.decoder_input(target) for target in targets])
    padded_targets, _ = _pad(targets)
    target = np.where(target_mask, np.searchsorted(vocabulary, padded_targets).clip(max=len(vocabulary) - 1), _IGNORED)
    padded_options, legal = _pad(options, multiple=1)
    tags, tag_mask = _pad([row.tags for row in rows], multiple=1)
    arrays = {
        "source": source,
        "source_mask": source_mask,
        "source_kinds": _pad([row.source_kinds or [0] * len(row.source) for row in rows])[0],
        "target_in": target_in,
        "target_mask": target_mask,
        "vocabulary": vocabulary,
        "target": target,
        "choice_rows": np.array(
            [index * num_target + choice.position for index, row in enumerate(rows) for choice in row.choices]
        ),
        "choice_options": np.searchsorted(vocabulary, padded_options).clip(max=len(vocabulary) - 1),
        "choice_legal": legal.astype(bool),
        "choice_correct": np.array([choice.correct for row in rows for choice in row.choices]),
        "word_pointers": _pad_spans([row.word_pointers for row in rows], num_target),
        "label_pointers": _pad_spans([row.label_pointers for row in rows], num_target),
        "word_positions": _pad([row.word_positions for row in rows], multiple=1)[0],
        "label_spans": _pad_spans([row.label_spans for row in rows], max(len(row.label_spans) for row in rows)),
        "tags": np.where(tag_mask, tags, _IGNORED),
    }
    return Batch(**{name: torch.from_numpy(array) for name, array in arrays.items()})


def _round_up(length: int, multiple: int = _PAD_MULTIPLE) -> int:
    return -(-length // multiple) * multiple


def _pad(rows: Sequence[Sequence[int]], multiple: int = _PAD_MULTIPLE) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    width = _round_up(max(map(len, rows)), multiple)
    ids = np.zeros((len(rows), width), dtype=np.int64)
    mask = np.zeros((len(rows), width), dtype=np.int64)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = row
        mask[index, : len(row)] = 1
    return ids, mask


def _pad_spans(rows: Sequence[Sequence[tuple[int, int]]], width: int) -> NDArray[np.int64]:
    spans = np.zeros((len(rows), width, 2), dtype=np.int64)
    for index, row in enumerate(rows):
        spans[index, : len(row)] = row
    return spans


class Learner(nn.Module):
    """The model and its draft head, with their losses."""

    def __init__(self, model: Any, head: DraftHead) -> None:
        super().__init__()
        self.model = model
        self.head = head

    def losses(self, batch: Batch, smoothing: float = 0.0) -> dict[str, Tensor]:
        """`decisions`, `copy`, `draft` and `pointer`: each a float32 scalar.

        `smoothing` is the share of the target, 0..1, that goes to all legal options alike.
        """
        source_mask = batch.source_mask
        encoded = self.model.encoder(
            input_ids=batch.source, attention_mask=source_mask, token_type_ids=batch.source_kinds
        ).last_hidden_state
        output = self.model.decoder.bert(
            input_ids=batch.target_in,
            attention_mask=batch.target_mask,
            encoder_hidden_states=self.model.enc_to_dec_proj(encoded),
            encoder_attention_mask=source_mask,
            use_cache=False,
            output_attentions=True,
        )
        predictions = self.model.decoder.cls.predictions
        hidden = predictions.transform(output.last_hidden_state)
        logits = functional.linear(
            hidden, predictions.decoder.weight[batch.vocabulary], predictions.decoder.bias[batch.vocabulary]
        ).float()
        at_choices = logits.flatten(0, 1)[batch.choice_rows].gather(1, batch.choice_options)
        at_choices = at_choices.masked_fill(~batch.choice_legal, float("-inf"))
        drafts = self.head(encoded, batch.word_positions, batch.label_spans)
        # the last layer writes the label; the one before must find the word first
        by_layer = output.cross_attentions
        pointer = _pointer_loss(by_layer[-2], batch.word_pointers) + _pointer_loss(by_layer[-1], batch.label_pointers)
        return {
            "decisions": _cross_entropy(at_choices, batch.choice_correct, smoothing),
            "copy": functional.cross_entropy(logits.flatten(0, 1), batch.target.flatten(), ignore_index=_IGNORED),
            "draft": _cross_entropy(drafts.flatten(0, 1), batch.tags.flatten(), smoothing),
            "pointer": pointer,
        }


def _cross_entropy(logits: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    """Cross-entropy of logits (N, K), where illegal options are minus infinity, and targets (N,), smoothed."""
    exact = functional.cross_entropy(logits, targets, ignore_index=_IGNORED)
    if smoothing == 0:
        return exact
    counted = targets != _IGNORED
    legal = torch.isfinite(logits) & counted[:, None]
    surprise = -functional.log_softmax(logits, dim=-1).masked_fill(~legal, 0.0)
    uniform = (surprise.sum(-1) / legal.sum(-1).clamp(min=1)).sum() / counted.sum().clamp(min=1)
    return (1 - smoothing) * exact + smoothing * uniform


def _pointer_loss(attention: Tensor, pointers: Tensor) -> Tensor:
    """The mean negative log of the attention (B, heads, T, S) that head 0 gives to the spans `pointers` (B, T, 2)."""
    columns = torch.arange(attention.shape[-1], device=attention.device)
    within = (columns >= pointers[..., :1]) & (columns < pointers[..., 1:])
    attended = (attention[:, 0].float() * within).sum(-1)
    has_span = pointers[..., 1] > pointers[..., 0]
    return -(torch.log(attended + 1e-3) * has_span).sum() / has_span.sum().clamp(min=1)
