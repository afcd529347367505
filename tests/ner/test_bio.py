"""Tags as names and as indices: both follow the same rules."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.ner import bio
from backend.ner.bio import Mention, Sentence

LABELS = ("person", "work of art")
NAMES = bio.tag_names(LABELS)
TAGS = st.integers(min_value=0, max_value=len(NAMES) - 1)


def test_indices_are_those_of_the_names() -> None:
    assert NAMES == ["O", "B-person", "I-person", "B-work of art", "I-work of art"]
    assert len(NAMES) == bio.num_tags(len(LABELS))
    assert NAMES[bio.OUTSIDE_INDEX] == bio.OUTSIDE
    assert NAMES[bio.BEGIN_INDICES] == [bio.begin_tag(label) for label in LABELS]
    for index, label in enumerate(LABELS):
        begin, inside = bio.begin_index(index), bio.inside_index(index)
        assert (NAMES[begin], NAMES[inside]) == (bio.begin_tag(label), bio.inside_tag(label))
        assert bio.label_index(begin) == bio.label_index(inside) == index
        assert bio.begin_of(inside) == begin
        assert bio.continuation_of(begin) == bio.continuation_of(inside) == inside
    assert bio.continuation_of(bio.OUTSIDE_INDEX) == bio.OUTSIDE_INDEX


@pytest.mark.parametrize("tag", range(len(NAMES)))
def test_names_and_indices_agree(tag: int) -> None:
    name = NAMES[tag]
    assert bio.is_inside(tag) == bio.is_inside_tag(name) == name.startswith("I-")
    assert bio.is_begin_tag(name) == name.startswith("B-")
    assert bio.is_tag(name)
    assert bio.label_of(name) == (None if tag == 0 else LABELS[bio.label_index(tag)])
    assert bio.as_begin(name) == (NAMES[bio.begin_of(tag)] if bio.is_inside(tag) else name)


@pytest.mark.parametrize("text", ["", "B", "B-", "I- ", "person", "o", "X-person"])
def test_what_is_no_tag(text: str) -> None:
    assert not bio.is_tag(text)


@given(TAGS, TAGS)
def test_an_inside_tag_follows_only_its_own_label(tag: int, before: int) -> None:
    names = NAMES[tag], NAMES[before]
    legal = not bio.is_inside_tag(names[0]) or bio.label_of(names[0]) == bio.label_of(names[1])
    assert bio.may_follow(tag, before) == legal
    made = bio.made_legal(tag, before)
    assert bio.may_follow(made, before)
    if legal:
        assert made == tag
    elif before == bio.OUTSIDE_INDEX:
        assert NAMES[made] == bio.as_begin(names[0])
    else:
        assert NAMES[made] == bio.inside_tag(str(bio.label_of(names[1])))


@given(st.sets(st.integers(min_value=0, max_value=200), min_size=1), st.integers(min_value=0, max_value=200))
def test_sets_of_tags(tags: set[int], other: int) -> None:
    found = bio.tag_set(tags)
    assert {tag for tag in range(201) if bio.contains(found, tag)} == tags
    assert bio.first_of(found) == min(tags)
    assert bio.with_tag(found, other) == bio.tag_set(tags | {other})


def test_tags_that_are_allowed_anywhere() -> None:
    allowed = bio.allowed_anywhere(len(LABELS))
    assert [name for tag, name in enumerate(NAMES) if bio.contains(allowed, tag)] == [
        "O",
        "B-person",
        "B-work of art",
    ]


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        (["O", "B-a", "I-a", "O"], [Mention(1, 3, "a")]),
        (["B-a", "B-a"], [Mention(0, 1, "a"), Mention(1, 2, "a")]),
        (["I-a", "I-b", "I-b"], [Mention(0, 1, "a"), Mention(1, 3, "b")]),
        ([], []),
    ],
)
def test_mentions(tags: Sequence[str], expected: list[Mention]) -> None:
    assert bio.mentions(tags) == expected


@pytest.mark.parametrize("num_words", range(4))
def test_the_tags_of_an_entity_mark_it(num_words: int) -> None:
    tags = bio.entity_tags("a", num_words)
    assert len(tags) == num_words
    assert bio.mentions(["O", *tags]) == ([Mention(1, 1 + num_words, "a")] if num_words else [])


def test_an_entity_that_a_cut_divides_begins_at_the_first_word() -> None:
    assert bio.begun_anew(["I-a", "I-a", "O"]) == ("B-a", "I-a", "O")
    assert bio.begun_anew(["O", "B-a"]) == ("O", "B-a")


def test_mentions_are_replaced_in_order() -> None:
    row = Sentence(("in", "New", "York", "and", "Oslo"), ("O", "B-city", "I-city", "O", "B-city"))
    words = iter([("Bern",), ("Rio", "Branco")])
    assert bio.replace_mentions(row, lambda _: next(words)) == Sentence(
        ("in", "Bern", "and", "Rio", "Branco"), ("O", "B-city", "O", "B-city", "I-city")
    )
    assert bio.mentions_by_label([row]) == {"city": [("New", "York"), ("Oslo",)]}
