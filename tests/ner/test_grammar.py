"""The legal continuations: every tag sequence that BIO allows and no other, token by token."""

from itertools import pairwise, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.errors import LabelsIndistinguishable
from backend.ner.bio import tag_names
from backend.ner.grammar import Grammar


def grammar(*labels: str) -> Grammar:
    """Tokens are code points: `(B-person)` is ten of them."""
    return Grammar(labels, [tuple(map(ord, f"({tag})")) for tag in tag_names(labels)])


def names(tags: Grammar, mask: int) -> set[str]:
    return {tag for index, tag in enumerate(tags.tags) if mask >> index & 1}


LABEL_SETS = [
    ("person",),
    ("work", "work of art", "work of"),
    ("a", "aa", "aaa", "b"),
    ("O", "B", "I-a"),
    tuple(f"type {number}" for number in range(50)),
]


@pytest.mark.parametrize(
    ("previous", "expected"),
    [
        ("O", {"O", "B-a", "B-b"}),
        ("B-a", {"O", "B-a", "B-b", "I-a"}),
        ("I-a", {"O", "B-a", "B-b", "I-a"}),
        ("B-b", {"O", "B-a", "B-b", "I-b"}),
        ("I-b", {"O", "B-a", "B-b", "I-b"}),
    ],
)
def test_inside_follows_only_its_own_label(previous: str, expected: set[str]) -> None:
    ab = grammar("a", "b")
    assert names(ab, ab.allowed(ab.tags.index(previous))) == expected


def walks(tags: Grammar, allowed: int) -> set[str]:
    """Every text that legal tokens can write."""
    found, todo = set(), [(tags.root, "")]
    while todo:
        node, text = todo.pop()
        options = tags.options(node, allowed)
        if node.tag is not None:
            assert not options, "a tag ends at a leaf"
            assert text == f"({tags.tags[node.tag]})"
            found.add(tags.tags[node.tag])
        todo += [(node.children[token], text + chr(token)) for token in options]
    return found


@pytest.mark.parametrize("labels", LABEL_SETS, ids=lambda labels: f"{len(labels)} labels")
def test_legal_walks_write_exactly_the_allowed_tags(labels: tuple[str, ...]) -> None:
    tags = grammar(*labels)
    for previous in range(len(tags.tags)):
        allowed = tags.allowed(previous)
        assert walks(tags, allowed) == names(tags, allowed)


@pytest.mark.parametrize("labels", LABEL_SETS, ids=lambda labels: f"{len(labels)} labels")
def test_decisions_are_the_positions_with_more_than_one_legal_token(labels: tuple[str, ...]) -> None:
    tags = grammar(*labels)
    for previous in range(len(tags.tags)):
        allowed = tags.allowed(previous)
        for tag in (index for index in range(len(tags.tags)) if allowed >> index & 1):
            decisions = {decision.offset: decision for decision in tags.decisions(previous, tag)}
            node = tags.root
            for offset, token in enumerate(tags.paths[tag]):
                options = tags.options(node, allowed)
                assert (len(options) > 1) == (offset in decisions)
                if offset in decisions:
                    assert decisions[offset].tokens == options
                    assert options[decisions[offset].choice] == token
                    assert set(options) <= set(tags.decision_tokens)
                node = node.children[token]


def test_after_o_with_one_label_there_is_one_decision() -> None:
    tags = grammar("person")
    for tag in ("O", "B-person"):
        [decision] = tags.decisions(0, tags.tags.index(tag))
        assert sorted(map(chr, decision.tokens)) == ["B", "O"]
        assert chr(decision.tokens[decision.choice]) == tag[0]


def test_where_only_one_label_is_open_its_inside_is_decided_at_one_token() -> None:
    tags = grammar("person", "place")
    [decision] = tags.decisions(tags.tags.index("B-place"), tags.tags.index("I-place"))
    assert sorted(map(chr, decision.tokens)) == ["B", "I", "O"]


def test_labels_that_begin_alike_are_decided_where_they_part() -> None:
    tags = grammar("work", "work of art")
    decisions = tags.decisions(0, tags.tags.index("B-work of art"))
    assert [sorted(map(chr, decision.tokens)) for decision in decisions] == [["B", "O"], [" ", ")"]]
    assert decisions[1].offset == len("(B-work")


def test_the_longest_path_is_that_of_the_longest_label() -> None:
    assert grammar("work", "work of art").longest_path == len("(B-work of art)")


def test_no_labels_leave_nothing_to_decide() -> None:
    tags = grammar()
    assert tags.tags == ["O"]
    assert tags.decisions(0, 0) == ()
    assert tags.decision_tokens == ()


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        ([(1, 9), (2, 5), (3, 5), (2, 5), (3, 5)], "'cat' and 'dog'"),  # the same tokens
        ([(1, 9), (2, 5), (3, 5), (2, 5, 6), (3, 5, 6)], "'cat' and 'dog'"),  # the first begins the second
        ([(1, 9), (2, 5, 6), (3, 5, 6), (2, 5), (3, 5)], "'cat' and 'dog'"),  # the second begins the first
    ],
)
def test_labels_that_tokens_cannot_tell_apart_are_an_error_that_names_both(
    paths: list[tuple[int, ...]], message: str
) -> None:
    with pytest.raises(LabelsIndistinguishable, match=message) as caught:
        Grammar(["cat", "dog"], paths)
    assert "predicted_values" in str(caught.value)
    assert caught.value.status == 400


def test_a_label_without_tokens_of_its_own_is_an_error() -> None:
    with pytest.raises(LabelsIndistinguishable):
        Grammar(["cat"], [(1,), (2,), (2,)])


@given(st.sets(st.text("ab-", min_size=1, max_size=4), min_size=1, max_size=8).map(sorted))
def test_any_labels_that_differ_as_texts_make_a_grammar(labels: list[str]) -> None:
    tags = grammar(*labels)
    assert walks(tags, (1 << len(tags.tags)) - 1) == set(tag_names(labels))


def test_sequences_that_grammar_allows_are_those_that_bio_allows() -> None:
    tags = grammar("a", "b")
    for sequence in product(range(5), repeat=3):
        by_grammar = all(
            tags.allowed(previous) >> tag & 1 for previous, tag in zip((0, *sequence), sequence, strict=False)
        )
        written = ["O", *(tags.tags[tag] for tag in sequence)]
        by_rule = all(not tag.startswith("I-") or before[2:] == tag[2:] for before, tag in pairwise(written))
        assert by_grammar == by_rule, written
