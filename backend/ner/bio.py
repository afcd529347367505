"""BIO tags: all arithmetic between tags, their indices in a label set, and the mentions that they mark."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

OUTSIDE = "O"


def tag_names(labels: Sequence[str]) -> list[str]:
    """The BIO tags of a label set, O first, then B- and I- of each label in order."""
    return [OUTSIDE] + [f"{prefix}-{label}" for label in labels for prefix in ("B", "I")]


def label_of(tag: str) -> str | None:
    """`B-person` -> `person`; O -> None."""
    return None if tag == OUTSIDE else tag[2:]


class Tagged(Protocol):
    """Words and their BIO tags, one each: a Sentence, or what else has both."""

    @property
    def words(self) -> tuple[str, ...]: ...
    @property
    def tags(self) -> tuple[str, ...]: ...


@dataclass(frozen=True, slots=True)
class Sentence:
    """Words and their BIO tags, one each."""

    words: tuple[str, ...]
    tags: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Mention:
    """An entity in a sentence. `start` and `end` are word indices, half-open."""

    start: int
    end: int
    label: str


def mentions(tags: Sequence[str]) -> list[Mention]:
    """BIO tags -> entities. An I- that continues nothing begins one."""
    found: list[Mention] = []
    start, open_label = 0, None
    for index, tag in enumerate([*tags, OUTSIDE]):
        label = label_of(tag)
        if open_label is not None and (tag.startswith("B-") or label != open_label):
            found.append(Mention(start, index, open_label))
            open_label = None
        if label is not None and open_label is None:
            start, open_label = index, label
    return found


def mentions_by_label(tagged: Iterable[Tagged]) -> dict[str, list[tuple[str, ...]]]:
    """The words of all entities, by label."""
    found: dict[str, list[tuple[str, ...]]] = {}
    for row in tagged:
        for mention in mentions(row.tags):
            found.setdefault(mention.label, []).append(row.words[mention.start : mention.end])
    return found


def replace_mentions(row: Tagged, choose: Callable[[Mention], tuple[str, ...]]) -> Sentence:
    """The sentence with each entity's words replaced by what `choose` gives for it, in order."""
    words: list[str] = []
    tags: list[str] = []
    done = 0
    for mention in mentions(row.tags):
        words += row.words[done : mention.start]
        tags += row.tags[done : mention.start]
        chosen = choose(mention)
        words += chosen
        tags += [f"B-{mention.label}"] + [f"I-{mention.label}"] * (len(chosen) - 1)
        done = mention.end
    return Sentence((*words, *row.words[done:]), (*tags, *row.tags[done:]))
