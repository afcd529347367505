"""Schemas vary, and the tags stay correct."""

import random
from dataclasses import replace

import numpy as np
import pytest

from backend.evaluation.corpora import Corpus
from backend.ner.bio import Sentence
from backend.pretraining.mixture import Mixture, MixtureRecipe
from backend.pretraining.schemas import EntityTypes, SchemaRecipe, other_number, rename, respell, vary

NAMES = ("kitchen tool", "dish", "stew", "gene", "person", "crop variety", "planet")
# cosines: dish and stew 0.5, all others 0
VECTORS = np.eye(len(NAMES), dtype=np.float32)
VECTORS[2] = 0.5 * VECTORS[1] + np.sqrt(0.75) * VECTORS[2]
TYPES = EntityTypes(NAMES, VECTORS, never_asked=frozenset(["tool"]))
DINNER = Sentence(("Ada", "ate", "Dal"), ("B-person", "O", "B-dish"), ("person", "dish"))
ALL = SchemaRecipe(drop_types=1.0, add_far=1.0, add_near=1.0)


def draws(recipe: SchemaRecipe, sentence: Sentence = DINNER) -> list[Sentence]:
    rng = random.Random(4)
    return [vary(sentence, TYPES, recipe, rng) for _ in range(80)]


def test_without_changes_the_schema_stays_as_it_is() -> None:
    assert {*draws(SchemaRecipe())} == {DINNER}


def test_types_that_are_added_are_absent_ones() -> None:
    found = draws(replace(ALL, drop_types=0.0))
    assert {sentence.tags for sentence in found} == {DINNER.tags}
    added = {label for sentence in found for label in sentence.labels} - {*DINNER.labels}
    assert "stew" in added
    assert {"gene", "planet"} <= added


def test_near_types_are_near_and_far_ones_far() -> None:
    near = {label for s in draws(SchemaRecipe(add_near=1.0)) for label in s.labels} - {*DINNER.labels}
    far = {label for s in draws(SchemaRecipe(add_far=1.0)) for label in s.labels} - {*DINNER.labels}
    assert near == {"stew"}
    assert far == {"kitchen tool", "gene", "crop variety", "planet"}


def test_the_number_of_types_is_limited() -> None:
    assert max(len(s.labels) for s in draws(replace(ALL, max_types=4))) == 4


def test_entities_of_a_dropped_type_are_outside_only_if_nothing_asked_could_hold_them() -> None:
    found = draws(SchemaRecipe(drop_types=1.0))
    # a dish may also be a person as far as anyone knows, because `person` is a general type
    assert {(s.labels, s.tags) for s in found} == {(DINNER.labels, DINNER.tags), (("dish",), ("O", "O", "B-dish"))}
    near = Sentence(("Dal", "here"), ("B-dish", "O"), ("dish", "stew", "gene"))
    for sentence in draws(SchemaRecipe(drop_types=1.0), near):
        assert "dish" in sentence.labels or "stew" not in sentence.labels
        assert sentence.tags[0] == ("B-dish" if "dish" in sentence.labels else "O")


@pytest.mark.parametrize(
    ("label", "other"),
    [("dish", "dishes"), ("city", "cities"), ("gene", "genes"), ("toy", "toys"), ("crop", "crops"), ("box", "boxes")],
)
def test_singular_and_plural(label: str, other: str) -> None:
    assert other_number(label) == other
    assert other_number(other) == label


def test_names_may_lose_their_first_words() -> None:
    always, rng = SchemaRecipe(last_word=1.0), random.Random(1)
    assert rename("crop variety", TYPES, always, rng) == "variety"
    assert rename("work of art", TYPES, always, rng) == "work of art"
    assert rename("dish", TYPES, always, rng) == "dish"


def test_names_are_replaced_by_synonyms() -> None:
    types = EntityTypes(NAMES, VECTORS, synonyms={"dish": ("prepared food", "plate of food")})
    always, rng = SchemaRecipe(synonym=1.0), random.Random(1)
    assert {rename("dish", types, always, rng) for _ in range(20)} == {"prepared food", "plate of food"}
    assert rename("gene", types, always, rng) == "gene"
    assert rename("dish", types, SchemaRecipe(), rng) == "dish"


def test_a_synonym_is_no_near_type() -> None:
    assert TYPES.near("dish") == ("stew",)
    assert EntityTypes(NAMES, VECTORS, synonyms={"dish": ("stew",)}).near("dish") == ()


def test_spellings_stay_apart() -> None:
    rng = random.Random(2)
    found = [respell(("work of art", "dish"), rng) for _ in range(60)]
    assert {names["work of art"] for names in found} >= {"WORK OF ART", "Work Of Art", "work_of_art", "WorkOfArt"}
    assert all(respell(("e mail", "e_mail"), rng).keys() == {"e mail", "e_mail"} for _ in range(30))
    assert all(len({*respell(("e mail", "e_mail"), rng).values()}) == 2 for _ in range(30))


def mixture(schemas: SchemaRecipe, sentence: Sentence = DINNER) -> Mixture:
    corpus = Corpus("written", ("dish", "person"), (sentence,), (), ())
    recipe = MixtureRecipe({"written": 1.0}, {}, {}, 0.5, 0.0, 0.0, 0.0, 0.0, 0.0, 1, 0.0, 0.0)
    return Mixture([corpus], recipe, schemas, TYPES)


def test_the_mixture_asks_each_passage_with_its_own_labels() -> None:
    sample = mixture(SchemaRecipe()).draw(random.Random(1))
    assert ({*sample.labels}, sample.words, sample.tags) == ({"person", "dish"}, DINNER.words, DINNER.tags)


def test_the_mixture_keeps_tags_and_labels_together() -> None:
    everything = replace(ALL, last_word=0.5, other_number=0.5, respell=0.5, lower_text=0.3, upper_text=0.3)
    rng, drawn = random.Random(1), mixture(everything)
    texts = set()
    for _ in range(100):
        sample = drawn.draw(rng)
        assert {tag[2:] for tag in sample.tags if tag != "O"} <= {*sample.labels}
        assert len({label.lower() for label in sample.labels}) == len(sample.labels)
        texts.add(sample.words)
    assert texts == {DINNER.words, ("ada", "ate", "dal"), ("ADA", "ATE", "DAL")}


def test_no_type_is_renamed_to_one_that_is_never_asked() -> None:
    tool = Sentence(("Whisk",), ("B-kitchen tool",), ("kitchen tool",))
    drawn, rng = mixture(SchemaRecipe(last_word=1.0), tool), random.Random(1)
    assert {drawn.draw(rng).labels for _ in range(20)} == {("kitchen tool",)}
