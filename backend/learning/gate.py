"""The gate: whether a newly trained version may be served. It compares answers and gives a verdict. No torch.

Both versions have answered tasks that neither was trained on. The new version is published only if

- it has a correct span, and its strict span F1 is not below that of the current version. A paired bootstrap over the
  tasks estimates how probable it is that the new version is not worse;
- its labels agree with the annotators' labels more often than by chance. F1 alone would not notice senseless labels: a
  current version that does not know the project yet loses to any new one that finds the right words, whatever their
  labels. The test takes the spans whose bounds are correct and shuffles the annotators' labels among them. Its p-value
  is the share of shuffles that agree with the new version at least as well as the true labels do (a permutation test:
  Good, "Permutation Tests", 2000). The test is skipped if the spans are too few, or if nearly all labels agree;
- its F1 on the guard set is at most two points below that of the base model, which it must not forget.
"""

import math
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from backend.ner.scores import Counts
from backend.ner.spans import Span

_MAX_GUARD_LOSS = 0.02
# A version that was trained on senseless labels passes with this probability. Projects are trained many times.
_MAX_P_VALUE = 0.01
# The test needs so many spans that a full agreement by chance is far less probable than that.
_MAX_CHANCE_OF_FULL_AGREEMENT = 1e-4
# If most spans have one label, a version that always gives it is no better than chance, but nearly always correct.
_NEARLY_ALL = 0.75

_SAMPLES = 4000
_SEED = 13


@dataclass(frozen=True, slots=True)
class Answers:
    """The spans of one task or sentence, text by text: the annotator's, and those of two versions."""

    expected: tuple[tuple[Span, ...], ...]
    before: tuple[tuple[Span, ...], ...]
    after: tuple[tuple[Span, ...], ...]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two versions on the same tasks or sentences. A span is correct if its bounds and its label are.

    `p_not_worse` is the estimated probability, 0..1, that the later version is not worse on similar tasks.
    """

    num: int
    before: Counts
    after: Counts
    p_not_worse: float


@dataclass(frozen=True, slots=True)
class Agreement:
    """The spans with correct bounds: how many there are, and the share of them, 0..1, with the correct label.

    `p_value` is the probability that senseless labels would agree at least as well; None if the spans are too few.
    """

    num_spans: int
    share: float
    p_value: float | None


@dataclass(frozen=True, slots=True)
class Verdict:
    """The gate's decision, with a sentence for people and its figures."""

    publish: bool
    reason: str
    tasks: Comparison
    cross_validated: bool  # the later answers come from models that were trained without the task
    guard: Comparison
    agreement: Agreement

    @property
    def scores(self) -> dict[str, float]:
        """The figures as they are stored with a version. F1, `sure` (p_not_worse) and `label_*` are 0..1."""
        figures = {
            "held_out_tasks": self.tasks.num,
            "held_out_spans": self.tasks.after.expected,
            "cross_validated": float(self.cross_validated),
            "held_out_f1": self.tasks.after.f1,
            "held_out_f1_before": self.tasks.before.f1,
            "sure": self.tasks.p_not_worse,
            "guard_f1": self.guard.after.f1,
            "guard_f1_before": self.guard.before.f1,
            "matched_spans": self.agreement.num_spans,
            "label_agreement": self.agreement.share,
        }
        if self.agreement.p_value is not None:
            figures["label_chance"] = self.agreement.p_value
        return {name: round(float(value), 4) for name, value in figures.items()}


def judge(tasks: Sequence[Answers], guard: Sequence[Answers], *, cross_validated: bool = False) -> Verdict:
    """In `tasks`, `before` is the current version; in `guard`, it is the base model."""
    compared, guarded, agreed = compare(tasks), compare(guard), agreement(tasks)
    objection = _objection(compared, guarded, agreed)
    reason = objection or _approval(compared, guarded, cross_validated)
    return Verdict(objection is None, reason, compared, cross_validated, guarded, agreed)


def compare(answers: Sequence[Answers]) -> Comparison:
    """Counts of both versions, and a paired bootstrap over the tasks."""
    counts = np.array([_counts(answer) for answer in answers], dtype=np.int64).reshape(-1, 5)
    expected, predicted_before, correct_before, predicted_after, correct_after = map(int, counts.sum(0))
    before = Counts(correct_before, predicted_before, expected)
    after = Counts(correct_after, predicted_after, expected)
    return Comparison(len(answers), before, after, _p_not_worse(counts))


def agreement(tasks: Sequence[Answers]) -> Agreement:
    """How often the later version's labels agree with the annotators', and a permutation test against chance."""
    pairs = [pair for task in tasks for pair in _label_pairs(task)]
    labels = sorted({label for pair in pairs for label in pair})
    codes = np.array([[labels.index(label) for label in pair] for pair in pairs], dtype=np.int64).reshape(-1, 2)
    expected, predicted = codes.T
    agreeing = int((expected == predicted).sum())
    share = agreeing / len(pairs) if pairs else 0.0
    if _log_arrangements(Counter(expected.tolist()).values()) < -math.log(_MAX_CHANCE_OF_FULL_AGREEMENT):
        return Agreement(len(pairs), share, None)
    rng = np.random.default_rng(_SEED)
    as_good = sum(int((rng.permutation(expected) == predicted).sum()) >= agreeing for _ in range(_SAMPLES))
    return Agreement(len(pairs), share, (1 + as_good) / (1 + _SAMPLES))


def _log_arrangements(counts: Collection[int]) -> float:
    """The natural logarithm of the number of orders of labels with these counts. One order agrees fully."""
    return math.lgamma(sum(counts) + 1) - sum(math.lgamma(count + 1) for count in counts)


def forgets(guard: Comparison) -> bool:
    """Whether the later version has lost more on the guard set than is allowed."""
    return guard.after.f1 < guard.before.f1 - _MAX_GUARD_LOSS


def _objection(tasks: Comparison, guard: Comparison, agreed: Agreement) -> str | None:
    before, after = tasks.before.f1, tasks.after.f1
    if after == 0:
        return (
            f"rejected: it finds none of the {tasks.after.expected} spans in {tasks.num} tasks that it was not "
            "trained on"
        )
    if after < before:
        return (
            f"rejected: span F1 on {tasks.num} tasks that it was not trained on is {after:.3f}, below the {before:.3f} "
            "of the current version"
        )
    if agreed.p_value is not None and agreed.p_value > _MAX_P_VALUE and agreed.share < _NEARLY_ALL:
        return (
            f"rejected: of {agreed.num_spans} spans found, {100 * agreed.share:.0f} % have the annotators' label, no "
            f"better than chance (p = {agreed.p_value:.2g}): do the annotations follow one rule?"
        )
    if forgets(guard):
        return (
            f"rejected: span F1 on the guard set fell from the base model's {guard.before.f1:.3f} to "
            f"{guard.after.f1:.3f}, by more than {_MAX_GUARD_LOSS}"
        )
    return None


def _approval(tasks: Comparison, guard: Comparison, cross_validated: bool) -> str:
    how = "by cross-validation over" if cross_validated else "on"
    return (
        f"published: span F1 {how} {tasks.num} tasks is {tasks.after.f1:.3f}, before {tasks.before.f1:.3f} "
        f"({100 * tasks.p_not_worse:.0f} % probable that it is not worse); "
        f"on the guard set {guard.after.f1:.3f}, base model {guard.before.f1:.3f}"
    )


def _counts(answers: Answers) -> tuple[int, int, int, int, int]:
    """Expected; predicted and correct before; predicted and correct after."""
    expected, before, after = _strict(answers.expected), _strict(answers.before), _strict(answers.after)
    return len(expected), len(before), len(expected & before), len(after), len(expected & after)


def _strict(texts: Sequence[Sequence[Span]]) -> set[tuple[int, int, int, str]]:
    return {(index, span.start, span.end, span.label) for index, spans in enumerate(texts) for span in spans}


def _label_pairs(answers: Answers) -> Iterator[tuple[str, str]]:
    """The annotator's label and the later version's, for each span with bounds that both have."""
    later = {(index, span.start, span.end): span.label for index, spans in enumerate(answers.after) for span in spans}
    for index, spans in enumerate(answers.expected):
        for span in spans:
            label = later.get((index, span.start, span.end))
            if label is not None:
                yield span.label, label


def _p_not_worse(counts: NDArray[np.int64]) -> float:
    """The share of bootstrap samples in which the later version is better; a tie counts half.

    `counts` (tasks, 5) are those of `_counts`.
    """
    if not len(counts):
        return 0.0
    rng = np.random.default_rng(_SEED)
    picks = rng.multinomial(len(counts), np.full(len(counts), 1 / len(counts)), size=_SAMPLES)
    expected, predicted_before, correct_before, predicted_after, correct_after = (picks @ counts).T
    before = correct_before / np.maximum(1, expected + predicted_before)  # half of F1
    after = correct_after / np.maximum(1, expected + predicted_after)
    return float(np.mean(np.where(after == before, 0.5, after > before)))
