"""Text -> words -> windows, and tagged words -> spans in the text.

All offsets are code points of the original text: nothing is normalised or stripped.
"""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import regex

from backend.errors import PromptTooLong
from backend.ner.bio import OUTSIDE, as_begin, entity_tags, is_inside_tag, mentions
from backend.ner.spans import Span, TaggedWord, Window, Word

# A longer run without a space (base64, a URL) is cut into several words, so that one word always fits into a window.
MAX_WORD_CODE_POINTS = 40
# Two windows share at most this many words where a sentence had to be cut.
MAX_OVERLAP_WORDS = 16

_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}"
_WORD = regex.compile(
    rf"""
      https?://\S*[^\s\p{{P}}]/? | www\.\S*[^\s\p{{P}}]/?   # a URL, without the punctuation that follows it
    | [\w.+-]+@\w[\w-]*(?:\.\w[\w-]*)+                      # an e-mail address
    | [@\#]\w+                                              # a mention, a hashtag
    | (?:\p{{L}}\.){{2,}}                                   # U.S.
    | \p{{N}}+(?:[.,:]\p{{N}}+)+                            # 1,000.5  10:30
    | (?<=\w)['’](?:s|t|d|m|re|ve|ll)\b                     # Perth's -> Perth 's
    | (?=[{_UNSPACED}])\X                                   # scripts without spaces: a grapheme is a word
    | (?:(?![{_UNSPACED}])[\w\p{{M}}\u200c\u200d])+         # letters, digits, marks and joiners
    | (?P<repeated>[\p{{P}}\p{{S}}])(?P=repeated)+          # ...  ----  !!!
    | \X                                                    # any other character; an emoji sequence as a whole
    """,
    regex.VERBOSE | regex.IGNORECASE,
)
_CHUNK = regex.compile(r"\S+")
_SENTENCE_END = frozenset(".!?…。！？।۔؟") | {"..."}
_CLOSING = frozenset("\"'”’»)]}」』）")


def words(text: str, breaks: Sequence[int] = ()) -> list[Word]:
    """Split a text into words. `text[w.start:w.end] == w.text`, and only white space is left out.

    Punctuation marks, hyphens and apostrophes are separate words, so that a span can begin or end at any of them.
    No word crosses an offset in `breaks` (ascending): a new block begins there, such as a table cell, even without
    white space.
    """
    return [
        word
        for chunk in _CHUNK.finditer(text)
        for start, end in pairwise([chunk.start(), *_between(breaks, chunk.start(), chunk.end()), chunk.end()])
        for word in _words_of_chunk(text, start, end)
    ]


def _between(breaks: Sequence[int], start: int, end: int) -> Sequence[int]:
    return breaks[bisect_right(breaks, start) : bisect_left(breaks, end)]


def _words_of_chunk(text: str, start: int, end: int) -> Iterator[Word]:
    for match in _WORD.finditer(text, start, end):
        for piece_start in range(match.start(), match.end(), MAX_WORD_CODE_POINTS):
            piece_end = min(piece_start + MAX_WORD_CODE_POINTS, match.end())
            yield Word(piece_start, piece_end, text[piece_start:piece_end])


def sentence_starts(text: str, text_words: Sequence[Word], breaks: Sequence[int] = ()) -> list[bool]:
    """For each word, whether a sentence may begin there. It marks good places to cut, and need not be correct."""
    starts = [True] * len(text_words)
    for index in range(1, len(text_words)):
        before, after = text_words[index - 1].end, text_words[index].start
        gap = text[before:after]
        is_new_line = "\n" in gap or "\r" in gap
        is_new_sentence = _ends_sentence(text_words, index) and _may_begin(text_words[index])
        starts[index] = is_new_line or is_new_sentence or _is_broken(breaks, before, after)
    return starts


def _is_broken(breaks: Sequence[int], before: int, after: int) -> bool:
    """Whether there is a break between a word that ends at `before` and one that starts at `after`."""
    return bisect_left(breaks, before) < bisect_right(breaks, after)


def _ends_sentence(text_words: Sequence[Word], index: int) -> bool:
    last = index - 1
    while last > 0 and text_words[last].text in _CLOSING:
        last -= 1
    return text_words[last].text[-1:] in _SENTENCE_END and len(text_words[last].text) <= 3


def _may_begin(word: Word) -> bool:
    return not word.text[0].islower() and word.text not in _CLOSING and word.text[0] not in _SENTENCE_END


@dataclass(frozen=True, slots=True)
class Budget:
    """How much fits into one window, in tokens of the model's source and target."""

    source_tokens: int
    target_tokens: int


@dataclass(frozen=True, slots=True)
class WordCost:
    """The most that a word takes of a Budget: its tokens in the source, and with its longest tag in the target."""

    source_tokens: int
    target_tokens: int


def windows(
    text: str, text_words: Sequence[Word], costs: Sequence[WordCost], budget: Budget, breaks: Sequence[int] = ()
) -> list[Window]:
    """Cover all words with windows within the budget.

    Whole sentences are packed together. A sentence that is too long for one window is cut with an overlap; each word of
    the overlap is kept by the window in which it is farther from the cut.
    Raises PromptTooLong if a single word does not fit.
    """
    starts = sentence_starts(text, text_words, breaks)
    result: list[Window] = []
    begin, keep_from = 0, 0
    while begin < len(text_words):
        end = _last_fitting(text_words, costs, budget, begin)
        if end == len(text_words):
            next_begin, keep_to = end, end
        else:
            cut = _last_sentence_start(starts, begin, end)
            if cut is not None and cut > keep_from:
                end = next_begin = keep_to = cut
            else:
                overlap = min(MAX_OVERLAP_WORDS, (end - begin) // 4)
                next_begin, keep_to = end - overlap, end - overlap // 2
        result.append(Window(begin, tuple(text_words[begin:end]), keep_from, keep_to))
        begin, keep_from = next_begin, keep_to
    return result


def _last_fitting(text_words: Sequence[Word], costs: Sequence[WordCost], budget: Budget, begin: int) -> int:
    source = target = 0
    for index in range(begin, len(costs)):
        source += costs[index].source_tokens
        target += costs[index].target_tokens
        if source > budget.source_tokens or target > budget.target_tokens:
            if index == begin:
                raise PromptTooLong(
                    f"the word {text_words[begin].text!r} takes {source} source and {target} target tokens; this "
                    f"label set leaves only {budget.source_tokens} and {budget.target_tokens}: use fewer or "
                    "shorter labels"
                )
            return index
    return len(costs)


def _last_sentence_start(starts: Sequence[bool], begin: int, end: int) -> int | None:
    return next((index for index in range(end, begin, -1) if starts[index]), None)


def kept(window: Window, tags: Sequence[str], probabilities: Sequence[float]) -> list[TaggedWord]:
    """The tagged words of a window whose labels come from it."""
    return [
        TaggedWord(window.words[index], tags[index], probabilities[index])
        for index in range(window.keep_from - window.first_word, window.keep_to - window.first_word)
    ]


def stitch(tagged_words: Sequence[TaggedWord], breaks: Sequence[int] = ()) -> list[Span]:
    """BIO tags of consecutive words -> spans, in text order. A span's score is the product over its words.

    An I- that continues nothing (where two windows meet, or behind a break) begins a span.
    """
    tags = [tagged.tag for tagged in tagged_words]
    for index, (before, after) in enumerate(pairwise(tagged_words), start=1):
        if is_inside_tag(after.tag) and _is_broken(breaks, before.word.end, after.word.start):
            tags[index] = as_begin(after.tag)
    return [_span_of(tagged_words[mention.start : mention.end], mention.label) for mention in mentions(tags)]


def _span_of(tagged_words: Sequence[TaggedWord], label: str) -> Span:
    score = math.prod(tagged.probability for tagged in tagged_words)
    return Span(tagged_words[0].word.start, tagged_words[-1].word.end, label, score)


def tags_of(spans: Sequence[Span], text_words: Sequence[Word]) -> list[str]:
    """Spans -> one tag per word, the inverse of `stitch`. A word that a span only touches is covered by it."""
    tags = [OUTSIDE] * len(text_words)
    for span in spans:
        covered = [i for i, word in enumerate(text_words) if word.start < span.end and span.start < word.end]
        for index, tag in zip(covered, entity_tags(span.label, len(covered)), strict=True):
            tags[index] = tag
    return tags


def confidence(probabilities: Sequence[float]) -> float:
    """A text's score, 0..1: the exponent of the mean log-probability of its words' tags; 1.0 without words.

    This is MNLP (maximum normalised log-probability), the uncertainty measure of Shen et al. 2018
    (arXiv:1707.05928). Unlike the plain product, it does not depend on the length of the text.
    """
    if not probabilities:
        return 1.0
    return math.exp(sum(math.log(max(p, 1e-9)) for p in probabilities) / len(probabilities))
