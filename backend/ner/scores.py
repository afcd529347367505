"""Counts of entities found, and what is computed from them. No torch."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Counts:
    """Entities that were found and are right, that were found, and that there are."""

    right: int
    found: int
    there: int

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(self.right + other.right, self.found + other.found, self.there + other.there)

    @property
    def f1(self) -> float:
        """0..1; 0 where nothing is there and nothing was found."""
        return 2 * self.right / (self.found + self.there) if self.found + self.there else 0.0

    @property
    def precision(self) -> float:
        """0..1; 0 where nothing was found."""
        return self.right / self.found if self.found else 0.0

    @property
    def recall(self) -> float:
        """0..1; 0 where nothing is there."""
        return self.right / self.there if self.there else 0.0
