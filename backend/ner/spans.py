"""The representations of text: Passage, Question, Word, Window, TaggedWord, Span.

`start` and `end` are always half-open offsets in Unicode code points of the task text.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Passage:
    """A text that is labelled as a whole."""

    text: str
    breaks: tuple[int, ...] = ()  # ascending offsets where a new block begins: no word or span crosses them


@dataclass(frozen=True, slots=True)
class Question:
    """A passage, and the prompt words of the labels that the model is asked for."""

    passage: Passage
    labels: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Word:
    """A unit that gets one label. `text[start:end] == text_of_word`, always."""

    start: int
    end: int
    text: str


@dataclass(frozen=True, slots=True)
class Window:
    """Consecutive words that the model labels together.

    `first_word` is the index of words[0] in the whole text. Of two overlapping windows, each keeps the words nearer to
    its middle: `keep_from` and `keep_to` are the half-open range of word indices (in the whole text) whose labels come
    from this window.
    """

    first_word: int
    words: tuple[Word, ...]
    keep_from: int
    keep_to: int


@dataclass(frozen=True, slots=True)
class TaggedWord:
    """A word with the BIO tag that the model gave it (`O`, `B-person`, `I-person`)."""

    word: Word
    tag: str
    probability: float


@dataclass(frozen=True, slots=True)
class Span:
    """An entity. `score` is its probability, 0..1."""

    start: int
    end: int
    label: str
    score: float
