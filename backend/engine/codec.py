"""Prompts <-> token ids, for one checkpoint's tokenizer. It needs no model, so requests use it in their own threads."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from backend.engine.draft_head import Places, locate
from backend.errors import CheckpointError, PromptTooLong
from backend.ner import segment
from backend.ner.bio import tag_names
from backend.ner.casing import PLAIN, kind
from backend.ner.grammar import Grammar
from backend.ner.prompt import PromptFormat
from backend.ner.segment import Budget, WordCost
from backend.ner.spans import Window, Word

# Placed before a word, so that every tokenizer encodes that word as in mid-sentence. The anchor's last letter merges
# with a bracket in no vocabulary that we know.
_ANCHOR = "Clooney"
_LONE_SURROGATE = re.compile(r"[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Limits:
    """A checkpoint's context. For the published ones, the 640 tokens at which training and evaluation cut."""

    source_tokens: int
    target_tokens: int


@dataclass(frozen=True, slots=True)
class WordCode:
    """A word in the target: its forced tokens, then a path through its grammar."""

    forced: tuple[int, ...]
    grammar: Grammar


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """One window, ready for the decoder.

    `draft` are indices of tags that the decoder starts from; a wrong draft costs time but never changes a label.
    `places` tells where words and labels are in the source; only checkpoints with a draft head need it.
    `source_kinds` tells how the word of each source token is written (see ner.casing); only checkpoints that mark case
    need it.
    """

    labels: tuple[str, ...]
    words: tuple[str, ...]
    source_ids: tuple[int, ...]
    codes: tuple[WordCode, ...]
    draft: tuple[int, ...] | None = None
    places: Places | None = None
    source_kinds: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class Decoded:
    """The decoder's answer for one prompt: a tag and its probability for each word."""

    tags: tuple[str, ...]
    probabilities: tuple[float, ...]


class Codec:
    """Turns words and labels into token ids. Thread-safe: it caches with lru_cache and only reads the tokenizer."""

    def __init__(
        self,
        tokenizer: Any,
        prompt_format: PromptFormat,
        limits: Limits,
        *,
        source_ends_with_eos: bool,
        locates_words: bool = False,
        marks_case: bool = False,
    ) -> None:
        """`tokenizer` is a fast tokenizer. An encoder's prompt ends with EOS, a causal model's must not.

        `locates_words`: prompts get `places`, which a draft head needs. `marks_case`: prompts get `source_kinds`.
        """
        self.tokenizer = tokenizer
        self._format = prompt_format
        self.limits = limits
        self._source_ends_with_eos = source_ends_with_eos
        self._locates_words = locates_words
        self._marks_case = marks_case
        self._anchor_ids = self._raw_ids(_ANCHOR)
        self.grammar = lru_cache(maxsize=256)(self._grammar)
        self._word_code = lru_cache(maxsize=65536)(self._encode_word)
        self._word_tokens = lru_cache(maxsize=65536)(self._count_word_tokens)
        self.budget = lru_cache(maxsize=256)(self._budget)

    def encode(
        self, labels: tuple[str, ...], words: Sequence[str], draft: Sequence[str] | None = None
    ) -> EncodedPrompt:
        """Words and labels -> token ids. `draft` are tags, as in Decoded.

        Raises LabelsIndistinguishable, and PromptTooLong if the prompt exceeds the checkpoint's context.
        """
        grammar = self.grammar(labels)
        source_ids, offsets = self._source(labels, words)
        if len(source_ids) > self.limits.source_tokens:
            raise PromptTooLong(
                f"a prompt of {len(source_ids)} tokens ({len(words)} words, {len(labels)} labels) exceeds the "
                f"checkpoint's {self.limits.source_tokens}"
            )
        places = locate(self._format.template, labels, words, offsets) if offsets else None
        return EncodedPrompt(
            labels,
            tuple(words),
            source_ids,
            tuple(self._word_code(labels, word) for word in words),
            None if draft is None else tuple(grammar.tags.index(tag) for tag in draft),
            places if self._locates_words else None,
            _kinds(words, places, offsets) if self._marks_case and places else None,
        )

    def windows(
        self, labels: tuple[str, ...], text: str, text_words: Sequence[Word], breaks: Sequence[int] = ()
    ) -> list[Window]:
        """Cut a text's words into windows that fit. Raises PromptTooLong if the labels leave no room."""
        costs = [self.cost(labels, word.text) for word in text_words]
        return segment.windows(text, text_words, costs, self.budget(labels), breaks)

    def fits(self, labels: tuple[str, ...], words: Sequence[str]) -> bool:
        """Whether the words fit into one window."""
        costs = [self.cost(labels, word) for word in words]
        budget = self.budget(labels)
        return (
            sum(cost.source_tokens for cost in costs) <= budget.source_tokens
            and sum(cost.target_tokens for cost in costs) <= budget.target_tokens
        )

    def cost(self, labels: tuple[str, ...], word: str) -> WordCost:
        """The most that a word takes of the budget."""
        code = self._word_code(labels, word)
        return WordCost(self._word_tokens(word), len(code.forced) + code.grammar.longest_path)

    def _budget(self, labels: tuple[str, ...]) -> Budget:
        """What a label set leaves for words, without the start and end tokens."""
        taken = len(self._source(labels, ())[0])
        return Budget(max(0, self.limits.source_tokens - taken), self.limits.target_tokens - 2)

    def _source(self, labels: tuple[str, ...], words: Sequence[str]) -> tuple[tuple[int, ...], list[tuple[int, int]]]:
        """The prompt's token ids, and their places in its text (empty unless `locates_words`)."""
        text = self._format.render([_encodable(label) for label in labels], [_encodable(word) for word in words])
        encoding = self.tokenizer(
            text, truncation=False, return_offsets_mapping=self._locates_words or self._marks_case
        )
        ids: list[int] = encoding["input_ids"]
        if not self._source_ends_with_eos and ids[-1] == self.tokenizer.eos_token_id:
            ids = ids[:-1]
        return tuple(ids), encoding.get("offset_mapping", [])

    def _count_word_tokens(self, word: str) -> int:
        return len(self._ids_after_anchor(_encodable(word)))

    def _grammar(self, labels: tuple[str, ...]) -> Grammar:
        return Grammar(labels, [self._tag_path(tag) for tag in tag_names(labels)])

    def _tag_path(self, tag: str) -> tuple[int, ...]:
        ids = self._ids_after_anchor(f"{_ANCHOR}({_encodable(tag)})")
        word_ids = self._ids_after_anchor(_ANCHOR)
        if ids[: len(word_ids)] != word_ids:
            raise CheckpointError(f"the tokenizer merges {_ANCHOR!r} with '(': cannot tell where a tag begins")
        return ids[len(word_ids) :]

    def _encode_word(self, labels: tuple[str, ...], word: str) -> WordCode:
        """The word's tokens and its tag grammar, as tokenizing `word(tag)` as a whole gives them.

        The word's tokens usually end where the bracket begins, so that all words share the label set's grammar. A word
        whose last character merges with the bracket (`](` is a token of LLaMA) gets a grammar of its own.
        """
        grammar = self.grammar(labels)
        forced: tuple[int, ...] | None = None
        # after the bracket comes O, B or I: these three tags show every possible merge with the bracket
        for tag, path in zip(grammar.tags[:3], grammar.paths, strict=False):
            ids = self._ids_after_anchor(f"{_encodable(word)}({_encodable(tag)})")
            head = ids[: len(ids) - len(path)]
            if ids[len(head) :] != path or (forced is not None and forced != head):
                return WordCode((), self._grammar_of_word(labels, word))
            forced = head
        assert forced is not None  # O is always a tag
        return WordCode(forced, grammar)

    def _grammar_of_word(self, labels: tuple[str, ...], word: str) -> Grammar:
        tags = tag_names(labels)
        return Grammar(labels, [self._ids_after_anchor(f"{_encodable(word)}({_encodable(tag)})") for tag in tags])

    def _ids_after_anchor(self, text: str) -> tuple[int, ...]:
        """Token ids of a text after a space in mid-sentence."""
        ids = self._raw_ids(f"{_ANCHOR} {text}")
        if ids[: len(self._anchor_ids)] == self._anchor_ids:
            return ids[len(self._anchor_ids) :]
        # the normaliser joined the text to the anchor: it begins with a combining mark, for example
        return self._raw_ids(text)

    def _raw_ids(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])


def _kinds(words: Sequence[str], places: Places, offsets: Sequence[tuple[int, int]]) -> tuple[int, ...]:
    """How the word of each source token is written; a token of no word is plain."""
    kinds = [PLAIN] * len(offsets)
    for word, first in zip(words, places.word_positions, strict=True):
        begin, token = offsets[first][0], first
        # a special token is of no word: its range is empty
        while token < len(offsets) and offsets[token][0] < offsets[token][1] and offsets[token][0] < begin + len(word):
            kinds[token] = kind(word)
            token += 1
    return tuple(kinds)


def _encodable(text: str) -> str:
    """Replace lone surrogates, which UTF-8 cannot encode, with the replacement character, which has the same length."""
    return _LONE_SURROGATE.sub("\ufffd", text)
