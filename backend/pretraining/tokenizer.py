"""Examples -> token ids, and the tokenizer that does it: MiniLM's, with a smaller vocabulary and three new tokens.

`(O)`, `(B-` and `(I-` are tokens of their own, so that an answer has one token for most tags instead of three or
four; a label's words and its closing bracket are ordinary tokens. No torch.
"""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from tokenizers import Tokenizer

from backend.ner.bio import OUTSIDE, label_index, tag_names
from backend.ner.casing import PLAIN, kind
from backend.ner.grammar import Grammar
from backend.pretraining.mixture import Example

PAD, UNKNOWN, START, END = "[PAD]", "[UNK]", "[CLS]", "[SEP]"
SPECIAL = (PAD, UNKNOWN, START, END)
TAG_OPENINGS = ("(O)", "(B-", "(I-")
_LATIN_LIMIT = 0x250  # code points below are Latin letters, with or without accents, digits and signs


def prune(tokenizer: Tokenizer, words: Counter[str], size: int, min_count: int) -> tuple[Tokenizer, list[int]]:
    """A tokenizer with `size` of the pieces, and the old id of each new one (-1 for the three new tokens).

    Kept are: every single character, alone and inside a word, so that nothing becomes unknown that was not before;
    pieces that occur at least `min_count` times in `words`; then pieces of Latin script in the order of the old
    vocabulary, which is that of their frequency in the text that BERT was trained on.
    """
    old_ids = tokenizer.get_vocab(with_added_tokens=False)
    counts: Counter[int] = Counter()
    distinct = list(words)
    for word, encoding in zip(distinct, tokenizer.encode_batch(distinct, add_special_tokens=False), strict=True):
        for piece_id in encoding.ids:
            counts[piece_id] += words[word]
    pieces = sorted((piece for piece in old_ids if not _is_unused(piece)), key=lambda piece: old_ids[piece])
    needed = [
        piece
        for piece in pieces
        if piece not in SPECIAL and (len(_bare(piece)) == 1 or counts[old_ids[piece]] >= min_count)
    ]
    needed_set = {*needed, *SPECIAL}
    others = [piece for piece in pieces if piece not in needed_set and all(ord(sign) < _LATIN_LIMIT for sign in piece)]
    room = size - len(SPECIAL) - len(TAG_OPENINGS) - len(needed)
    kept = sorted([*needed, *others[: max(0, room)]], key=lambda piece: old_ids[piece])
    vocabulary = [*SPECIAL, *TAG_OPENINGS, *kept]
    return _with_vocabulary(tokenizer, vocabulary), [old_ids.get(piece, -1) for piece in vocabulary]


def _is_unused(piece: str) -> bool:
    return piece.startswith("[unused") or piece == "[MASK]"


def _bare(piece: str) -> str:
    return piece.removeprefix("##")


def _with_vocabulary(tokenizer: Tokenizer, vocabulary: Sequence[str]) -> Tokenizer:
    ids = {piece: index for index, piece in enumerate(vocabulary)}
    state = json.loads(tokenizer.to_str())
    state["model"]["vocab"] = ids
    state["truncation"] = state["padding"] = None
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    state["added_tokens"] = [{"id": ids[piece], "content": piece, **flags, "special": True} for piece in SPECIAL] + [
        {"id": ids[piece], "content": piece, **flags, "special": False} for piece in TAG_OPENINGS
    ]
    state["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [_special(START), {"Sequence": {"id": "A", "type_id": 0}}, _special(END)],
        "pair": [
            _special(START),
            {"Sequence": {"id": "A", "type_id": 0}},
            _special(END),
            {"Sequence": {"id": "B", "type_id": 0}},
            _special(END),
        ],
        "special_tokens": {piece: {"id": piece, "ids": [ids[piece]], "tokens": [piece]} for piece in (START, END)},
    }
    return Tokenizer.from_str(json.dumps(state))


def _special(piece: str) -> dict[str, dict[str, str | int]]:
    return {"SpecialToken": {"id": piece, "type_id": 0}}


@dataclass(frozen=True, slots=True)
class Choice:
    """A position of the target at which the model decides: one of `options` (token ids) is right."""

    position: int
    options: tuple[int, ...]
    right: int  # index into options


@dataclass(frozen=True, slots=True)
class Encoded:
    """An example as the model is trained on it.

    `target` is the answer with the end token; the decoder reads it shifted by one, behind the start token, so what
    it says at position t is token t of `target`. `word_pointers[t]` and `label_pointers[t]` are the source tokens,
    half-open, that tell what to write at t: those of the word in question, and of the label token to be copied; (0, 0)
    where there is nothing to point at.
    """

    source: tuple[int, ...]
    target: tuple[int, ...]
    choices: tuple[Choice, ...]
    word_pointers: tuple[tuple[int, int], ...]
    label_pointers: tuple[tuple[int, int], ...]
    word_positions: tuple[int, ...]  # first source token of each word
    label_spans: tuple[tuple[int, int], ...]  # source tokens of each label, half-open
    tags: tuple[int, ...]  # per word, the index into `tag_names(labels)`
    source_kinds: tuple[int, ...] = ()  # per source token, how its word is written (see ner.casing); empty: not told

    @property
    def num_tokens(self) -> int:
        return len(self.source) + len(self.target)


class Speller:
    """Encodes examples. Its tokenizer is context-free over words, so every distinct text is tokenised once."""

    def __init__(self, tokenizer: Tokenizer, template: str, *, marks_case: bool = False) -> None:
        """`template` is that of the prompt, with the fields {labels} and {sentence}."""
        self._marks_case = marks_case
        head, rest = template.split("{labels}")
        between, tail = rest.split("{sentence}")
        self._tokenizer = tokenizer
        self.ids = lru_cache(maxsize=1 << 18)(self._ids)
        self._head, self._between, self._tail = (self.ids(part) for part in (head, between, tail))
        self._comma = self.ids(",")
        self._start, self._end, self._outside, self._begin, self._inside = (
            self._id(piece) for piece in (START, END, *TAG_OPENINGS)
        )
        (self._close,) = self.ids(")")

    def _id(self, piece: str) -> int:
        found = self._tokenizer.token_to_id(piece)
        assert found is not None, f"the tokenizer lacks {piece!r}"
        return found

    def _ids(self, text: str) -> tuple[int, ...]:
        return tuple(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def tag_path(self, tag: str) -> tuple[int, ...]:
        """The tokens of `(tag)`."""
        if tag == OUTSIDE:
            return (self._outside,)
        return (self._begin if tag.startswith("B-") else self._inside, *self.ids(tag[2:]), self._close)

    def encode(self, example: Example) -> Encoded:
        """Raises LabelsIndistinguishable if two labels have the same tokens."""
        source = [self._start, *self._head]
        label_spans = []
        for index, label in enumerate(example.labels):
            if index:
                source += self._comma
            label_spans.append((len(source), len(source) + len(self.ids(label))))
            source += self.ids(label)
        source += self._between
        word_spans = []
        for word in example.words:
            word_spans.append((len(source), len(source) + len(self.ids(word))))
            source += self.ids(word)
        source += [*self._tail, self._end]
        kinds = [PLAIN] * len(source)
        for word, (start, end) in zip(example.words, word_spans, strict=True):
            kinds[start:end] = [kind(word)] * (end - start)

        names = tag_names(example.labels)
        grammar = Grammar(example.labels, [self.tag_path(tag) for tag in names])
        index_of = {tag: index for index, tag in enumerate(names)}
        tags = tuple(index_of[tag] for tag in example.tags)
        target: list[int] = []
        choices: list[Choice] = []
        word_pointers: list[tuple[int, int]] = []
        label_pointers: list[tuple[int, int]] = []
        previous = 0
        for word, (start, end), tag in zip(example.words, word_spans, tags, strict=True):
            pieces, path = self.ids(word), grammar.paths[tag]
            target += pieces
            word_pointers += [(position, position + 1) for position in range(start, end)]
            label_pointers += [(0, 0)] * len(pieces)
            choices += [
                Choice(len(target) + decision.offset, decision.tokens, decision.choice)
                for decision in grammar.decisions(previous, tag)
            ]
            target += path
            word_pointers += [(start, end)] * len(path)
            label_pointers.append((0, 0))  # the opening
            if tag:
                first, stop = label_spans[label_index(tag)]
                label_pointers += [(position, position + 1) for position in range(first, stop)] + [(0, 0)]
            previous = tag
        target.append(self._end)
        word_pointers.append((0, 0))
        label_pointers.append((0, 0))
        return Encoded(
            tuple(source),
            tuple(target),
            tuple(choices),
            tuple(word_pointers),
            tuple(label_pointers),
            tuple(start for start, _ in word_spans),
            tuple(label_spans),
            tags,
            tuple(kinds) if self._marks_case else (),
        )

    def decoder_input(self, target: Sequence[int]) -> list[int]:
        """What the decoder reads to write `target`: shifted by one, behind the start token."""
        return [self._start, *target[:-1]]


def read_tokenizer(path: Path) -> Tokenizer:
    """A tokenizer.json without truncation and padding."""
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def count_words(sentences: Iterable[Sequence[str]]) -> Counter[str]:
    """How often each word occurs."""
    return Counter(word for words in sentences for word in words)
