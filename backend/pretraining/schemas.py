"""How what is asked for varies: which types, with which absent ones, and how their names are spelled. No torch.

A model that has only ever been asked for types that are there answers every question with something. So a passage is
also asked for types of other passages: far ones, and ones near in meaning, which teach it to read names closely.
"""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from backend.ner.bio import Sentence, mentions
from backend.pretraining.written import without

# An entity whose own type is no longer asked may still be one of these, so that its words are not O.
_COARSE = (
    "person, people, name, organization, organisation, location, place, region, area, event, product, work, "
    "creative work, work of art, company, institution, group, object, item, concept, term, animal, species, plant, "
    "organism, food, vehicle, material, substance, chemical, quantity, number, measurement, date, time, amount, "
    "facility, building, document, miscellaneous, law, award, title, role, occupation, equipment, device, tool, "
    "software, technology, structure"
)
_FAR = 0.3  # cosine below which no entity is of both types
_APART = 0.45  # cosine below which the entities of one type are hardly ever of the other, too
_NEAR = (0.42, 0.62)  # cosines; above, two names often mean the same
_TRIES = 4


@dataclass(frozen=True, slots=True)
class SchemaRecipe:
    """Probabilities, 0..1, of the changes that they name, and limits. By default nothing changes."""

    drop_types: float = 0.0  # of a passage; at least one type stays
    add_far: float = 0.0  # of a passage: up to max_far types of other passages
    add_near: float = 0.0  # of a passage: up to max_near types that are near one of its own
    max_far: int = 8
    max_near: int = 4
    max_types: int = 25
    last_word: float = 0.0  # of a type: `kitchen tool` is asked as `tool`
    other_number: float = 0.0  # of a type: `dish` is asked as `dishes`, and the other way round
    respell: float = 0.0  # of a schema, in any corpus: WORK OF ART, Work of Art, workOfArt, work_of_art
    lower_text: float = 0.0  # of a text, in any corpus
    upper_text: float = 0.0


class Types:
    """Names of types, and how near they are to each other in meaning."""

    def __init__(self, names: Sequence[str], vectors: NDArray[np.float32], never: frozenset[str] = frozenset()) -> None:
        """`vectors` are (names, size), of length 1: their products are cosines. `never` is asked, in lower case."""
        self._names = tuple(names)
        self.never = never
        self._vectors = vectors
        self._index = {name: index for index, name in enumerate(self._names)}
        self._near: dict[str, tuple[str, ...]] = {}

    def near(self, name: str) -> tuple[str, ...]:
        """Types that are near to `name` and have no word of it."""
        if name not in self._near:
            self._near[name] = self._find_near(name)
        return self._near[name]

    def _find_near(self, name: str) -> tuple[str, ...]:
        cosines = self._vectors @ self._vectors[self._index[name]]
        low, high = _NEAR
        own = {*name.lower().split()}
        found = (self._names[index] for index in np.flatnonzero((cosines > low) & (cosines < high)))
        return tuple(other for other in found if not own & {*other.lower().split()} and other not in _coarse())

    def cosine(self, name: str, others: Iterable[str]) -> float:
        """The largest cosine of `name` and one of the others; -1 if there is none, or `name` is not known."""
        known = [self._index[other] for other in others if other in self._index]
        if name not in self._index or not known:
            return -1.0
        return float((self._vectors[known] @ self._vectors[self._index[name]]).max())

    def far(self, asked: Sequence[str], number: int, rng: random.Random) -> list[str]:
        """Up to `number` types that are far from all that are asked."""
        found: list[str] = []
        for _ in range(number):
            other = rng.choice(self._names)
            if other not in found and other not in _coarse() and self.cosine(other, asked) < _FAR:
                found.append(other)
        return found


@lru_cache(maxsize=1)
def _coarse() -> frozenset[str]:
    return frozenset(_COARSE.split(", "))


def vary(sentence: Sentence, types: Types, recipe: SchemaRecipe, rng: random.Random) -> Sentence:
    """A passage with other types asked: some dropped, absent ones added. The order of `labels` is of no meaning."""
    if len(sentence.labels) > 1 and rng.random() < recipe.drop_types:
        sentence = _dropped(sentence, types, rng)
    added: list[str] = []
    if rng.random() < recipe.add_near:
        added += _near(sentence.labels, types, rng.randint(1, recipe.max_near), rng)
    if rng.random() < recipe.add_far:
        added += types.far(sentence.labels, rng.randint(1, recipe.max_far), rng)
    room = max(0, recipe.max_types - len(sentence.labels))
    new = [label for label in dict.fromkeys(added) if label not in sentence.labels]
    return Sentence(sentence.words, sentence.tags, (*sentence.labels, *new[:room]))


def _dropped(sentence: Sentence, types: Types, rng: random.Random) -> Sentence:
    """Without some types, of which those that are there must be unlike all that stay."""
    kept = set(rng.sample(sentence.labels, rng.randint(1, len(sentence.labels) - 1)))
    there = {mention.label for mention in mentions(sentence.tags)}
    has_coarse = bool(kept & _coarse())
    leaving = [
        label
        for label in sentence.labels
        if label not in kept and (label not in there or not (has_coarse or types.cosine(label, kept) > _APART))
    ]
    return without(sentence, leaving)


def _near(asked: Sequence[str], types: Types, number: int, rng: random.Random) -> list[str]:
    """Up to `number` types, each near one that is asked and not nearer to another than near."""
    found: list[str] = []
    for _ in range(number * _TRIES):
        others = types.near(rng.choice(asked))
        if not others:
            continue
        other = rng.choice(others)
        if other not in found and types.cosine(other, asked) < _NEAR[1]:
            found.append(other)
        if len(found) == number:
            break
    return found


# -- names


def rename(label: str, recipe: SchemaRecipe, rng: random.Random) -> str:
    """Another name of a type that says the same, or the label itself."""
    words = label.split()
    if len(words) > 1 and "of" not in words and rng.random() < recipe.last_word:
        label = words[-1]
    if rng.random() < recipe.other_number:
        label = other_number(label)
    return label


def other_number(label: str) -> str:
    """`dish` -> `dishes` -> `dish`, by the rules of most English nouns; what has another plural stays readable."""
    if label.endswith("ies"):
        return label[:-3] + "y"
    if label.endswith(("ches", "shes", "sses", "xes")):
        return label[:-2]
    if label.endswith("s") and not label.endswith(("ss", "us", "is")):
        return label[:-1]
    if label.endswith(("ch", "sh", "s", "x")):
        return label + "es"
    if label.endswith("y") and label[-2:-1] not in "aeiou":
        return label[:-1] + "ies"
    return label + "s"


_SPELLINGS = (
    str.upper,
    str.title,
    str.capitalize,
    lambda label: label.replace(" ", "_"),
    lambda label: label.upper().replace(" ", "_"),
    lambda label: label.title().replace(" ", ""),
    lambda label: label.replace(" ", "-"),
)


def respell(labels: Sequence[str], rng: random.Random) -> dict[str, str]:
    """All labels of a schema in one of the ways that people write them, as long as they stay apart."""
    spelling = rng.choice(_SPELLINGS)
    spelled = {label: spelling(label) for label in labels}
    return (
        spelled if len({name.lower() for name in spelled.values()}) == len(labels) else {name: name for name in labels}
    )
