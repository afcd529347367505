"""Unconstrained output -> one tag per word, and the paper's way to count entities.

A model that writes without constraints may skip, repeat or misspell words. Ding et al. 2024 (arXiv:2402.16602, section
3.3) align its output with the words of the sentence. They use the first of three rules that applies: the words are
equal; the written words are a subsequence of the sentence; otherwise the longest common subsequence of both. Words
without a tag, and tags outside the label set, become O. The published scores count entities as normalised text on this
result: see `entities`. Constrained decoding needs none of this.
"""

import re
import string
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from backend.ner.bio import OUTSIDE, is_inside_tag, label_of, tag_names

_TAG = re.compile(r"\((B-.*?|I-.*?|O)\)")
_ARTICLE = re.compile(r"\b(?:a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)

Respell = Callable[[Sequence[str]], Sequence[str]]


@dataclass(frozen=True, slots=True)
class WrittenWord:
    """A word as the model wrote it, and the tag after it."""

    text: str
    tag: str


def written_words(output: str) -> list[WrittenWord]:
    """`did(O) george(B-actor)` -> its words and tags. Tags without a word and words without a tag are left out."""
    found = []
    begin = 0
    for match in _TAG.finditer(output):
        text = output[begin : match.start()].strip()
        if text:
            found.append(WrittenWord(text, match[1].strip()))
        begin = match.end()
    return found


def structure(
    output: str, words: Sequence[str], labels: Sequence[str], respell: Respell | None = None
) -> tuple[str, ...]:
    """One tag for each of `words`.

    `respell` returns words as the model can write them (tokenized and decoded); without it, words are compared as they
    are. Case is ignored.
    """
    written = written_words(output)
    known = {*tag_names(labels)}
    tags = [word.tag if word.tag in known else OUTSIDE for word in written]
    lowered = [word.lower() for word in words]
    wanted = list(respell(lowered)) if respell is not None else lowered
    places = align(wanted, [word.text.lower() for word in written])
    return tuple(OUTSIDE if place is None else tags[place] for place in places)


def align(wanted: Sequence[str], written: Sequence[str]) -> list[int | None]:
    """For each wanted word, the index of the written word that matches it, or None. Indices ascend."""
    if list(wanted) == list(written):
        return list(range(len(wanted)))
    within = _as_subsequence(wanted, written)
    return within if within is not None else _longest_common_subsequence(wanted, written)


def _as_subsequence(wanted: Sequence[str], written: Sequence[str]) -> list[int | None] | None:
    """Match all of `written` with `wanted`, each with the first free word. None if that is impossible."""
    places: list[int | None] = [None] * len(wanted)
    next_written = 0
    for index, word in enumerate(wanted):
        if next_written < len(written) and word == written[next_written]:
            places[index] = next_written
            next_written += 1
    return places if next_written == len(written) else None


@dataclass(frozen=True, slots=True)
class _Pair:
    """A wanted word, an equal written one, and the pair before them on the longest chain that ends here."""

    wanted: int
    written: int
    before: "_Pair | None"


def _longest_common_subsequence(wanted: Sequence[str], written: Sequence[str]) -> list[int | None]:
    """The longest chain of equal pairs that ascends on both sides (Hunt and Szymanski 1977)."""
    places_of: dict[str, list[int]] = {}
    for index, word in enumerate(written):
        places_of.setdefault(word, []).append(index)
    ends: list[int] = []  # ends[k] is the smallest written index at which a chain of k + 1 pairs can end
    chains: list[_Pair] = []
    for index, word in enumerate(wanted):
        # descending: two pairs of the same wanted word must not follow one another
        for place in reversed(places_of.get(word, [])):
            length = bisect_left(ends, place)
            pair = _Pair(index, place, chains[length - 1] if length else None)
            ends[length : length + 1] = [place]
            chains[length : length + 1] = [pair]
    places: list[int | None] = [None] * len(wanted)
    last = chains[-1] if chains else None
    while last is not None:
        places[last.wanted] = last.written
        last = last.before
    return places


def normalise(text: str) -> str:
    """Convert to lower case, then remove ASCII punctuation, English articles and superfluous white space."""
    return " ".join(_ARTICLE.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def entities(words: Sequence[str], tags: Sequence[str]) -> list[tuple[str, str]]:
    """The distinct (text, label) pairs of a sentence, normalised, as the paper counts them.

    An entity begins at a B-, or at an I- after an O, and ends before the next B- or O. Its last word gives the label.
    """
    found: list[tuple[str, str]] = []
    text: list[str] = []
    label = ""
    for word, tag in [*zip(words, tags, strict=True), ("", OUTSIDE)]:
        if text and not is_inside_tag(tag):
            entity = (normalise(" ".join(text)), normalise(label))
            if entity not in found:
                found.append(entity)
            text = []
        tag_label = label_of(tag)
        if tag_label is not None:
            text.append(word)
            label = tag_label
    return found
