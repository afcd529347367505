"""What the gate lets through, against cases worked out by hand and against labels without sense."""

import random
from collections.abc import Sequence

import pytest

from backend.learning.gate import Answers, agreement, compare, judge
from backend.ner.scores import Counts
from backend.ner.spans import Span

LABELS = ("person", "place", "firm", "work")


def spans(*found: str) -> tuple[Span, ...]:
    """`0person` is a span at offset 0, two long."""
    return tuple(Span(int(entry[0]), int(entry[0]) + 2, entry[1:], 0.5) for entry in found)


def answers(gold: Sequence[str], before: Sequence[str], after: Sequence[str]) -> Answers:
    """Of a task with one text."""
    return Answers((spans(*gold),), (spans(*before),), (spans(*after),))


def tasks(right_before: int, right_after: int, of: int = 20) -> list[Answers]:
    """Tasks of two spans with different labels; both or none are right."""
    gold = ["0person", "4place"]
    return [
        answers(gold, gold if index < right_before else [], gold if index < right_after else []) for index in range(of)
    ]


SAME = tasks(15, 15)


def test_counts_are_strict_and_by_text() -> None:
    task = Answers(
        expected=(spans("0person", "4place"), spans("0firm")),
        before=(spans("0person", "4firm"), ()),
        after=(spans("0person"), spans("0firm", "6work")),
    )
    compared = compare([task, answers(["0person"], [], ["1person"])])
    assert compared.num == 2
    assert compared.before == Counts(correct=1, predicted=2, expected=4)
    assert compared.after == Counts(correct=2, predicted=4, expected=4)


@pytest.mark.parametrize(
    ("before", "after", "low", "high"),
    [(5, 18, 0.99, 1.0), (18, 5, 0.0, 0.01), (10, 10, 0.5, 0.5), (10, 11, 0.7, 0.95)],
)
def test_the_bootstrap_says_how_sure(before: int, after: int, low: float, high: float) -> None:
    assert low <= compare(tasks(before, after)).p_not_worse <= high


def test_better_is_published() -> None:
    verdict = judge(tasks(2, 15), SAME)
    assert verdict.publish
    assert verdict.reason == (
        "published: span F1 on 20 tasks is 0.857, before 0.182 (100 % probable that it is not worse); on the guard set "
        "0.857, base model 0.857"
    )


def test_as_good_is_published() -> None:
    assert judge(tasks(12, 12), SAME).publish


def test_worse_is_rejected() -> None:
    verdict = judge(tasks(13, 12), SAME)
    assert not verdict.publish
    assert verdict.reason.startswith(
        "rejected: span F1 on 20 tasks that it was not trained on is 0.750, below the 0.788"
    )


def test_nothing_right_is_rejected_even_where_nothing_was_right_before() -> None:
    verdict = judge(tasks(0, 0), SAME)
    assert not verdict.publish
    assert verdict.reason.startswith("rejected: it finds none of the 40 spans in 20 tasks")


@pytest.mark.parametrize(("lost", "published"), [(0, True), (1, True), (2, True), (3, False)])
def test_the_guard_set_may_lose_two_points(lost: int, published: bool) -> None:
    there = [answers(["0person"], ["0person"], ["0person"])] * (100 - lost)
    gone = [answers(["0person"], ["0person"], ["0place"])] * lost
    verdict = judge(tasks(2, 15), there + gone)
    assert verdict.publish is published
    assert published or verdict.reason.startswith("rejected: span F1 on the guard set fell from the base model's 1.000")


def test_the_guard_set_may_get_better_and_may_be_empty() -> None:
    assert judge(tasks(2, 15), tasks(3, 20)).publish
    assert judge(tasks(2, 15), []).publish


def found_with(rng: random.Random, number: int, *, right: float) -> list[Answers]:
    """Tasks of which the later version has all bounds, and the label with this probability, else one at random."""
    made = []
    for _ in range(number):
        gold = [f"{place}{rng.choice(LABELS)}" for place in (0, 3, 6)]
        after = [entry if rng.random() < right else entry[0] + rng.choice(LABELS) for entry in gold]
        made.append(answers(gold, [], after))
    return made


def test_labels_without_sense_are_rejected_though_the_bounds_are_right() -> None:
    refused = 0
    for seed in range(40):
        verdict = judge(found_with(random.Random(seed), 20, right=0.0), SAME)
        assert verdict.tasks.after.f1 > verdict.tasks.before.f1
        refused += not verdict.publish
        if not verdict.publish:
            assert verdict.reason.startswith("rejected: of 60 spans found, ")
    assert refused >= 39, "one in a hundred may get through"


def test_labels_with_sense_are_not() -> None:
    assert all(judge(found_with(random.Random(seed), 20, right=0.5), SAME).publish for seed in range(20))


def test_chance_is_the_part_of_shuffles_that_agree_as_well() -> None:
    # 18 spans, 9 and 9, of which 12 agree, 6 of each label: C(9,6)C(9,3) + ... + C(9,9)C(9,0) of C(18,9) ways
    right = [answers(["0person", "4place"], [], ["0person", "4place"])] * 6
    wrong = [answers(["0person", "4place"], [], ["0place", "4person"])] * 3
    agreed = agreement(right + wrong)
    assert agreed.num_spans == 18
    assert agreed.share == pytest.approx(12 / 18)
    assert agreed.p_value == pytest.approx(8434 / 48620, abs=0.02)


def found_all(labels: Sequence[str]) -> list[Answers]:
    """Tasks with a span each, which the later version has right."""
    return [answers([f"0{label}"], [], [f"0{label}"]) for label in labels]


@pytest.mark.parametrize(
    "few",
    [
        pytest.param([answers(["0person"], [], ["0person"])] * 30, id="one label"),
        pytest.param([answers(["0person", "4place"], [], ["0place", "4person"])] * 7, id="14 spans of two labels"),
        pytest.param(found_all(["person"] * 40 + ["place"] * 2), id="40 spans of one label and 2 of another"),
        pytest.param([answers(["0person", "4place"], [], ["1person", "5place"])] * 30, id="other bounds"),
        pytest.param([], id="none"),
    ],
)
def test_too_little_to_tell_chance_by(few: list[Answers]) -> None:
    assert agreement(few).p_value is None


def test_few_spans_that_all_agree_are_published() -> None:
    assert judge(found_all(["person", "place"] * 4), SAME).publish


def test_always_the_same_label_agrees_no_better_than_chance() -> None:
    agreed = agreement([answers(["0person", "4place"], [], ["0person", "4person"])] * 10)
    assert agreed.share == 0.5
    assert agreed.p_value == 1.0


def test_a_label_that_is_nearly_all_may_be_said_always() -> None:
    gold = ["person"] * 27 + ["place"] * 9
    said = [answers([f"0{label}"], [], ["0person"]) for label in gold]
    assert agreement(said).p_value == 1.0
    assert judge(said, SAME).publish
    assert not judge(said[1:], SAME).publish, "of 35 spans 74 % agree"


def test_a_verdict_is_the_same_every_time() -> None:
    assert judge(tasks(3, 9), SAME) == judge(tasks(3, 9), SAME)


def test_the_figures_are_kept_by_name() -> None:
    verdict = judge(tasks(2, 15), SAME, cross_validated=True)
    assert verdict.reason.startswith("published: span F1 by cross-validation over 20 tasks is")
    assert verdict.scores == {
        "held_out_tasks": 20.0,
        "held_out_spans": 40.0,
        "cross_validated": 1.0,
        "held_out_f1": 0.8571,
        "held_out_f1_before": 0.1818,
        "sure": 1.0,
        "guard_f1": 0.8571,
        "guard_f1_before": 0.8571,
        "matched_spans": 30.0,
        "label_agreement": 1.0,
        "label_chance": 0.0002,
    }
