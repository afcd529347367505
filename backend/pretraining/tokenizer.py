"""The tokenizer of the bundled checkpoint: MiniLM's, with a smaller vocabulary and three new tokens.

`(O)`, `(B-` and `(I-` are single tokens, so most tags in an answer are one token instead of three or four. The words of
a label and its closing bracket are ordinary tokens. This module does not import torch.
"""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from tokenizers import Tokenizer

PAD, UNKNOWN, START, END = "[PAD]", "[UNK]", "[CLS]", "[SEP]"
SPECIAL = (PAD, UNKNOWN, START, END)
TAG_OPENINGS = ("(O)", "(B-", "(I-")
_LATIN_LIMIT = 0x250  # lower code points are Latin letters, with or without accents, digits and punctuation


def prune(tokenizer: Tokenizer, words: Counter[str], size: int, min_count: int) -> tuple[Tokenizer, list[int]]:
    """A tokenizer with `size` pieces, and the old id of each piece (-1 for the three new tokens).

    Every single character stays, both alone and inside a word, so no text becomes unknown that was known before. Pieces
    that occur at least `min_count` times in `words` stay too. Pieces of Latin script fill the rest, in the order of the
    old vocabulary, which is by frequency in BERT's training text.
    """
    old_ids = tokenizer.get_vocab(with_added_tokens=False)
    counts = _count_pieces(tokenizer, words)
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


def _count_pieces(tokenizer: Tokenizer, words: Counter[str]) -> Counter[int]:
    """How often each piece occurs in the words, by piece id."""
    counts: Counter[int] = Counter()
    distinct = list(words)
    for word, encoding in zip(distinct, tokenizer.encode_batch(distinct, add_special_tokens=False), strict=True):
        for piece_id in encoding.ids:
            counts[piece_id] += words[word]
    return counts


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


def read_tokenizer(path: Path) -> Tokenizer:
    """Read a tokenizer.json, with truncation and padding switched off."""
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def count_words(sentences: Iterable[Sequence[str]]) -> Counter[str]:
    """How often each word occurs."""
    return Counter(word for words in sentences for word in words)
