"""Stored labels and their prompt words: the one place where one is converted to the other.

Inside, a label is what is stored (in Label Studio, in examples). A prompt asks for readable words instead, and one
label may be asked for in several ways: `chem` as *chemical* and as *drug*.
"""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PromptLabel:
    """One way to ask for a label."""

    words: str  # in the prompt
    label: str  # as it is stored


@dataclass(frozen=True, slots=True)
class PromptLabels:
    """The labels of one control with their prompt words, in the label config's order. `words` are distinct."""

    entries: tuple[PromptLabel, ...]

    @classmethod
    def of(cls, pairs: Iterable[tuple[str, str]]) -> "PromptLabels":
        """From (words, label) pairs."""
        return cls(tuple(PromptLabel(words, label) for words, label in pairs))

    @property
    def words(self) -> tuple[str, ...]:
        """All that a prompt asks for."""
        return tuple(entry.words for entry in self.entries)

    @property
    def labels(self) -> tuple[str, ...]:
        """Each stored label once."""
        return tuple(dict.fromkeys(entry.label for entry in self.entries))

    def label_of(self, words: str) -> str:
        """The stored label that these prompt words ask for. Raises KeyError for words of another label set."""
        return {entry.words: entry.label for entry in self.entries}[words]

    def words_of(self, label: str) -> str | None:
        """The first prompt words of a stored label; None for a label that is not among these."""
        return next((entry.words for entry in self.entries if entry.label == label), None)
