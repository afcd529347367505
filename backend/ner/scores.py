"""Counts of entities, and what is computed from them."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Counts:
    """Entities: predicted and correct, predicted, expected."""

    correct: int
    predicted: int
    expected: int

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(self.correct + other.correct, self.predicted + other.predicted, self.expected + other.expected)

    @property
    def f1(self) -> float:
        """0..1; 0 where nothing is expected and nothing predicted."""
        total = self.predicted + self.expected
        return 2 * self.correct / total if total else 0.0

    @property
    def precision(self) -> float:
        """0..1; 0 where nothing is predicted."""
        return self.correct / self.predicted if self.predicted else 0.0

    @property
    def recall(self) -> float:
        """0..1; 0 where nothing is expected."""
        return self.correct / self.expected if self.expected else 0.0
