"""What the bundled checkpoint is trained on: sentences of several corpora, each asked with a schema that varies.

The model has to read the label names of its prompt, so they change from example to example: types are dropped (their
words become O), absent ones are added, names are replaced by synonyms, the order is shuffled. The words change too:
split at punctuation as at serving time, several sentences in one window, mentions swapped. No torch.
"""

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from backend.errors import CorpusError
from backend.evaluation.corpora import Corpus
from backend.ner.bio import OUTSIDE, Sentence, mentions_by_label, replace_mentions
from backend.ner.segment import words as segment_words
from backend.pretraining.schemas import SchemaRecipe, Types, rename, respell, vary


@dataclass(frozen=True, slots=True)
class MixtureRecipe:
    """How examples are drawn. What is not a list or a mapping is a probability, 0..1, of the change it names."""

    shares: Mapping[str, float]  # corpus family -> its part of the examples; they need not add up to 1
    foreign: Mapping[str, Sequence[str]]  # corpus family -> types that its texts certainly do not hold
    synonyms: Mapping[str, Sequence[str]]  # label -> other names of it
    shuffle_labels: float  # else they stand sorted
    rename_label: float  # per label
    drop_labels: float  # some of the types, at least one stays
    add_foreign: float  # one to three of the foreign types
    split_words: float  # at punctuation, as the serving segmenter does
    join_sentences: float  # 2 to max_joined sentences of the corpus in one window, few mostly
    max_joined: int
    swap_mentions: float  # every mention replaced by another of its type, from the same corpus
    drop_final_stop: float


@dataclass(frozen=True, slots=True)
class Example:
    """A prompt's labels and words, and the tags that the model should answer."""

    labels: tuple[str, ...]
    words: tuple[str, ...]
    tags: tuple[str, ...]


class Mixture:
    """Draws examples from the train splits. Holds no random state: the same generator draws the same examples."""

    def __init__(
        self,
        corpora: Sequence[Corpus],
        recipe: MixtureRecipe,
        schemas: SchemaRecipe | None = None,
        types: Types | None = None,
    ) -> None:
        """`types` are needed where sentences have labels of their own.

        Raises CorpusError if the recipe wants a corpus that is not there, or one that has nothing to train on.
        """
        missing = set(recipe.shares) - {corpus.family for corpus in corpora if corpus.train}
        if missing:
            raise CorpusError(f"no train split for {sorted(missing)}; there are {sorted({c.family for c in corpora})}")
        self._recipe = recipe
        self._schemas = schemas or SchemaRecipe()
        self._types = types
        self._corpora = [corpus for corpus in corpora if corpus.family in recipe.shares]
        sizes = {
            family: sum(len(corpus.train) for corpus in self._corpora if corpus.family == family)
            for family in recipe.shares
        }
        # parts of one corpus share its weight by their sizes
        self._weights = [
            recipe.shares[corpus.family] * len(corpus.train) / sizes[corpus.family] for corpus in self._corpora
        ]
        self._mentions = {corpus.name: mentions_by_label(corpus.train) for corpus in self._corpora}

    def draw(self, rng: random.Random) -> Example:
        """One example: a corpus by weight, sentences of it uniformly, then the changes of the recipe."""
        (corpus,) = rng.choices(self._corpora, self._weights)
        drawn = self._passage(corpus, rng) if corpus.train[0].labels else self._sentences(corpus, rng)
        return _respelled(drawn, self._schemas, rng)

    def _passage(self, corpus: Corpus, rng: random.Random) -> Example:
        """A text that has a schema of its own, asked with one that varies."""
        assert self._types is not None, f"{corpus.name} has a schema for each text, and no types are given"
        sentence = vary(rng.choice(corpus.train), self._types, self._schemas, rng)
        names: dict[str, str] = {}
        for label in sentence.labels:
            name = rename(label, self._schemas, rng)
            taken = {other.lower() for other in (*sentence.labels, *names.values())}
            names[label] = label if name.lower() in taken or name.lower() in self._types.never else name
        labels = self._ordered(names.values(), rng)
        if rng.random() < self._recipe.swap_mentions:
            sentence = swap_mentions(sentence, self._mentions[corpus.name], rng)
        return Example(labels, sentence.words, tuple(_renamed(tag, names) for tag in sentence.tags))

    def _sentences(self, corpus: Corpus, rng: random.Random) -> Example:
        """Sentences of a corpus that has one label set."""
        recipe = self._recipe
        words: list[str] = []
        tags: list[str] = []
        for _ in range(self._num_sentences(rng)):
            sentence = rng.choice(corpus.train)
            if rng.random() < recipe.swap_mentions:
                sentence = swap_mentions(sentence, self._mentions[corpus.name], rng)
            if rng.random() < recipe.split_words:
                sentence = split_words(sentence)
            if rng.random() < recipe.drop_final_stop:
                sentence = drop_final_stop(sentence)
            words += sentence.words
            tags += sentence.tags
        labels, names = self._schema(corpus, rng)
        return Example(labels, tuple(words), tuple(_renamed(tag, names) for tag in tags))

    def _num_sentences(self, rng: random.Random) -> int:
        if rng.random() >= self._recipe.join_sentences:
            return 1
        number = 2
        while number < self._recipe.max_joined and rng.random() < 0.5:
            number += 1
        return number

    def _schema(self, corpus: Corpus, rng: random.Random) -> tuple[tuple[str, ...], dict[str, str]]:
        """The prompt's labels, and the name of each type of the corpus that is among them."""
        recipe = self._recipe
        kept = list(corpus.labels)
        if len(kept) > 1 and rng.random() < recipe.drop_labels:
            kept = rng.sample(kept, rng.randint(1, len(kept) - 1))
        foreign = recipe.foreign.get(corpus.family, ())
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
        """The distinct labels as the prompt has them: sorted or shuffled."""
        ordered = sorted(set(labels))
        if rng.random() < self._recipe.shuffle_labels:
            rng.shuffle(ordered)
        return tuple(ordered)

    def _name(self, label: str, taken: set[str], rng: random.Random) -> str:
        """The label itself, or one of its synonyms that no other label of the prompt has."""
        others = [name for name in self._recipe.synonyms.get(label, ()) if name not in taken]
        return rng.choice(others) if others and rng.random() < self._recipe.rename_label else label


def _renamed(tag: str, names: Mapping[str, str]) -> str:
    if tag == OUTSIDE or tag[2:] not in names:
        return OUTSIDE
    return tag[:2] + names[tag[2:]]


def _respelled(example: Example, recipe: SchemaRecipe, rng: random.Random) -> Example:
    """The example with its labels, and its text, in another case."""
    labels, words, tags = example.labels, example.words, example.tags
    if rng.random() < recipe.respell:
        names = respell(labels, rng)
        labels, tags = tuple(names[label] for label in labels), tuple(_renamed(tag, names) for tag in tags)
    chance = rng.random()
    if chance < recipe.lower_text + recipe.upper_text:
        change = str.lower if chance < recipe.lower_text else str.upper
        words = tuple(map(change, words))
    return Example(labels, words, tags)


def swap_mentions(
    sentence: Sentence, by_label: Mapping[str, Sequence[tuple[str, ...]]], rng: random.Random
) -> Sentence:
    """The sentence with each mention replaced by another of the same label."""
    return replace_mentions(sentence, lambda mention: rng.choice(by_label[mention.label]))


def split_words(sentence: Sentence) -> Sentence:
    """The sentence in the words of the serving segmenter; what follows inside a word is I- of its label."""
    words: list[str] = []
    tags: list[str] = []
    for word, tag in zip(sentence.words, sentence.tags, strict=True):
        pieces = _pieces(word)
        words += pieces
        tags += [tag] + ["I-" + tag[2:] if tag != OUTSIDE else OUTSIDE] * (len(pieces) - 1)
    return Sentence(tuple(words), tuple(tags))


@lru_cache(maxsize=1 << 17)
def _pieces(word: str) -> tuple[str, ...]:
    return tuple(piece.text for piece in segment_words(word)) or (word,)


def drop_final_stop(sentence: Sentence) -> Sentence:
    """The sentence without a full stop at its end, unless it is all there is or part of a mention."""
    if len(sentence.words) > 1 and sentence.words[-1] == "." and sentence.tags[-1] == OUTSIDE:
        return Sentence(sentence.words[:-1], sentence.tags[:-1])
    return sentence
