"""What a label config makes of annotations."""

from collections.abc import Iterable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.errors import NotEnoughExamples
from backend.learning.annotations import AnnotatedText, Annotation, ControlLabels
from backend.learning.examples import (
    MIN_EXAMPLES,
    LabelledText,
    Remapping,
    examples_of,
    require_examples,
    was_corrected,
)
from backend.ner.labels import PromptLabels
from backend.ner.spans import Passage, Span
from tests.support.annotations import PROJECT, saved, text_of


def test_a_training_needs_enough_examples() -> None:
    require_examples("7", MIN_EXAMPLES)
    with pytest.raises(NotEnoughExamples, match=f"project 7 has {MIN_EXAMPLES - 1} accepted annotations"):
        require_examples("7", MIN_EXAMPLES - 1)


@pytest.mark.parametrize(
    ("of_task", "expected"),
    [
        ([saved(1, at_us=5), saved(2, at_us=6)], 2),
        ([saved(1, at_us=5, ground_truth=True), saved(2, at_us=6)], 1),
        ([saved(1, at_us=5, ground_truth=True), saved(2, at_us=6, ground_truth=True)], 2),
        ([saved(1, at_us=5), saved(2, at_us=6, accepted=False)], 1),
        ([saved(1, at_us=5), saved(2, at_us=6, accepted=False, ground_truth=True)], 1),
        ([saved(1, at_us=5), saved(2, at_us=5)], 2),
    ],
)
def test_one_example_per_task(of_task: list[Annotation], expected: int) -> None:
    for order in (of_task, of_task[::-1]):
        examples, remapping = examples_of(PROJECT, order)
        assert [example.annotation_id for example in examples] == [expected]
        assert remapping.kept == 1


def remapped(
    texts: Iterable[AnnotatedText], *controls: tuple[str, tuple[tuple[str, str], ...]]
) -> tuple[tuple[LabelledText, ...], Remapping]:
    project = replace(
        PROJECT, controls=tuple(ControlLabels(name, PromptLabels.of(labels)) for name, labels in controls)
    )
    examples, remapping = examples_of(project, [saved(texts=tuple(texts))])
    return (examples[0].texts if examples else ()), remapping


PERSON, PLACE = ("person", "PER"), ("place", "LOC")
LABELLED = text_of([(0, 3, "PER"), (8, 11, "PER"), (15, 19, "LOC")])
ANN, BOB, ROME = Span(0, 3, "person", 1.0), Span(8, 11, "person", 1.0), Span(15, 19, "place", 1.0)


def test_a_label_with_another_name() -> None:
    (text,), remapping = remapped([LABELLED], ("label", (("human", "PER"), PLACE)))
    assert text.labels == ("human", "place")
    assert text.spans == (replace(ANN, label="human"), replace(BOB, label="human"), ROME)
    assert remapping == Remapping(1, 0, 0, 0, 0, ())


def test_a_label_with_several_names_is_trained_under_the_first() -> None:
    (text,), _ = remapped([LABELLED], ("label", (PLACE, ("human", "PER"), ("individual", "PER"))))
    assert text.labels == ("place", "human")
    assert {span.label for span in text.spans} == {"place", "human"}


def test_a_label_that_came_later_is_not_asked_for() -> None:
    (text,), remapping = remapped([LABELLED], ("label", (("date", "DATE"), PERSON, PLACE)))
    assert text.labels == ("person", "place")
    assert remapping == Remapping(1, 0, 0, 0, 0, ())


def test_a_label_that_is_gone_takes_its_spans_along() -> None:
    (text,), remapping = remapped([LABELLED], ("label", (PLACE,)))
    assert (text.labels, text.spans) == (("place",), (ROME,))
    assert remapping == Remapping(1, 0, spans_dropped=2, overlaps_dropped=0, widened=0, removed_labels=("PER",))


@pytest.mark.parametrize(
    "controls",
    [
        pytest.param([], id="no control"),
        pytest.param([("renamed", (PERSON, PLACE))], id="another control"),
        pytest.param([("label", (("date", "DATE"),))], id="all labels changed"),
    ],
)
def test_an_example_of_which_nothing_is_left_is_retired(controls: list[Any]) -> None:
    texts, remapping = remapped([LABELLED], *controls)
    assert texts == ()
    assert remapping == Remapping(0, 1, spans_dropped=3, overlaps_dropped=0, widened=0, removed_labels=("LOC", "PER"))


def test_a_text_whose_control_is_gone_leaves_the_others() -> None:
    gone = text_of([(0, 3, "X")], control="gone", labels=("X",))
    texts, remapping = remapped([gone, LABELLED], ("label", (PERSON, PLACE)))
    assert [text.spans for text in texts] == [(ANN, BOB, ROME)]
    assert remapping == Remapping(1, 0, spans_dropped=1, overlaps_dropped=0, widened=0, removed_labels=("X",))


def test_texts_without_words_teach_nothing() -> None:
    texts, remapping = remapped([text_of(text=" \n"), text_of(text="")], ("label", (PERSON,)))
    assert texts == ()
    assert remapping.retired == 1


@pytest.mark.parametrize(
    ("text", "breaks", "given", "expected", "widened"),
    [
        pytest.param("Ann met Bob", (), (0, 3), (0, 3), 0, id="a whole word"),
        pytest.param("Ann met Bob", (), (1, 3), (0, 3), 1, id="begins inside"),
        pytest.param("Ann met Bob", (), (0, 9), (0, 11), 1, id="ends inside"),
        pytest.param("Ann met Bob", (), (3, 8), (4, 7), 0, id="white space left off"),
        pytest.param("Ann met Bob", (), (3, 9), (4, 11), 1, id="both"),
        pytest.param("😀Ann's", (), (1, 4), (1, 4), 0, id="punctuation is a word of its own"),
        pytest.param("AnnBob", (3,), (3, 6), (3, 6), 0, id="a break ends a word"),
        pytest.param("東京都", (), (0, 2), (0, 2), 0, id="a script without spaces"),
        pytest.param("e\u0301te\u0301", (), (0, 1), (0, 5), 1, id="inside a grapheme"),
    ],
)
def test_spans_are_widened_to_whole_words(
    text: str, breaks: tuple[int, ...], given: tuple[int, int], expected: tuple[int, int], widened: int
) -> None:
    (labelled,), remapping = remapped([text_of([(*given, "PER")], text, breaks=breaks)], ("label", (PERSON,)))
    assert labelled.spans == (Span(*expected, "person", 1.0),)
    assert labelled.passage == Passage(text, breaks)
    assert (remapping.widened, remapping.spans_dropped, remapping.overlaps_dropped) == (widened, 0, 0)


def test_a_span_of_white_space_is_dropped() -> None:
    (labelled,), remapping = remapped([text_of([(3, 4, "PER")])], ("label", (PERSON,)))
    assert labelled.spans == ()
    assert remapping.spans_dropped == 1


@pytest.mark.parametrize(
    ("given", "expected", "dropped"),
    [
        pytest.param([(0, 3), (0, 11)], [(0, 11)], 1, id="the longest"),
        pytest.param([(4, 11), (0, 7)], [(0, 7)], 1, id="of equally long ones the earliest"),
        pytest.param([(0, 7), (4, 11), (8, 19)], [(0, 7), (8, 19)], 1, id="one that overlaps two"),
        pytest.param([(0, 3), (4, 7)], [(0, 3), (4, 7)], 0, id="neighbours"),
        pytest.param([(0, 3), (0, 3)], [(0, 3)], 1, id="the same twice"),
        pytest.param([(0, 1), (2, 7)], [(0, 7)], 1, id="only after widening"),
    ],
)
def test_overlapping_spans(given: list[tuple[int, int]], expected: list[tuple[int, int]], dropped: int) -> None:
    (labelled,), remapping = remapped([text_of([(*span, "PER") for span in given])], ("label", (PERSON,)))
    assert [(span.start, span.end) for span in labelled.spans] == expected
    assert remapping.overlaps_dropped == dropped


@given(
    text=st.text(alphabet="aB 😀.\n東e\u0301-", max_size=20),
    bounds=st.lists(
        st.tuples(st.integers(0, 20), st.integers(0, 20), st.sampled_from(["PER", "LOC", "X"])), max_size=6
    ),
)
def test_examples_keep_their_promises(text: str, bounds: list[tuple[int, int, str]]) -> None:
    spans = [(a, b, label) for a, b, label in bounds if 0 <= a < b <= len(text)]
    texts, remapping = remapped([text_of(spans, text)], ("label", (PERSON, PLACE)))
    kept = [span for labelled in texts for span in labelled.spans]
    assert all(before.end <= after.start for before, after in pairwise(kept))
    assert all(not text[span.start].isspace() and not text[span.end - 1].isspace() for span in kept)
    assert len(kept) + remapping.spans_dropped + remapping.overlaps_dropped == len(spans)
    assert {span.label for span in kept} <= {"person", "place"}


# corrections ----------------------------------------------------------------------------------------------------

PREDICTED = [(0, 3, "PER", "prediction"), (8, 11, "PER", "prediction")]


@pytest.mark.parametrize(
    ("predicted", "found", "expected"),
    [
        pytest.param(PREDICTED, PREDICTED, False, id="accepted as it was"),
        pytest.param(PREDICTED, PREDICTED[:1], True, id="one removed"),
        pytest.param(PREDICTED, [*PREDICTED, (15, 19, "LOC")], True, id="one added"),
        pytest.param(PREDICTED, [PREDICTED[0], (8, 11, "LOC", "prediction-changed")], True, id="another label"),
        pytest.param(PREDICTED, [PREDICTED[0], (8, 14, "PER", "prediction-changed")], True, id="other bounds"),
        pytest.param(PREDICTED, [PREDICTED[0], (8, 11, "PER")], False, id="one drawn anew just as it was"),
        pytest.param([], [], False, id="rightly nothing"),
        pytest.param([], [(0, 3, "PER")], True, id="nothing predicted"),
        pytest.param(None, [(0, 3, "PER")], False, id="never predicted"),
        pytest.param(None, [], False, id="never predicted, and empty"),
        pytest.param(None, PREDICTED, False, id="not told, accepted"),
        pytest.param(None, [*PREDICTED, (15, 19, "LOC")], True, id="not told, one added"),
        pytest.param(None, [(8, 14, "PER", "prediction-changed")], True, id="not told, one changed"),
    ],
)
def test_corrections(predicted: list[Any] | None, found: list[Any], expected: bool) -> None:
    annotation = saved(
        texts=(text_of(found),),
        predicted_version=None if predicted is None else "v1",
        predicted=() if predicted is None else (text_of(predicted),),
    )
    assert was_corrected(annotation) is expected
    examples, _ = examples_of(PROJECT, [annotation])
    assert [example.corrected for example in examples] == [expected]
