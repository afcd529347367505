"""Text -> words -> windows -> spans: offsets are exact on any text, and nothing is left out or counted twice."""

import math
import random
from itertools import pairwise

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from backend.errors import PromptTooLong
from backend.ner import segment
from backend.ner.bio import label_of
from backend.ner.segment import Budget, WordCost
from backend.ner.spans import Span, TaggedWord, Window, Word

NASTY = [
    "Marie",
    "Curie",
    "Perth's",
    "U.S.",
    "1,000.5",
    "state-of-the-art",
    "👨‍👩‍👧‍👦",
    "👍🏽",
    "🇩🇪🇫🇷",
    "🏴󠁧󠁢󠁥󠁮󠁧󠁿",
    "1️⃣",
    "\r\n",
    "\n",
    "\t",
    " ",
    "\u00a0",
    "\u3000",
    "\u2028",
    "שלום",
    "עולם!",
    "مرحبا؟",
    "e\u0301te\u0301",
    "\u0301",
    "東京タワー",
    "。",
    "「はい」",
    "ที่นี่",
    "नमस्ते",
    "한국어",
    "zero\u200bwidth",
    "\u200d",
    "\u200c",
    "\ufeff",
    "\u00ad",
    "\ud800",
    "\udc00",
    "{}~\\`^<",
    "](",
    "https://a.b/c?d=e#f,",
    "www.x.org",
    "a.b+c@d-e.org",
    "@user",
    "#tag",
    "...",
    "--",
    "!!!",
    "x" * 95,
    "=" * 60,
    "あ" * 50,
    "\0",
    "\x1c",
]
nasty_texts = st.lists(st.one_of(st.sampled_from(NASTY), st.text(max_size=8)), max_size=30).map("".join)


@given(nasty_texts)
def test_words_are_exact_slices_in_order_and_leave_out_white_space_only(text: str) -> None:
    position = 0
    for word in segment.words(text):
        assert position <= word.start < word.end
        assert text[word.start : word.end] == word.text
        assert text[position : word.start].strip() == "", "something else than white space was left out"
        assert not {" ", "\n", "\r", "\t", "\u00a0", "\u3000", "\u2028"} & set(word.text)
        assert len(word.text) <= segment.MAX_WORD_CODE_POINTS
        position = word.end
    assert text[position:].strip() == ""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        (" \t\r\n ", []),
        ("did george clooney", ["did", "george", "clooney"]),
        ("Paris, (France).", ["Paris", ",", "(", "France", ")", "."]),
        ("the U.S. economy", ["the", "U.S.", "economy"]),
        ("rose 1,000.5 %, at 10:30.", ["rose", "1,000.5", "%", ",", "at", "10:30", "."]),
        ("Perth's and we’ll", ["Perth", "'s", "and", "we", "’ll"]),
        ("London-based AC/DC", ["London", "-", "based", "AC", "/", "DC"]),
        ("line\r\nbreak\ttab", ["line", "break", "tab"]),
        ("wait... what?!", ["wait", "...", "what", "?", "!"]),
        ("see https://a.b/c?d=e#f, ok", ["see", "https://a.b/c?d=e#f", ",", "ok"]),
        ("(www.x.org/en).", ["(", "www.x.org/en", ")", "."]),
        ("mail a.b+c@d-e.org.", ["mail", "a.b+c@d-e.org", "."]),
        ("@user #tag", ["@user", "#tag"]),
        ("hi👨‍👩‍👧‍👦!", ["hi", "👨‍👩‍👧‍👦", "!"]),
        ("🇩🇪🇫🇷👍🏽", ["🇩🇪", "🇫🇷", "👍🏽"]),
        ("e\u0301te\u0301 fini", ["e\u0301te\u0301", "fini"]),
        ("東京へ行くABC社", ["東", "京", "へ", "行", "く", "ABC", "社"]),
        ("ที่นี่", ["ที่", "นี่"]),
        ("שלום, עולם!", ["שלום", ",", "עולם", "!"]),
        ("هل أنت؟", ["هل", "أنت", "؟"]),
        ("한국어 텍스트", ["한국어", "텍스트"]),
        ("नमस्ते दुनिया", ["नमस्ते", "दुनिया"]),
        ("a\ud800b", ["a", "\ud800", "b"]),
        ("{a}~`", ["{", "a", "}", "~", "`"]),
        ("x" * 100, ["x" * 40, "x" * 40, "x" * 20]),
    ],
)
def test_words_by_example(text: str, expected: list[str]) -> None:
    assert [word.text for word in segment.words(text)] == expected


@pytest.mark.parametrize(
    ("text", "first_words"),
    [
        ("", []),
        ("One two. Three four! Five six? Seven", ["One", "Three", "Five", "Seven"]),
        ('He said "Yes." Then he left.', ["He", "Then"]),
        ("Wait... what is it... Now", ["Wait", "Now"]),
        ("a heading\nthe text", ["a", "the"]),
        ("one\r\ntwo\rthree", ["one", "two", "three"]),
        ("これは。それは。", ["こ", "そ"]),
        ("no end of a sentence, here", ["no"]),
        ("it costs 3.14 Euro and 10:30 Uhr", ["it"]),
    ],
)
def test_sentences_begin_behind_their_ends_and_line_breaks(text: str, first_words: list[str]) -> None:
    words = segment.words(text)
    starts = segment.sentence_starts(text, words)
    assert [word.text for word, starting in zip(words, starts, strict=True) if starting] == first_words


ONE_TOKEN = WordCost(1, 1)


def windows_of(text: str, budget: Budget, cost: WordCost = ONE_TOKEN) -> tuple[list[Word], list[Window]]:
    words = segment.words(text)
    return words, segment.windows(text, words, [cost] * len(words), budget)


def kept_words(windows: list[Window]) -> list[int]:
    return [index for window in windows for index in range(window.keep_from, window.keep_to)]


def covered(window: Window) -> range:
    return range(window.first_word, window.first_word + len(window.words))


pieces = st.sampled_from(["word ", "Word ", "end. ", "Really? ", "line\n", "東京", "(x) ", "... "])


@given(
    st.lists(pieces, max_size=60).map("".join),
    st.randoms(use_true_random=False),
    st.integers(8, 40),
    st.integers(8, 40),
)
def test_windows_cover_every_word_once_within_the_budget(
    text: str, rng: random.Random, source_tokens: int, target_tokens: int
) -> None:
    words = segment.words(text)
    costs = [WordCost(rng.randint(1, 8), rng.randint(1, 8)) for _ in words]
    windows = segment.windows(text, words, costs, Budget(source_tokens, target_tokens))
    assert kept_words(windows) == list(range(len(words)))
    for window in windows:
        assert window.words == tuple(words[index] for index in covered(window))
        assert set(range(window.keep_from, window.keep_to)) <= set(covered(window))
        assert sum(costs[index].source_tokens for index in covered(window)) <= source_tokens
        assert sum(costs[index].target_tokens for index in covered(window)) <= target_tokens
    assert all(a.first_word < b.first_word for a, b in pairwise(windows)), "windows go forward"


@given(st.lists(st.integers(1, 10), min_size=1, max_size=30))
def test_whole_sentences_share_windows_without_overlap(lengths: list[int]) -> None:
    text = " ".join(" ".join(["Word"] + ["word"] * (length - 1)) + "." for length in lengths)
    words, windows = windows_of(text, Budget(12, 1000))
    starts = segment.sentence_starts(text, words)
    assert sum(starts) == len(lengths)
    assert sum(len(window.words) for window in windows) == len(words), "no word is in two windows"
    assert all(starts[window.first_word] for window in windows)
    for window, following in pairwise(windows):
        ends = [index for index in range(following.first_word + 1, len(words)) if starts[index]] + [len(words)]
        assert len(window.words) + ends[0] - following.first_word > 12, "the next sentence would have fitted too"


def test_a_sentence_too_long_is_cut_with_an_overlap_that_each_side_keeps_the_half_of() -> None:
    _, windows = windows_of("word " * 250, Budget(100, 1000))
    assert [(window.first_word, len(window.words), window.keep_from, window.keep_to) for window in windows] == [
        (0, 100, 0, 92),
        (84, 100, 92, 176),
        (168, 82, 176, 250),
    ]


def test_the_sentence_behind_one_that_is_too_long_starts_at_its_own_beginning() -> None:
    text = "word " * 120 + ". Next sentence here."
    words, windows = windows_of(text, Budget(100, 1000))
    assert kept_words(windows) == list(range(len(words)))
    starts = segment.sentence_starts(text, words)
    assert len(windows) == 2
    assert starts.index(True, 1) in covered(windows[1])


def test_a_window_before_and_behind_the_cut_sees_its_kept_words_in_context() -> None:
    _, windows = windows_of("word " * 1000, Budget(64, 1000))
    for window, following in pairwise(windows):
        to_the_right = window.first_word + len(window.words) - window.keep_to
        to_the_left = following.keep_from - following.first_word
        assert to_the_right >= 4
        assert to_the_left >= 4


def test_a_document_of_25_000_words_is_covered_without_gaps() -> None:
    rng = random.Random(25_000)
    lines = []
    for _ in range(500):
        line = " ".join(rng.choice(["Ada", "worked", "in", "München", "東京", "U.S.", "👍🏽"]) for _ in range(50))
        lines.append(line + rng.choice([".", "", "!\r", "?"]))
    text = "\n".join(lines)
    words = segment.words(text)
    assert len(words) >= 25_000
    costs = [WordCost(rng.randint(1, 3), rng.randint(4, 9)) for _ in words]
    windows = segment.windows(text, words, costs, Budget(500, 600))
    assert kept_words(windows) == list(range(len(words)))
    assert all(sum(costs[index].target_tokens for index in covered(window)) <= 600 for window in windows)


def test_no_words_no_windows() -> None:
    assert windows_of(" \n ", Budget(1, 1))[1] == []


@pytest.mark.parametrize("budget", [Budget(3, 100), Budget(100, 3), Budget(0, 100)])
def test_a_word_that_fits_no_window_is_an_error_that_names_it(budget: Budget) -> None:
    with pytest.raises(PromptTooLong, match=r"'Constantinople'.*4 source and 4 target"):
        windows_of("Constantinople", budget, WordCost(4, 4))


def tagged(*tags: str, probability: float = 0.5) -> list[TaggedWord]:
    """Words of one letter with a space between: word i is at 2 * i."""
    return [TaggedWord(Word(2 * i, 2 * i + 1, "x"), tag, probability) for i, tag in enumerate(tags)]


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ([], []),
        (["O", "O"], []),
        (["B-a"], [Span(0, 1, "a", 0.5)]),
        (["O", "B-a", "I-a", "I-a", "O"], [Span(2, 7, "a", 0.125)]),
        (["B-a", "B-a"], [Span(0, 1, "a", 0.5), Span(2, 3, "a", 0.5)]),
        (["B-a", "I-a", "B-b", "I-b"], [Span(0, 3, "a", 0.25), Span(4, 7, "b", 0.25)]),
        (["B-a", "O", "B-a"], [Span(0, 1, "a", 0.5), Span(4, 5, "a", 0.5)]),
        # only a seam of two windows can leave these
        (["O", "I-a", "I-a"], [Span(2, 5, "a", 0.25)]),
        (["B-a", "I-b"], [Span(0, 1, "a", 0.5), Span(2, 3, "b", 0.5)]),
        # labels may hold anything, hyphens and the letters of the tags too
        (["B-B-x", "I-B-x", "B-O"], [Span(0, 3, "B-x", 0.25), Span(4, 5, "O", 0.5)]),
    ],
)
def test_stitch_by_example(tags: list[str], expected: list[Span]) -> None:
    assert segment.stitch(tagged(*tags)) == expected


@given(nasty_texts, st.data())
def test_spans_survive_the_way_through_tags(text: str, data: st.DataObject) -> None:
    words = segment.words(text)
    assume(words)
    spans: list[Span] = []
    tags: list[str] = []
    while len(tags) < len(words):
        length = data.draw(st.integers(1, len(words) - len(tags)))
        label = data.draw(st.sampled_from([None, "a", "b", "work of art"]))
        first, last = words[len(tags)], words[len(tags) + length - 1]
        if label is None:
            tags += ["O"] * length
        else:
            tags += [f"B-{label}"] + [f"I-{label}"] * (length - 1)
            spans.append(Span(first.start, last.end, label, 1.0))
    stitched = segment.stitch([TaggedWord(word, tag, 1.0) for word, tag in zip(words, tags, strict=True)])
    assert stitched == spans
    assert {span.label for span in stitched} == {label_of(tag) for tag in tags} - {None}


@pytest.mark.parametrize(
    ("probabilities", "expected"),
    [
        ([], 1.0),
        ([1.0, 1.0], 1.0),
        ([0.25], 0.25),
        ([0.5, 0.5, 0.5], 0.5),  # a long text is not less sure for its length
        ([1.0, 0.25], 0.5),
        ([0.0], 1e-9),  # never 0: it is a mean of logarithms
    ],
)
def test_confidence_is_the_geometric_mean(probabilities: list[float], expected: float) -> None:
    assert segment.confidence(probabilities) == pytest.approx(expected)


@given(st.lists(st.floats(0, 1), max_size=50))
def test_confidence_is_a_probability(probabilities: list[float]) -> None:
    found = segment.confidence(probabilities)
    assert math.isfinite(found)
    assert 0 < found <= 1 + 1e-12


def test_neither_a_word_nor_a_span_goes_over_a_break() -> None:
    text = "Ivan PetrovPlovdiv Paris"
    words = segment.words(text, (11, 18))
    assert [word.text for word in words] == ["Ivan", "Petrov", "Plovdiv", "Paris"]
    assert segment.sentence_starts(text, words, (11, 18)) == [True, False, True, True]
    tagged = [TaggedWord(word, tag, 0.5) for word, tag in zip(words, ["B-x", "I-x", "I-x", "I-x"], strict=True)]
    spans = [text[span.start : span.end] for span in segment.stitch(tagged, (11, 18))]
    assert spans == ["Ivan Petrov", "Plovdiv", "Paris"]
