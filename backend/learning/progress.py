"""How far a training is, as all who report, store and show it know it. No torch."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a training is. Steps count over the candidate and, if it is cross-validated, the models of its folds."""

    stage: str  # such as "preparing", "training", "cross-validating 1 of 3", "judging"
    step: int = 0
    steps: int = 0  # 0 as long as their number is not known
    loss: float | None = None  # per decision, averaged over the last steps
    eta_s: float | None = None

    def __str__(self) -> str:
        """A line of text for a log or a terminal."""
        parts = [self.stage]
        if self.steps:
            parts.append(f"{self.step}/{self.steps}")
        if self.loss is not None:
            parts.append(f"loss {self.loss:.4f}")
        if self.eta_s is not None:
            parts.append(f"{self.eta_s:.0f} s left")
        return ", ".join(parts)

    def to_json(self) -> dict[str, Any]:
        """As it stands in a job's meta data and in /job_status."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Progress":
        """The reverse of `to_json`; fields that a later release has added are left out."""
        return cls(**{each.name: value[each.name] for each in fields(cls) if each.name in value})
