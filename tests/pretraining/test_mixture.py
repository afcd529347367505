"""Samples drawn from a small corpus."""

import random
from dataclasses import replace

import pytest

from backend.errors import CorpusError
from backend.evaluation.corpora import Corpus
from backend.ner.bio import Sentence
from backend.pretraining.mixture import Mixture, MixtureRecipe, drop_final_stop, split_words, swap_mentions

NEWS = Corpus(
    "news",
    ("person", "place"),
    (
        Sentence(("Ada", "Byron", "left", "Rome", "."), ("B-person", "I-person", "O", "B-place", "O")),
        Sentence(("Oslo", "is", "cold"), ("B-place", "O", "O")),
    ),
    (),
    (),
)
PLAIN = MixtureRecipe(
    shares={"news": 1.0},
    foreign={"news": ["dosage", "gene"]},
    synonyms={"person": ["human", "PER"]},
    shuffle_labels=0.0,
    rename_label=0.0,
    drop_labels=0.0,
    add_foreign=0.0,
    split_words=0.0,
    join_sentences=0.0,
    max_joined=4,
    swap_mentions=0.0,
    drop_final_stop=0.0,
)


def _draws(recipe: MixtureRecipe, number: int = 60) -> list[tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]]:
    mixture, rng = Mixture([NEWS], recipe), random.Random(1)
    samples = [mixture.draw(rng) for _ in range(number)]
    return [(sample.labels, sample.words, sample.tags) for sample in samples]


def test_without_changes_the_corpus_comes_as_it_is() -> None:
    expected = {(NEWS.labels, sentence.words, sentence.tags) for sentence in NEWS.train}
    assert set(_draws(PLAIN)) == expected


def test_the_same_generator_draws_the_same() -> None:
    everything = replace(
        PLAIN, rename_label=0.5, drop_labels=0.5, add_foreign=0.5, join_sentences=0.5, swap_mentions=0.5
    )
    assert _draws(everything) == _draws(everything)


def test_words_of_a_dropped_type_become_outside() -> None:
    for labels, words, tags in _draws(replace(PLAIN, drop_labels=1.0)):
        assert len(labels) == 1
        assert {tag[2:] for tag in tags if tag != "O"} <= {*labels}
        if words == NEWS.train[0].words and labels == ("place",):
            assert tags == ("O", "O", "O", "B-place", "O")


def test_foreign_types_are_asked_for_and_never_found() -> None:
    for labels, _, tags in _draws(replace(PLAIN, add_foreign=1.0)):
        assert {*labels} & {"dosage", "gene"}
        assert not {tag[2:] for tag in tags} & {"dosage", "gene"}


def test_a_renamed_type_has_its_new_name_in_the_tags_too() -> None:
    draws = _draws(replace(PLAIN, rename_label=1.0))
    assert {labels for labels, _, _ in draws} == {("human", "place"), ("PER", "place")}
    for labels, words, tags in draws:
        if words == NEWS.train[0].words:
            assert tags[0] == f"B-{labels[0]}"


def test_no_synonym_equals_another_label() -> None:
    corpus = replace(NEWS, labels=("human", "person", "place"))
    mixture, rng = Mixture([corpus], replace(PLAIN, rename_label=1.0)), random.Random(1)
    for _ in range(30):
        labels = mixture.draw(rng).labels
        assert len({*labels}) == 3


def test_joined_sentences() -> None:
    lengths = {len(words) for _, words, _ in _draws(replace(PLAIN, join_sentences=1.0))}
    assert min(lengths) >= 6
    assert max(lengths) <= 4 * 5


def test_labels_are_sorted_or_shuffled() -> None:
    assert {labels for labels, _, _ in _draws(PLAIN)} == {("person", "place")}
    assert len({labels for labels, _, _ in _draws(replace(PLAIN, shuffle_labels=1.0))}) == 2


@pytest.mark.parametrize(
    ("words", "tags", "new_words", "new_tags"),
    [
        ("a Paris-based firm", "O B-place O", "a Paris - based firm", "O B-place I-place I-place O"),
        ("Perth's team", "B-place O", "Perth 's team", "B-place I-place O"),
        ("the U.S. pays 1,000.5", "O B-place O O", "the U.S. pays 1,000.5", "O B-place O O"),
        ("well-known", "O", "well - known", "O O O"),
    ],
)
def test_split_words_as_at_serving_time(words: str, tags: str, new_words: str, new_tags: str) -> None:
    expected = Sentence(tuple(new_words.split()), tuple(new_tags.split()))
    assert split_words(Sentence(tuple(words.split()), tuple(tags.split()))) == expected


def test_swapped_mentions_keep_their_label() -> None:
    by_label: dict[str, list[tuple[str, ...]]] = {"person": [("Grace", "Brewster", "Hopper")], "place": [("Lima",)]}
    assert swap_mentions(NEWS.train[0], by_label, random.Random(1)) == Sentence(
        ("Grace", "Brewster", "Hopper", "left", "Lima", "."), ("B-person", "I-person", "I-person", "O", "B-place", "O")
    )


def test_only_a_stop_outside_of_mentions_is_dropped() -> None:
    assert drop_final_stop(NEWS.train[0]).words == ("Ada", "Byron", "left", "Rome")
    assert drop_final_stop(NEWS.train[1]) == NEWS.train[1]
    inside = Sentence(("Acme", "Inc", "."), ("B-x", "I-x", "I-x"))
    assert drop_final_stop(inside) == inside


def test_a_missing_corpus_is_named() -> None:
    with pytest.raises(CorpusError, match="tweets"):
        Mixture([NEWS], replace(PLAIN, shares={"news": 0.5, "tweets": 0.5}))
    with pytest.raises(CorpusError, match="news"):
        Mixture([replace(NEWS, train=())], PLAIN)
