"""Varies the schema of a passage: which types are asked for, which absent types are added, how names are spelled.

A model that was only ever asked for types that occur finds something for every type. So a passage is also asked for
types of other passages. Some are far in meaning; others are near, which teaches the model to read names closely. This
module does not import torch.
"""

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from backend.ner.bio import Sentence, mentions
from backend.pretraining.written import without

# General types. If one of them is asked, an entity of another type may belong to it too, so its words may not become O.
_COARSE = (
    "person, people, name, organization, organisation, location, place, region, area, event, product, work, "
    "creative work, work of art, company, institution, group, object, item, concept, term, animal, species, plant, "
    "organism, food, vehicle, material, substance, chemical, quantity, number, measurement, date, time, amount, "
    "facility, building, document, miscellaneous, law, award, title, role, occupation, equipment, device, tool, "
    "software, technology, structure"
)
_FAR = 0.3  # below this cosine, no entity belongs to both types
_APART = 0.45  # below this cosine, an entity hardly ever belongs to both types
_NEAR = (0.42, 0.62)  # between these cosines; above, two names often mean the same
_TRIES = 4  # attempts to find each near type


@dataclass(frozen=True, slots=True)
class SchemaRecipe:
    """The probability, 0..1, of each change, and limits. By default nothing changes."""

    drop_types: float = 0.0  # per passage; at least one type stays
    add_far: float = 0.0  # per passage: adds up to max_far types of other passages
    add_near: float = 0.0  # per passage: adds up to max_near types near one of its own
    max_far: int = 8
    max_near: int = 4
    max_types: int = 25
    synonym: float = 0.0  # per type: another name with the same meaning, if one is known
    last_word: float = 0.0  # per type: `kitchen tool` is asked for as `tool`
    other_number: float = 0.0  # per type: `dish` is asked for as `dishes`, and vice versa
    respell: float = 0.0  # per sample of any corpus: WORK OF ART, Work Of Art, WorkOfArt, work_of_art
    lower_text: float = 0.0  # per sample of any corpus: its text in lower case
    upper_text: float = 0.0  # likewise, in upper case


class EntityTypes:
    """Names of entity types, and how near they are in meaning."""

    def __init__(
        self,
        names: Sequence[str],
        vectors: NDArray[np.float32],
        never_asked: frozenset[str] = frozenset(),
        synonyms: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        """`vectors` is (names, size), each row of length 1. `never_asked` holds names in lower case.

        `synonyms` has other names of some types.
        """
        self._names = tuple(names)
        self.never_asked = never_asked
        self._synonyms = synonyms or {}
        self._vectors = vectors
        self._index = {name: index for index, name in enumerate(self._names)}
        self._near: dict[str, tuple[str, ...]] = {}

    def synonyms(self, name: str) -> Sequence[str]:
        """Other names with the same meaning; empty if none is known."""
        return self._synonyms.get(name, ())

    def near(self, name: str) -> tuple[str, ...]:
        """Types near in meaning to `name` that share no word with it and do not mean the same."""
        if name not in self._near:
            self._near[name] = self._find_near(name)
        return self._near[name]

    def _find_near(self, name: str) -> tuple[str, ...]:
        cosines = self._vectors @ self._vectors[self._index[name]]
        low, high = _NEAR
        own = {*name.lower().split()}
        excluded = {*_coarse(), *self.synonyms(name)}
        found = (self._names[index] for index in np.flatnonzero((cosines > low) & (cosines < high)))
        return tuple(other for other in found if not own & {*other.lower().split()} and other not in excluded)

    def cosine(self, name: str, others: Iterable[str]) -> float:
        """The largest cosine between `name` and one of the others; -1 if it or all others are unknown."""
        known = [self._index[other] for other in others if other in self._index]
        if name not in self._index or not known:
            return -1.0
        return float((self._vectors[known] @ self._vectors[self._index[name]]).max())

    def far(self, asked: Sequence[str], number: int, rng: random.Random) -> list[str]:
        """Up to `number` types that are far from every type asked for."""
        found: list[str] = []
        for _ in range(number):
            other = rng.choice(self._names)
            if other not in found and other not in _coarse() and self.cosine(other, asked) < _FAR:
                found.append(other)
        return found


@lru_cache(maxsize=1)
def _coarse() -> frozenset[str]:
    return frozenset(_COARSE.split(", "))


def vary(sentence: Sentence, types: EntityTypes, recipe: SchemaRecipe, rng: random.Random) -> Sentence:
    """The passage with some types dropped and some absent ones added. The order of its labels means nothing."""
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


def _dropped(sentence: Sentence, types: EntityTypes, rng: random.Random) -> Sentence:
    """The passage without some of its types. A type that occurs is dropped only if it is unlike all that stay."""
    kept = set(rng.sample(sentence.labels, rng.randint(1, len(sentence.labels) - 1)))
    occurring = {mention.label for mention in mentions(sentence.tags)}
    has_coarse = bool(kept & _coarse())
    dropped = [
        label
        for label in sentence.labels
        if label not in kept and (label not in occurring or not (has_coarse or types.cosine(label, kept) > _APART))
    ]
    return without(sentence, dropped)


def _near(asked: Sequence[str], types: EntityTypes, number: int, rng: random.Random) -> list[str]:
    """Up to `number` types, each near one that is asked for. None means nearly the same as any of those."""
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


def rename(label: str, types: EntityTypes, recipe: SchemaRecipe, rng: random.Random) -> str:
    """Another name with the same meaning, or the label itself."""
    others = types.synonyms(label)
    if others and rng.random() < recipe.synonym:
        label = rng.choice(others)
    words = label.split()
    if len(words) > 1 and "of" not in words and rng.random() < recipe.last_word:
        label = words[-1]
    if rng.random() < recipe.other_number:
        label = other_number(label)
    return label


def other_number(label: str) -> str:
    """`dish` -> `dishes` -> `dish`, by the rules for regular English nouns. Irregular ones stay readable."""
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
    """A spelling that people use, applied to all labels. The labels stay as they are if two would become equal."""
    spelling = rng.choice(_SPELLINGS)
    spelled = {label: spelling(label) for label in labels}
    all_distinct = len({name.lower() for name in spelled.values()}) == len(labels)
    return spelled if all_distinct else {label: label for label in labels}
