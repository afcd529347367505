"""Draws the samples that the bundled checkpoint is trained on: sentences of several corpora, with varying schemas.

The model must learn to read the label names in its prompt, so the schema changes from sample to sample. Types are
dropped (their words become O), absent types are added, names are replaced by synonyms, and the order is shuffled. The
text changes too: words are split at punctuation as in serving, sentences are joined, and mentions are swapped. This
module does not import torch.
"""

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from backend.errors import CorpusError
from backend.evaluation.corpora import Corpus
from backend.ner.bio import (
    OUTSIDE,
    Sentence,
    begin_tag,
    inside_tag,
    is_begin_tag,
    label_of,
    mentions_by_label,
    replace_mentions,
)
from backend.ner.segment import words as segment_words
from backend.pretraining.schemas import EntityTypes, SchemaRecipe, rename, respell, vary


@dataclass(frozen=True, slots=True)
class MixtureRecipe:
    """How samples are drawn. Each float is the probability, 0..1, of the change that it names."""

    shares: Mapping[str, float]  # collection -> its share of the samples; the sum need not be 1
    foreign: Mapping[str, Sequence[str]]  # collection -> types that never occur in its texts
    synonyms: Mapping[str, Sequence[str]]  # label -> other names of it
    shuffle_labels: float  # otherwise they are sorted
    rename_label: float  # per label
    drop_labels: float  # drops some of the types; at least one stays
    add_foreign: float  # adds one to three of the foreign types
    split_words: float  # at punctuation, as the serving segmenter does
    join_sentences: float  # joins 2 to max_joined sentences of one corpus; small numbers are likelier
    max_joined: int
    swap_mentions: float  # replaces every mention by another of its type, from the same corpus
    drop_final_stop: float


@dataclass(frozen=True, slots=True)
class Sample:
    """The labels and words of a prompt, and the expected tags."""

    labels: tuple[str, ...]
    words: tuple[str, ...]
    tags: tuple[str, ...]


class Mixture:
    """Draws samples from the train splits. It keeps no random state: equal generators draw equal samples."""

    def __init__(
        self,
        corpora: Sequence[Corpus],
        recipe: MixtureRecipe,
        schemas: SchemaRecipe | None = None,
        types: EntityTypes | None = None,
    ) -> None:
        """Use the corpora that have a share in the recipe.

        `types` is required if the sentences of a corpus have their own labels. Raises CorpusError if the recipe names
        a collection that has no train split here.
        """
        missing = set(recipe.shares) - {corpus.collection for corpus in corpora if corpus.train}
        if missing:
            raise CorpusError(
                f"no train split for {sorted(missing)}; there are {sorted({c.collection for c in corpora})}"
            )
        self._recipe = recipe
        self._schemas = schemas or SchemaRecipe()
        self._types = types
        self._corpora = [corpus for corpus in corpora if corpus.collection in recipe.shares]
        sizes = {
            collection: sum(len(corpus.train) for corpus in self._corpora if corpus.collection == collection)
            for collection in recipe.shares
        }
        # the corpora of one collection divide its share by their sizes
        self._weights = [
            recipe.shares[corpus.collection] * len(corpus.train) / sizes[corpus.collection] for corpus in self._corpora
        ]
        self._mentions = {corpus.name: mentions_by_label(corpus.train) for corpus in self._corpora}

    def draw(self, rng: random.Random) -> Sample:
        """One sample: choose a corpus by weight and its sentences uniformly, then apply the changes of the recipe."""
        (corpus,) = rng.choices(self._corpora, self._weights)
        has_own_labels = bool(corpus.train[0].labels)
        sample = self._passage(corpus, rng) if has_own_labels else self._sentences(corpus, rng)
        return _respelled(sample, self._schemas, rng)

    def _passage(self, corpus: Corpus, rng: random.Random) -> Sample:
        """A text that has its own schema, which is varied."""
        assert self._types is not None, f"{corpus.name} has a schema for each text, so `types` is required"
        sentence = vary(rng.choice(corpus.train), self._types, self._schemas, rng)
        names = self._own_names(sentence.labels, self._types, rng)
        labels = self._ordered(names.values(), rng)
        if rng.random() < self._recipe.swap_mentions:
            sentence = swap_mentions(sentence, self._mentions[corpus.name], rng)
        return Sample(labels, sentence.words, tuple(_renamed(tag, names) for tag in sentence.tags))

    def _own_names(self, labels: Sequence[str], types: EntityTypes, rng: random.Random) -> dict[str, str]:
        """The name of each label in the prompt. No two are equal but for case, and none is a type never asked."""
        names: dict[str, str] = {}
        for label in labels:
            name = rename(label, types, self._schemas, rng)
            taken = {other.lower() for other in (*labels, *names.values())}
            names[label] = label if name.lower() in taken or name.lower() in types.never_asked else name
        return names

    def _sentences(self, corpus: Corpus, rng: random.Random) -> Sample:
        """One or more sentences of a corpus that has one label set."""
        words: list[str] = []
        tags: list[str] = []
        for _ in range(self._num_sentences(rng)):
            sentence = self._changed(rng.choice(corpus.train), corpus, rng)
            words += sentence.words
            tags += sentence.tags
        labels, names = self._schema(corpus, rng)
        return Sample(labels, tuple(words), tuple(_renamed(tag, names) for tag in tags))

    def _changed(self, sentence: Sentence, corpus: Corpus, rng: random.Random) -> Sentence:
        """The sentence with its words changed as the recipe says."""
        recipe = self._recipe
        if rng.random() < recipe.swap_mentions:
            sentence = swap_mentions(sentence, self._mentions[corpus.name], rng)
        if rng.random() < recipe.split_words:
            sentence = split_words(sentence)
        if rng.random() < recipe.drop_final_stop:
            sentence = drop_final_stop(sentence)
        return sentence

    def _num_sentences(self, rng: random.Random) -> int:
        if rng.random() >= self._recipe.join_sentences:
            return 1
        number = 2
        while number < self._recipe.max_joined and rng.random() < 0.5:
            number += 1
        return number

    def _schema(self, corpus: Corpus, rng: random.Random) -> tuple[tuple[str, ...], dict[str, str]]:
        """The labels of the prompt, and the prompt name of each type of the corpus that is asked."""
        recipe = self._recipe
        kept = list(corpus.labels)
        if len(kept) > 1 and rng.random() < recipe.drop_labels:
            kept = rng.sample(kept, rng.randint(1, len(kept) - 1))
        foreign = recipe.foreign.get(corpus.collection, ())
        added: list[str] = []
        if foreign and rng.random() < recipe.add_foreign:
            added = rng.sample(list(foreign), min(len(foreign), rng.randint(1, 3)))
        taken = {*corpus.labels, *added}
        names = {}
        for label in kept:
            names[label] = self._name(label, taken, rng)
            taken.add(names[label])
        labels = [*names.values(), *(self._name(label, taken, rng) for label in added if label not in corpus.labels)]
        return self._ordered(labels, rng), names

    def _ordered(self, labels: Iterable[str], rng: random.Random) -> tuple[str, ...]:
        """The distinct labels, sorted or shuffled."""
        ordered = sorted(set(labels))
        if rng.random() < self._recipe.shuffle_labels:
            rng.shuffle(ordered)
        return tuple(ordered)

    def _name(self, label: str, taken: set[str], rng: random.Random) -> str:
        """The label itself, or a synonym that is not `taken`."""
        others = [name for name in self._recipe.synonyms.get(label, ()) if name not in taken]
        return rng.choice(others) if others and rng.random() < self._recipe.rename_label else label


def _renamed(tag: str, names: Mapping[str, str]) -> str:
    """The tag with the new name of its label; O for a label without one."""
    label = label_of(tag)
    if label is None or label not in names:
        return OUTSIDE
    return begin_tag(names[label]) if is_begin_tag(tag) else inside_tag(names[label])


def _respelled(sample: Sample, recipe: SchemaRecipe, rng: random.Random) -> Sample:
    """The sample with its labels spelled in another way, and its text in another case."""
    labels, words, tags = sample.labels, sample.words, sample.tags
    if rng.random() < recipe.respell:
        names = respell(labels, rng)
        labels, tags = tuple(names[label] for label in labels), tuple(_renamed(tag, names) for tag in tags)
    chance = rng.random()
    if chance < recipe.lower_text + recipe.upper_text:
        change = str.lower if chance < recipe.lower_text else str.upper
        words = tuple(map(change, words))
    return Sample(labels, words, tags)


def swap_mentions(
    sentence: Sentence, by_label: Mapping[str, Sequence[tuple[str, ...]]], rng: random.Random
) -> Sentence:
    """The sentence with each mention replaced by a random one of the same label."""
    return replace_mentions(sentence, lambda mention: rng.choice(by_label[mention.label]))


def split_words(sentence: Sentence) -> Sentence:
    """The sentence split into words as in serving. Later pieces of an entity's word continue the entity."""
    words: list[str] = []
    tags: list[str] = []
    for word, tag in zip(sentence.words, sentence.tags, strict=True):
        pieces = _pieces(word)
        words += pieces
        tags += [tag] + [_continued(tag)] * (len(pieces) - 1)
    return Sentence(tuple(words), tuple(tags))


def _continued(tag: str) -> str:
    """The tag of a word that belongs to the same entity as the word before it, or to none as well."""
    label = label_of(tag)
    return OUTSIDE if label is None else inside_tag(label)


@lru_cache(maxsize=1 << 17)
def _pieces(word: str) -> tuple[str, ...]:
    return tuple(piece.text for piece in segment_words(word)) or (word,)


def drop_final_stop(sentence: Sentence) -> Sentence:
    """The sentence without its final full stop, unless that is the only word or part of a mention."""
    if len(sentence.words) > 1 and sentence.words[-1] == "." and sentence.tags[-1] == OUTSIDE:
        return Sentence(sentence.words[:-1], sentence.tags[:-1])
    return sentence
