"""BIO tags: all arithmetic between tags, their indices in a label set, and the mentions that they mark.

A tag is a name (`O`, `B-person`, `I-person`) or, where speed counts, its index among the tags of a label set: 0 is O,
then B- and I- of each label in turn. Labels are counted from 0.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

OUTSIDE = "O"
_BEGIN, _INSIDE = "B-", "I-"

# -- tags as names


def begin_tag(label: str) -> str:
    """The tag of an entity's first word: `person` -> `B-person`."""
    return _BEGIN + label


def inside_tag(label: str) -> str:
    """The tag of an entity's other words: `person` -> `I-person`."""
    return _INSIDE + label


def tag_names(labels: Sequence[str]) -> list[str]:
    """The BIO tags of a label set, by index: O first, then B- and I- of each label in order."""
    return [OUTSIDE] + [tag for label in labels for tag in (begin_tag(label), inside_tag(label))]


def label_of(tag: str) -> str | None:
    """`B-person` -> `person`; O -> None."""
    return None if tag == OUTSIDE else tag[len(_BEGIN) :]


def is_begin_tag(tag: str) -> bool:
    """Whether an entity begins at a word with this tag."""
    return tag.startswith(_BEGIN)


def is_inside_tag(tag: str) -> bool:
    """Whether a word with this tag continues an entity."""
    return tag.startswith(_INSIDE)


def is_tag(text: str) -> bool:
    """Whether a text is O, or B- or I- with a label."""
    return text == OUTSIDE or ((is_begin_tag(text) or is_inside_tag(text)) and bool(text[len(_BEGIN) :].strip()))


def as_begin(tag: str) -> str:
    """`I-person` -> `B-person`; other tags stay."""
    return begin_tag(tag[len(_INSIDE) :]) if is_inside_tag(tag) else tag


def begun_anew(tags: Sequence[str]) -> tuple[str, ...]:
    """Tags cut out of a longer text: an entity that the cut divides begins at the first word."""
    return (as_begin(tags[0]), *tags[1:])


def entity_tags(label: str, num_words: int) -> list[str]:
    """The tags of one entity's words."""
    return [begin_tag(label), *[inside_tag(label)] * (num_words - 1)][:num_words]


# -- tags as indices

OUTSIDE_INDEX = 0
BEGIN_INDICES = slice(1, None, 2)  # the B- tags, by label


def num_tags(num_labels: int) -> int:
    """How many tags a label set has."""
    return 1 + 2 * num_labels


def begin_index(label: int) -> int:
    """The B- tag of a label."""
    return 1 + 2 * label


def inside_index(label: int) -> int:
    """The I- tag of a label."""
    return 2 + 2 * label


def label_index(tag: int) -> int:
    """The label of a B- or I- tag."""
    return (tag - 1) // 2


def is_inside(tag: int) -> bool:
    """Whether a tag is an I-: an even number, but not O."""
    return tag % 2 == 0 and tag != OUTSIDE_INDEX


def begin_of(tag: int) -> int:
    """The B- tag of the label of an I- tag."""
    return tag - 1


def continuation_of(tag: int) -> int:
    """The tag of the next word of the same entity: a B- becomes its I-, an I- and O stay."""
    return tag + tag % 2


def may_follow(tag: int, before: int) -> bool:
    """The BIO rule: O and B- may follow any tag, an I- only the B- or I- of its own label."""
    return not is_inside(tag) or tag == continuation_of(before)


def made_legal(tag: int, before: int) -> int:
    """The tag itself if it may follow `before`. Another I- continues the open entity, or begins one of its label."""
    if may_follow(tag, before):
        return tag
    return begin_of(tag) if before == OUTSIDE_INDEX else continuation_of(before)


# -- sets of tags

TagSet: TypeAlias = int  # bit i is set if the tag with index i belongs to the set; `&` is the intersection


def tag_set(tags: Iterable[int]) -> TagSet:
    """The set of these tags."""
    found = 0
    for tag in tags:
        found = with_tag(found, tag)
    return found


def with_tag(tags: TagSet, tag: int) -> TagSet:
    """The set with one more tag."""
    return tags | 1 << tag


def contains(tags: TagSet, tag: int) -> bool:
    """Whether a tag belongs to a set."""
    return bool(tags >> tag & 1)


def first_of(tags: TagSet) -> int:
    """The tag with the lowest index in a set that is not empty."""
    return (tags & -tags).bit_length() - 1


def allowed_anywhere(num_labels: int) -> TagSet:
    """O and the B- of each label."""
    return tag_set([OUTSIDE_INDEX, *map(begin_index, range(num_labels))])


# -- tagged words


class Tagged(Protocol):
    """Words and one BIO tag for each: a Sentence, or anything else that has both."""

    @property
    def words(self) -> tuple[str, ...]:
        """The words in order."""
        ...

    @property
    def tags(self) -> tuple[str, ...]:
        """The tag of each word."""
        ...


@dataclass(frozen=True, slots=True)
class Sentence:
    """Words and their BIO tags, one each."""

    words: tuple[str, ...]
    tags: tuple[str, ...]
    labels: tuple[str, ...] = ()  # what this sentence is asked for; empty: the label set of its corpus


@dataclass(frozen=True, slots=True)
class Mention:
    """An entity in a sentence. `start` and `end` are word indices, half-open."""

    start: int
    end: int
    label: str


def mentions(tags: Sequence[str]) -> list[Mention]:
    """The entities that BIO tags mark. An I- that continues nothing begins an entity."""
    found: list[Mention] = []
    start, open_label = 0, None
    for index, tag in enumerate([*tags, OUTSIDE]):
        label = label_of(tag)
        if open_label is not None and (is_begin_tag(tag) or label != open_label):
            found.append(Mention(start, index, open_label))
            open_label = None
        if label is not None and open_label is None:
            start, open_label = index, label
    return found


def mentions_by_label(tagged: Iterable[Tagged]) -> dict[str, list[tuple[str, ...]]]:
    """The words of each entity, by label."""
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
        tags += entity_tags(mention.label, len(chosen))
        done = mention.end
    return Sentence((*words, *row.words[done:]), (*tags, *row.tags[done:]))
