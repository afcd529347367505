"""The recipe of the bundled checkpoint: all that decides what `train-base` makes, besides the corpora. No torch."""

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
    """What is added to the MiniLM encoder."""

    vocabulary_size: int
    vocabulary_min_count: int  # pieces seen so often in the corpora are always kept
    decoder_layers: int
    decoder_hidden: int
    decoder_heads: int
    decoder_ffn: int
    draft_size: int
    max_tokens: int  # of the source, and of the target
    marks_case: bool = False  # the encoder is told how each word is written, see ner.casing


@dataclass(frozen=True, slots=True)
class Schedule:
    """One step is one batch of every process. Rates rise, stay, and fall to zero, each linearly."""

    steps: int
    warmup_steps: int
    decay_steps: int
    batch_tokens: int  # source and target of one process's batch, without padding
    pool_examples: int  # drawn at once, sorted by length, cut into batches
    processes: int
    pretrained_rate: float
    new_rate: float
    weight_decay: float
    clip_norm: float
    average_decay: float  # of the moving average of the weights, which is what is published
    report_every_steps: int

    def rate(self, step: int) -> float:
        """The part of the peak rate at a step counted from 0, 0..1."""
        rising = (step + 1) / max(1, self.warmup_steps)
        falling = (self.steps - step) / max(1, self.decay_steps)
        return max(0.0, min(1.0, rising, falling))


@dataclass(frozen=True, slots=True)
class LossWeights:
    """How much each loss counts beside the one at the decisions, whose weight is 1."""

    copy: float  # the whole answer, softmax over the batch's own vocabulary
    draft: float  # the draft head's tags
    pointer: float  # cross-attention at the word in question, and at the label to be written


@dataclass(frozen=True, slots=True)
class Recipe:
    """Read from a JSON file of the same shape."""

    name: str
    template: str
    seed: int
    held_out: float  # part of each train split that is never trained on, to choose by
    held_out_max: int  # sentences of one corpus
    architecture: Architecture
    schedule: Schedule
    losses: LossWeights
    mixture: MixtureRecipe
    schemas: SchemaRecipe = field(default_factory=SchemaRecipe)
    written_held_out_max: int = 100  # passages of each of its dev parts that a report is about


def read_recipe(path: Path) -> Recipe:
    """Raises InvalidSettings, naming the file and what is wrong with it."""
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
    # what came after the first checkpoint has a default, so that its recipe can still be read
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
    """The inverse of read_recipe."""
    path.write_text(json.dumps(asdict(recipe), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
