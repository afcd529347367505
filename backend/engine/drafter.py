"""A small checkpoint's draft head drafts tags for a large model.

The published checkpoints have no draft head. The encoder of the bundled gner-mini reads the same words and labels in a
fraction of the time of one of their passes. The large model verifies every draft, so its labels do not change.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from backend.engine.codec import Codec, EncodedPrompt
from backend.engine.draft_head import best_tags
from backend.engine.family import Family
from backend.errors import BackendError
from backend.ner.bio import BEGIN_INDICES, begin_index


@dataclass(frozen=True, slots=True)
class Draft:
    """Drafted tags of one prompt, as indices. Lists have one entry per word.

    `probabilities` are what the draft head gives its tags. `label_tags` are the B- tags to try where a word turns out
    to begin an entity.
    """

    tags: list[int]
    probabilities: list[float]
    label_tags: list[int]


class Drafter:
    """Drafts with a small checkpoint. It belongs to the model's thread, as the model does."""

    def __init__(self, family: Family, codec: Codec) -> None:
        """`family` must have a draft head."""
        self._family = family
        self._codec = codec

    @torch.inference_mode()
    def draft(self, prompts: Sequence[EncodedPrompt]) -> list[Draft | None]:
        """One draft per prompt, in order; None for words or labels that the small checkpoint cannot encode."""
        encoded = [self._encode(prompt) for prompt in prompts]
        fitting = [prompt for prompt in encoded if prompt is not None]
        if not fitting:
            return [None] * len(prompts)
        drafts = iter(head_drafts(self._family, fitting))
        return [None if prompt is None else next(drafts) for prompt in encoded]

    def _encode(self, prompt: EncodedPrompt) -> EncodedPrompt | None:
        try:
            return self._codec.encode(prompt.labels, prompt.words) if prompt.words else None
        except BackendError:  # too long, or labels that it cannot tell apart: decoding works without a draft
            return None


def head_drafts(family: Family, prompts: Sequence[EncodedPrompt]) -> list[Draft]:
    """The drafts of a family's own draft head, for prompts of its own codec."""
    logits = family.draft(prompts, family.begin(prompts))
    assert logits is not None, "this family has no draft head"
    return drafts_of(logits, prompts)


def drafts_of(logits: torch.Tensor, prompts: Sequence[EncodedPrompt]) -> list[Draft]:
    """Tag logits (batch, words, tags) -> drafts."""
    tags = best_tags(logits, [len(prompt.words) for prompt in prompts])
    probabilities = logits.softmax(-1).amax(-1).tolist()
    labels = logits[..., BEGIN_INDICES].argmax(-1).tolist()
    return [
        Draft(row, sure[: len(row)], [begin_index(label) for label in best[: len(row)]])
        for row, sure, best in zip(tags, probabilities, labels, strict=True)
    ]
