"""Unconstrained output -> tags. Every expectation is worked out by hand from the paper's description."""

from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.ner.prompt import target
from backend.ner.structure import WrittenWord, align, entities, normalise, structure, written_words

WORDS = ("did", "George", "Clooney", "make", "a", "musical")
LABELS = ("actor", "genre")


def test_written_words_are_what_stands_before_each_tag() -> None:
    assert written_words("did(O) New York(B-place) (O) over") == [
        WrittenWord("did", "O"),
        WrittenWord("New York", "B-place"),
    ]


def test_a_word_may_hold_brackets() -> None:
    assert written_words("((O) H2O(O) ))(O)") == [
        WrittenWord("(", "O"),
        WrittenWord("H2O", "O"),
        WrittenWord("))", "O"),
    ]


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        pytest.param(
            "did(O) george(B-actor) clooney(I-actor) make(O) a(O) musical(B-genre)",
            ("O", "B-actor", "I-actor", "O", "O", "B-genre"),
            id="equal words, whatever their case",
        ),
        pytest.param(
            "george(B-actor) clooney(I-actor) musical(B-genre)",
            ("O", "B-actor", "I-actor", "O", "O", "B-genre"),
            id="a subsequence: what was skipped is O",
        ),
        pytest.param(
            "did(O) georgie(O) clooney(B-actor) make(O) musical(B-genre) musical(I-genre)",
            ("O", "O", "B-actor", "O", "O", "B-genre"),
            id="longest common subsequence: what is misspelt is O, of equal words the first counts",
        ),
        pytest.param(
            "did(O) george(B-director) clooney(I-director) make(O) a(O) musical(B-genre)",
            ("O", "O", "O", "O", "O", "B-genre"),
            id="a label that was not asked for is O",
        ),
        pytest.param("", ("O",) * 6, id="nothing"),
        pytest.param("I cannot help with that.", ("O",) * 6, id="no tag at all"),
    ],
)
def test_structure(output: str, expected: tuple[str, ...]) -> None:
    assert structure(output, WORDS, LABELS) == expected


def test_words_can_be_compared_as_the_model_spells_them() -> None:
    def respell(words: Sequence[str]) -> list[str]:
        return [word.replace("{", "") for word in words]

    output = "a(B-actor) b(O)"
    assert structure(output, ("{a", "b"), LABELS, respell) == ("B-actor", "O")
    assert structure(output, ("{a", "b"), LABELS) == ("O", "O")


@pytest.mark.parametrize(
    ("wanted", "written", "expected"),
    [
        ("abc", "abc", [0, 1, 2]),
        ("aab", "ab", [0, None, 1]),  # the first place that is left
        ("abc", "axc", [0, None, 2]),
        ("abcd", "dabc", [1, 2, 3, None]),  # the longer chain, not the first match
        ("xyz", "abc", [None, None, None]),
        ("", "ab", []),
        ("ab", "", [None, None]),
    ],
)
def test_align(wanted: str, written: str, expected: list[int | None]) -> None:
    assert align(list(wanted), list(written)) == expected


def _lcs_length(a: str, b: str) -> int:
    rows = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            rows[i + 1][j + 1] = rows[i][j] + 1 if x == y else max(rows[i][j + 1], rows[i + 1][j])
    return rows[-1][-1]


@given(st.text("abcd", max_size=12), st.text("abcd", max_size=12))
def test_an_alignment_is_a_longest_ascending_chain_of_equal_words(wanted: str, written: str) -> None:
    places = align(list(wanted), list(written))
    matched = [(index, place) for index, place in enumerate(places) if place is not None]
    assert all(wanted[index] == written[place] for index, place in matched)
    assert all(a < b for (_, a), (_, b) in pairwise(matched))
    assert len(matched) == _lcs_length(wanted, written)


@given(st.lists(st.sampled_from(["red", "green", "Blue", "x-1", "("]), min_size=1), st.data())
def test_structure_reads_what_target_writes(words: list[str], data: st.DataObject) -> None:
    tags = data.draw(st.lists(st.sampled_from(["O", "B-actor", "I-genre"]), min_size=len(words), max_size=len(words)))
    assert structure(target(words, tags), words, LABELS) == tuple(tags)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  U.S. Army", "us army"),
        ("a-ha", "aha"),  # punctuation goes first, so this is no article
        ("An apple a day", "apple day"),
        ("Theatre", "theatre"),
        ("...", ""),
    ],
)
def test_normalise(text: str, expected: str) -> None:
    assert normalise(text) == expected


@pytest.mark.parametrize(
    ("tagged", "expected"),
    [
        ("The(B-org) Who(I-org) met(O) The(B-org) WHO(I-org)", [("who", "org")]),  # the same entity counts once
        ("Ann(B-per) Bob(B-per)", [("ann", "per"), ("bob", "per")]),
        ("New(I-loc) York(I-loc)", [("new york", "loc")]),  # I- may begin
        ("Ford(B-per) Motor(I-org)", [("ford motor", "org")]),  # the last word's label
        ("Ford(B-per) Ford(O) Ford(B-org)", [("ford", "per"), ("ford", "org")]),
        ("nothing(O)", []),
    ],
)
def test_entities(tagged: str, expected: list[tuple[str, str]]) -> None:
    written = written_words(tagged)
    assert entities([word.text for word in written], [word.tag for word in written]) == expected
