"""Labelled texts -> what one training step sees: windows of words with a tag each, cut as at serving time. No torch."""

import hashlib
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from backend.engine.codec import Codec
from backend.learning.examples import Example
from backend.ner import segment
from backend.ner.bio import Mention, begun_anew, replace_mentions
from backend.ner.spans import Question, Span

_HELD_OUT = 5  # one task of so many is held out
_POOL_BATCHES = 6  # batches of like length are cut from so many batches' lessons


@dataclass(frozen=True, slots=True)
class Lesson:
    """A window: the labels that are asked for, its words, and the tags that the model should answer."""

    labels: tuple[str, ...]
    words: tuple[str, ...]
    tags: tuple[str, ...]
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Split:
    """A project's examples: to train on, and held out."""

    train: tuple[Example, ...]
    held_out: tuple[Example, ...]


def is_held_out(project: str, task_id: int) -> bool:
    """A fifth of a project's tasks is never trained on. Which, only project key and task id decide."""
    return _hash(f"{project}:{task_id}") % _HELD_OUT == 0


def split(project: str, examples: Sequence[Example]) -> Split:
    """`project` is the project's key."""
    return Split(
        tuple(example for example in examples if not is_held_out(project, example.task_id)),
        tuple(example for example in examples if is_held_out(project, example.task_id)),
    )


def folds(project: str, examples: Sequence[Example], number: int) -> list[tuple[Example, ...]]:
    """The examples in parts of like size, in an order that only project key and task ids decide."""
    ordered = sorted(examples, key=lambda example: (_hash(f"fold:{project}:{example.task_id}"), example.task_id))
    return [part for part in (tuple(ordered[index::number]) for index in range(number)) if part]


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def lessons_of(codec: Codec, question: Question, spans: Sequence[Span], weight: float = 1.0) -> list[Lesson]:
    """One lesson per window; every word is in one, O included. Raises PromptTooLong if the labels leave no room."""
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
    """The lesson with about the part `share` of its entities, 0..1, replaced by others of their label."""

    def choose(mention: Mention) -> tuple[str, ...]:
        own = lesson.words[mention.start : mention.end]
        return rng.choice(others[mention.label]) if rng.random() < share else own

    other = replace_mentions(lesson, choose)
    return replace(lesson, words=other.words, tags=other.tags)


_Item = TypeVar("_Item")


def batches(
    items: Iterable[tuple[int, _Item]], max_items: int, max_tokens: int, rng: random.Random
) -> list[list[_Item]]:
    """Items in random batches of like length; each is given with its tokens.

    A batch has at most `max_items`, and padded at most `max_tokens` tokens, if it has more than one.
    """
    shuffled = list(items)
    rng.shuffle(shuffled)
    found: list[list[_Item]] = []
    pool = max_items * _POOL_BATCHES
    for begin in range(0, len(shuffled), pool):
        batch: list[_Item] = []
        for tokens, item in sorted(shuffled[begin : begin + pool], key=lambda pair: pair[0]):
            if batch and (len(batch) == max_items or (len(batch) + 1) * tokens > max_tokens):
                found.append(batch)
                batch = []
            batch.append(item)
        found.append(batch)
    rng.shuffle(found)
    return found
