"""Free-running output -> one tag per word, and the paper's way of counting entities.

A model that writes without constraints may skip, repeat or misspell words. Ding et al. 2024 (arXiv:2402.16602, section
3.3) align what it wrote with the words of the sentence in three steps, each for what the one before leaves: equal
words; the written words are a subsequence of the sentence; else their longest common subsequence. Words that got no
tag, and tags that are not in the label set, are O. The published scores were counted on what comes out, by entities
as normalised text: see `entities`. Constrained decoding needs none of this.
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
    """A word as the model wrote it, and the tag behind it."""

    text: str
    tag: str


def written_words(output: str) -> list[WrittenWord]:
    """`did(O) george(B-actor)` -> its words and tags. A tag without a word, or a word without a tag, is left out."""
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

    `respell` gives the words as the model can write them (tokenised and decoded); without it they are compared as
    they are. Case never counts.
    """
    written = written_words(output)
    known = {*tag_names(labels)}
    tags = [word.tag if word.tag in known else OUTSIDE for word in written]
    lowered = [word.lower() for word in words]
    wanted = list(respell(lowered)) if respell is not None else lowered
    places = align(wanted, [word.text.lower() for word in written])
    return tuple(OUTSIDE if place is None else tags[place] for place in places)


def align(wanted: Sequence[str], written: Sequence[str]) -> list[int | None]:
    """For each wanted word the index of the written word that stands for it, ascending, or None."""
    if list(wanted) == list(written):
        return list(range(len(wanted)))
    within = _as_subsequence(wanted, written)
    return within if within is not None else _longest_common_subsequence(wanted, written)


def _as_subsequence(wanted: Sequence[str], written: Sequence[str]) -> list[int | None] | None:
    """All of `written` found in `wanted`, each at the first place that is left; None if they are not."""
    places: list[int | None] = [None] * len(wanted)
    next_written = 0
    for index, word in enumerate(wanted):
        if next_written < len(written) and word == written[next_written]:
            places[index] = next_written
            next_written += 1
    return places if next_written == len(written) else None


@dataclass(frozen=True, slots=True)
class _Pair:
    """A wanted word, the equal written one, and the pair before it on the longest chain that ends here."""

    wanted: int
    written: int
    before: "_Pair | None"


def _longest_common_subsequence(wanted: Sequence[str], written: Sequence[str]) -> list[int | None]:
    """Hunt and Szymanski 1977: the longest chain of equal pairs that ascends on both sides."""
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
    """Lower case, without ASCII punctuation, English articles and superfluous white space, in this order."""
    return " ".join(_ARTICLE.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def entities(words: Sequence[str], tags: Sequence[str]) -> list[tuple[str, str]]:
    """The distinct (text, label) of a sentence, normalised, as the paper counts them.

    An entity goes from a B-, or an I- behind an O, to the next B- or O; its label is that of its last word.
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
