"""Turns samples into the token ids, choices and pointers that the model is trained on. Does not import torch."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TypeAlias

from tokenizers import Tokenizer

from backend.ner.bio import OUTSIDE_INDEX, is_begin_tag, label_index, label_of, tag_names
from backend.ner.casing import PLAIN, kind
from backend.ner.grammar import Grammar
from backend.pretraining.mixture import Sample
from backend.pretraining.tokenizer import END, START, TAG_OPENINGS

TokenSpan: TypeAlias = tuple[int, int]  # positions of source tokens, half-open
_NOWHERE = (0, 0)


@dataclass(frozen=True, slots=True)
class Choice:
    """A position in the target at which the model decides between several legal tokens."""

    position: int
    options: tuple[int, ...]  # token ids
    correct: int  # index into options


@dataclass(frozen=True, slots=True)
class EncodedSample:
    """A sample as the model is trained on it.

    `target` is the answer with the end token. The decoder reads it shifted by one, after the start token, so its output
    at position t is token t of `target`. Two source spans determine this token: `word_pointers[t]` is where the current
    word is, and `label_pointers[t]` where the label token to copy is. A span is (0, 0) where there is neither.
    """

    source: tuple[int, ...]
    target: tuple[int, ...]
    choices: tuple[Choice, ...]
    word_pointers: tuple[TokenSpan, ...]
    label_pointers: tuple[TokenSpan, ...]
    word_positions: tuple[int, ...]  # first source token of each word
    label_spans: tuple[TokenSpan, ...]
    tags: tuple[int, ...]  # per word, the index into `tag_names(labels)`
    source_kinds: tuple[int, ...] = ()  # per source token, the case of its word (see ner.casing); empty if not marked

    @property
    def num_tokens(self) -> int:
        """Source and target tokens together."""
        return len(self.source) + len(self.target)


@dataclass(slots=True)
class _Source:
    """The tokens of a prompt, and the place of each label and word in it."""

    tokens: list[int]
    label_spans: list[TokenSpan] = field(default_factory=list)
    word_spans: list[TokenSpan] = field(default_factory=list)

    def append(self, pieces: Sequence[int]) -> TokenSpan:
        """Add tokens; returns their place."""
        start = len(self.tokens)
        self.tokens += pieces
        return start, len(self.tokens)


@dataclass(slots=True)
class _Target:
    """The tokens of an answer, with its choices and pointers."""

    tokens: list[int] = field(default_factory=list)
    choices: list[Choice] = field(default_factory=list)
    word_pointers: list[TokenSpan] = field(default_factory=list)
    label_pointers: list[TokenSpan] = field(default_factory=list)

    def append_word(self, pieces: Sequence[int], span: TokenSpan) -> None:
        """Copy a word: each of its tokens points at the same token in the source."""
        self.tokens += pieces
        self.word_pointers += _each_token(span)
        self.label_pointers += [_NOWHERE] * len(pieces)

    def append_tag(self, path: Sequence[int], word_span: TokenSpan, label_span: TokenSpan | None) -> None:
        """Write a tag: all its tokens point at the word, those of its label also at the label. O has no label."""
        self.tokens += path
        self.word_pointers += [word_span] * len(path)
        self.label_pointers.append(_NOWHERE)  # the opening
        if label_span is not None:
            self.label_pointers += [*_each_token(label_span), _NOWHERE]

    def append_end(self, token: int) -> None:
        """Add the end token."""
        self.tokens.append(token)
        self.word_pointers.append(_NOWHERE)
        self.label_pointers.append(_NOWHERE)


def _each_token(span: TokenSpan) -> list[TokenSpan]:
    start, end = span
    return [(position, position + 1) for position in range(start, end)]


class SampleEncoder:
    """Encodes samples. Its tokenizer treats each word alone, so every distinct text is tokenised once."""

    def __init__(self, tokenizer: Tokenizer, template: str, *, marks_case: bool = False) -> None:
        """`template` is that of the prompt, with the fields {labels} and {sentence}."""
        self._marks_case = marks_case
        head, rest = template.split("{labels}")
        between, tail = rest.split("{sentence}")
        self._tokenizer = tokenizer
        self._ids = lru_cache(maxsize=1 << 18)(self._tokenised)
        self._head, self._between, self._tail = (self._ids(part) for part in (head, between, tail))
        self._comma = self._ids(",")
        self._start, self._end, self._outside, self._begin, self._inside = (
            self._id(piece) for piece in (START, END, *TAG_OPENINGS)
        )
        (self._close,) = self._ids(")")

    def _id(self, piece: str) -> int:
        found = self._tokenizer.token_to_id(piece)
        assert found is not None, f"the tokenizer lacks {piece!r}"
        return found

    def _tokenised(self, text: str) -> tuple[int, ...]:
        return tuple(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def tag_path(self, tag: str) -> tuple[int, ...]:
        """The tokens of `(tag)`."""
        label = label_of(tag)
        if label is None:
            return (self._outside,)
        return (self._begin if is_begin_tag(tag) else self._inside, *self._ids(label), self._close)

    def encode(self, sample: Sample) -> EncodedSample:
        """Raises LabelsIndistinguishable if two labels have the same tokens."""
        names = tag_names(sample.labels)
        grammar = Grammar(sample.labels, [self.tag_path(tag) for tag in names])
        index_of = {tag: index for index, tag in enumerate(names)}
        tags = tuple(index_of[tag] for tag in sample.tags)
        source = self._source(sample)
        target = self._target(sample.words, tags, grammar, source)
        return EncodedSample(
            tuple(source.tokens),
            tuple(target.tokens),
            tuple(target.choices),
            tuple(target.word_pointers),
            tuple(target.label_pointers),
            tuple(start for start, _ in source.word_spans),
            tuple(source.label_spans),
            tags,
            _kinds(sample.words, source) if self._marks_case else (),
        )

    def _source(self, sample: Sample) -> _Source:
        source = _Source([self._start, *self._head])
        for index, label in enumerate(sample.labels):
            if index:
                source.append(self._comma)
            source.label_spans.append(source.append(self._ids(label)))
        source.append(self._between)
        for word in sample.words:
            source.word_spans.append(source.append(self._ids(word)))
        source.append([*self._tail, self._end])
        return source

    def _target(self, words: Sequence[str], tags: Sequence[int], grammar: Grammar, source: _Source) -> _Target:
        target = _Target()
        previous = OUTSIDE_INDEX
        for word, span, tag in zip(words, source.word_spans, tags, strict=True):
            target.append_word(self._ids(word), span)
            target.choices += [
                Choice(len(target.tokens) + decision.offset, decision.tokens, decision.choice)
                for decision in grammar.decisions(previous, tag)
            ]
            label_span = None if tag == OUTSIDE_INDEX else source.label_spans[label_index(tag)]
            target.append_tag(grammar.paths[tag], span, label_span)
            previous = tag
        target.append_end(self._end)
        return target

    def decoder_input(self, target: Sequence[int]) -> list[int]:
        """What the decoder reads in order to write `target`: the start token, then all but the last token."""
        return [self._start, *target[:-1]]


def _kinds(words: Sequence[str], source: _Source) -> tuple[int, ...]:
    """The case of the word of each source token. Tokens of no word are plain."""
    kinds = [PLAIN] * len(source.tokens)
    for word, (start, end) in zip(words, source.word_spans, strict=True):
        kinds[start:end] = [kind(word)] * (end - start)
    return tuple(kinds)
