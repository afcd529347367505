"""Labelled texts -> lessons: windows of tagged words, cut as at serving time. No torch."""

import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from backend.engine.batches import batches_by_length
from backend.engine.codec import Codec
from backend.learning.examples import Example
from backend.ner import segment
from backend.ner.bio import Mention, begun_anew, replace_mentions
from backend.ner.spans import Question, Span

_HELD_OUT = 5  # one task in this many is held out
_POOL_BATCHES = 6  # as many batches are sorted by length together


@dataclass(frozen=True, slots=True)
class Lesson:
    """A window to train on: the labels that are asked for, the words, and their correct tags."""

    labels: tuple[str, ...]
    words: tuple[str, ...]
    tags: tuple[str, ...]
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Split:
    """A project's examples: those to train on, and those held out."""

    train: tuple[Example, ...]
    held_out: tuple[Example, ...]


def is_held_out(project: str, task_id: int) -> bool:
    """Whether a task is never trained on: a fifth of them. It depends on project key and task id only."""
    return _hash(f"{project}:{task_id}") % _HELD_OUT == 0


def split(project: str, examples: Sequence[Example]) -> Split:
    """`project` is the project's key."""
    return Split(
        tuple(example for example in examples if not is_held_out(project, example.task_id)),
        tuple(example for example in examples if is_held_out(project, example.task_id)),
    )


def folds(project: str, examples: Sequence[Example], number: int) -> list[tuple[Example, ...]]:
    """The examples in parts of about equal size. The parts depend on project key and task ids only."""
    ordered = sorted(examples, key=lambda example: (_hash(f"fold:{project}:{example.task_id}"), example.task_id))
    return [part for part in (tuple(ordered[index::number]) for index in range(number)) if part]


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def lessons_of(codec: Codec, question: Question, spans: Sequence[Span], weight: float = 1.0) -> list[Lesson]:
    """One lesson per window. They hold every word, O included. Raises PromptTooLong if the labels leave no room."""
    passage, labels = question.passage, question.labels
    words = segment.words(passage.text, passage.breaks)
    tags = segment.tags_of(spans, words)
    return [
        Lesson(
            labels,
            tuple(word.text for word in window.words),
            begun_anew(tags[window.first_word : window.first_word + len(window.words)]),
            weight,
        )
        for window in codec.windows(labels, passage.text, words, passage.breaks)
    ]


Mentions = Mapping[str, Sequence[tuple[str, ...]]]  # the words of entities, by label


def swapped(lesson: Lesson, others: Mentions, share: float, rng: random.Random) -> Lesson:
    """The lesson with a random part of its entities, about `share` (0..1), replaced by others of their label."""

    def choose(mention: Mention) -> tuple[str, ...]:
        own = lesson.words[mention.start : mention.end]
        return rng.choice(others[mention.label]) if rng.random() < share else own

    other = replace_mentions(lesson, choose)
    return replace(lesson, words=other.words, tags=other.tags)


def random_batches(lengths: Sequence[int], max_rows: int, max_tokens: int, rng: random.Random) -> list[list[int]]:
    """Indices of `lengths`, which are in tokens, in random batches of like length; padded, none exceeds `max_tokens`.

    A row that is longer than `max_tokens` is a batch of its own.
    """
    shuffled = list(range(len(lengths)))
    rng.shuffle(shuffled)
    batches: list[list[int]] = []
    pool_rows = max_rows * _POOL_BATCHES
    for begin in range(0, len(shuffled), pool_rows):
        pool = shuffled[begin : begin + pool_rows]
        of_pool = batches_by_length([lengths[index] for index in pool], max_tokens=max_tokens, max_rows=max_rows)
        batches += [[pool[place] for place in batch] for batch in of_pool]
    rng.shuffle(batches)
    return batches
