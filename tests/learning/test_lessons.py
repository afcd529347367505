"""Lessons and splits."""

import random

import pytest

from backend.engine.codec import Codec, Limits
from backend.learning.examples import Example
from backend.learning.lessons import Lesson, Mentions, folds, is_held_out, lessons_of, random_batches, split, swapped
from backend.ner.bio import mentions_by_label
from backend.ner.grammar import Grammar
from backend.ner.prompt import PromptFormat
from backend.ner.spans import Passage, Question, Span
from tests.support import tiny

LABELS = ("person", "city")
TEXT = "Marie Curie worked in Paris. Marie worked."


def codec(tokens: int = 1000) -> Codec:
    return Codec(
        tiny.bert_tokenizer(), PromptFormat("{labels} : {sentence}"), Limits(tokens, tokens), source_ends_with_eos=True
    )


def examples(number: int) -> list[Example]:
    return [Example(task_id, 10 * task_id, False, ()) for task_id in range(number)]


def test_every_word_is_taught_with_its_tag() -> None:
    spans = [Span(0, 11, "person", 1.0), Span(22, 27, "city", 1.0), Span(29, 34, "person", 1.0)]
    (lesson,) = lessons_of(codec(), Question(Passage(TEXT), LABELS), spans, 2.0)
    assert lesson.words == ("Marie", "Curie", "worked", "in", "Paris", ".", "Marie", "worked", ".")
    assert lesson.tags == ("B-person", "I-person", "O", "O", "B-city", "O", "B-person", "O", "O")
    assert (lesson.labels, lesson.weight) == (LABELS, 2.0)


def test_a_text_without_words_teaches_nothing() -> None:
    assert lessons_of(codec(), Question(Passage(" \n"), LABELS), []) == []


@pytest.mark.parametrize("tokens", [60, 80, 120])
def test_a_long_text_is_cut_into_windows_that_begin_legally(tokens: int) -> None:
    text = " ".join(["Marie Curie worked"] * 20)
    span = Span(0, len(text), "person", 1.0)
    cut = lessons_of(codec(tokens), Question(Passage(text), LABELS), [span])
    assert len(cut) > 1
    assert not codec(tokens).fits(LABELS, text.split())
    for lesson in cut:
        assert codec(tokens).fits(LABELS, lesson.words)
        grammar: Grammar = codec(tokens).grammar(LABELS)
        before = 0
        for tag in map(grammar.tags.index, lesson.tags):
            assert grammar.allowed(before) >> tag & 1
            before = tag
        assert lesson.tags[0] == "B-person"


def test_about_a_fifth_is_held_out_and_stays_so() -> None:
    few, many = split("2.17", examples(500)), split("2.17", examples(1000))
    assert 0.15 < len(many.held_out) / 1000 < 0.25
    assert set(few.held_out) <= set(many.held_out)
    assert set(few.train) <= set(many.train)
    assert set(many.train) | set(many.held_out) == set(examples(1000))
    assert not any(is_held_out("2.17", example.task_id) for example in many.train)


def test_projects_hold_out_different_tasks() -> None:
    first, second = split("1.17", examples(200)), split("2.17", examples(200))
    assert set(first.held_out) != set(second.held_out)


@pytest.mark.parametrize("number", [1, 2, 3, 4, 10])
def test_folds_are_parts_of_like_size(number: int) -> None:
    parts = folds("2.17", examples(number), 3)
    assert sorted(example.task_id for part in parts for example in part) == list(range(number))
    assert len(parts) == min(3, number)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert parts == folds("2.17", examples(number)[::-1], 3)


def test_swapped_entities_keep_their_labels() -> None:
    lesson = Lesson(LABELS, ("Marie", "Curie", "left", "Paris", "!"), ("B-person", "I-person", "O", "B-city", "O"), 2.0)
    others: Mentions = {"person": [("George",)], "city": [("New", "York", "City")]}
    assert swapped(lesson, others, 1.0, random.Random(1)) == Lesson(
        LABELS,
        ("George", "left", "New", "York", "City", "!"),
        ("B-person", "O", "B-city", "I-city", "I-city", "O"),
        2.0,
    )
    assert swapped(lesson, others, 0.0, random.Random(1)) == lesson
    assert mentions_by_label([lesson, lesson]) == {"person": [("Marie", "Curie")] * 2, "city": [("Paris",)] * 2}


def test_a_lesson_without_entities_stays() -> None:
    lesson = Lesson(LABELS, ("a", "work"), ("O", "O"))
    assert swapped(lesson, {}, 1.0, random.Random(1)) == lesson


def test_batches_hold_everything_once_within_their_bounds() -> None:
    rng = random.Random(1)
    sizes = [rng.randint(1, 50) for _ in range(200)] + [500]
    made = random_batches(sizes, 8, 120, rng)
    assert sorted(item for batch in made for item in batch) == list(range(201))
    for batch in made:
        assert len(batch) <= 8
        assert len(batch) == 1 or len(batch) * max(sizes[item] for item in batch) <= 120


def test_no_items_no_batches() -> None:
    assert random_batches([], 8, 100, random.Random(1)) == []
