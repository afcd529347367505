"""The recipe of a bundled checkpoint: everything but the corpora that determines what `train-base` makes.

This module does not import torch.
"""

import json
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from backend.errors import InvalidSettings
from backend.pretraining.mixture import MixtureRecipe
from backend.pretraining.schemas import SchemaRecipe

_Part = TypeVar("_Part")


@dataclass(frozen=True, slots=True)
class Architecture:
    """The size of the vocabulary, of the decoder and of the draft head. The encoder is MiniLM's."""

    vocabulary_size: int
    vocabulary_min_count: int  # pieces that occur this often in the corpora are always kept
    decoder_layers: int
    decoder_hidden: int
    decoder_heads: int
    decoder_ffn: int
    draft_size: int
    max_tokens: int  # in the source, and likewise in the target
    marks_case: bool = False  # the encoder also reads the case of each word, see ner.casing


@dataclass(frozen=True, slots=True)
class Schedule:
    """A step takes one batch from every process. The rate rises linearly, stays, and falls linearly to zero."""

    steps: int
    warmup_steps: int
    decay_steps: int
    batch_tokens: int  # source and target tokens in the batch of one process, without padding
    pool_examples: int  # samples that are drawn together, sorted by length and divided into batches
    processes: int
    pretrained_rate: float
    new_rate: float
    weight_decay: float
    clip_norm: float
    average_decay: float  # for the moving average of the weights, which is what is published
    report_every_steps: int
    dropout: float = 0.0  # of hidden states and of attention, in the encoder

    def rate(self, step: int) -> float:
        """The rate at a step as a fraction of the peak, 0..1. Steps count from 0."""
        rising = (step + 1) / max(1, self.warmup_steps)
        falling = (self.steps - step) / max(1, self.decay_steps)
        return max(0.0, min(1.0, rising, falling))


@dataclass(frozen=True, slots=True)
class LossWeights:
    """The weight of each loss. The loss of the decisions has weight 1."""

    copy: float  # the whole answer, softmax over the tokens of the batch
    draft: float  # the draft head's tags
    pointer: float  # cross-attention to the current word, and to the label to write
    smoothing: float = 0.0  # of the decisions and of the draft: this share of the target goes to all legal options


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that a recipe file holds. Its JSON has the same structure."""

    name: str
    template: str
    seed: int
    held_out: float  # fraction of each train split that is held out, for choosing between checkpoints
    held_out_max: int  # at most so many sentences of each corpus
    architecture: Architecture
    schedule: Schedule
    losses: LossWeights
    mixture: MixtureRecipe
    schemas: SchemaRecipe = field(default_factory=SchemaRecipe)
    written_held_out_max: int = 100  # at most so many passages of each dev part of the written corpus


def read_recipe(path: Path) -> Recipe:
    """Read a recipe file. Raises InvalidSettings, naming the file and what is wrong with it."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidSettings(f"cannot read the recipe {path}: {error}") from error
    parts = {
        "architecture": Architecture,
        "schedule": Schedule,
        "losses": LossWeights,
        "mixture": MixtureRecipe,
        "schemas": SchemaRecipe,
    }
    try:
        return _build(Recipe, {key: _build(parts[key], value) if key in parts else value for key, value in raw.items()})
    except ValueError as error:
        raise InvalidSettings(f"the recipe {path}: {error}") from error


def _build(kind: type[_Part], raw: Any) -> _Part:
    if not isinstance(raw, Mapping):
        raise ValueError(f"expected an object for {kind.__name__}, found {raw!r}")
    known = {part.name for part in fields(kind)}  # type: ignore[arg-type]
    # fields added after the first checkpoint have defaults, so its recipe can still be read
    expected = {
        part.name
        for part in fields(kind)  # type: ignore[arg-type]
        if part.default is MISSING and part.default_factory is MISSING
    }
    if not expected <= raw.keys() <= known:
        raise ValueError(
            f"{kind.__name__} lacks {sorted(expected - raw.keys())} and does not know {sorted(raw.keys() - known)}"
        )
    return kind(**raw)


def write_recipe(recipe: Recipe, path: Path) -> None:
    """Write a recipe file that `read_recipe` can read."""
    path.write_text(json.dumps(asdict(recipe), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
