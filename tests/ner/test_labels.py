"""Stored labels and prompt words, one from the other."""

import pytest

from backend.ner.labels import PromptLabels

CHEMICALS = PromptLabels.of([("chemical", "chem"), ("drug", "chem"), ("person", "PER")])


def test_every_way_to_ask_leads_to_its_label() -> None:
    assert CHEMICALS.words == ("chemical", "drug", "person")
    assert CHEMICALS.labels == ("chem", "PER")
    assert [CHEMICALS.label_of(words) for words in CHEMICALS.words] == ["chem", "chem", "PER"]


def test_a_label_is_asked_for_by_its_first_words() -> None:
    assert (CHEMICALS.words_of("chem"), CHEMICALS.words_of("PER"), CHEMICALS.words_of("gone")) == (
        "chemical",
        "person",
        None,
    )


def test_words_of_another_label_set_are_refused() -> None:
    with pytest.raises(KeyError):
        CHEMICALS.label_of("city")
