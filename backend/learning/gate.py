"""Whether a newly trained version may be served. No torch: answers in, a verdict out.

Both versions have answered tasks that neither was trained on. The new one is published only if

- it finds something, and its strict span F1 is not below that of the version that is served now; a paired bootstrap
  over tasks says how sure that is;
- its labels agree with the annotators' better than chance. F1 alone would not notice labels without any sense: against
  a version that does not know the project yet, a new one wins by finding the right words, whatever it calls them. So
  the annotators' labels are shuffled among the spans whose bounds the new version has right, and hardly any shuffling
  may agree with it as well as theirs do (a permutation test: Good, "Permutation Tests", 2000). Where nearly all labels
  agree, or the spans are too few for the test, F1 alone decides;
- on the guard set its F1 is at most two points below that of the base model, which it must not forget.
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
# A training on shuffled labels gets through with this probability; they are trained on again and again.
_MAX_CHANCE = 0.01
# The test can tell only where labels that all agree would be far less probable than that.
_MAX_CHANCE_OF_ALL = 1e-4
# Where one label is most of them, always saying it is no better than chance, and right nearly always all the same.
_NEARLY_ALL = 0.75

_SAMPLES = 4000
_SEED = 13


@dataclass(frozen=True, slots=True)
class Answers:
    """The spans of one task or sentence, text by text: the annotator's, and those of the two versions compared."""

    gold: tuple[tuple[Span, ...], ...]
    before: tuple[tuple[Span, ...], ...]
    after: tuple[tuple[Span, ...], ...]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two versions on the same tasks or sentences, strictly: a span counts if bounds and label are right.

    `sure` is the probability, 0..1, that the later one is not worse on others like these.
    """

    num: int
    before: Counts
    after: Counts
    sure: float


@dataclass(frozen=True, slots=True)
class Agreement:
    """Of the spans whose bounds are right: how many, and the part, 0..1, that has the annotator's label too.

    `chance` is the probability that labels without sense agree as well; None where the spans are too few to tell.
    """

    num: int
    part: float
    chance: float | None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the gate says, in one sentence and in figures."""

    publish: bool
    reason: str
    tasks: Comparison
    cross_validated: bool  # the later answers are those of versions that were trained without the task
    guard: Comparison
    agreement: Agreement

    @property
    def scores(self) -> dict[str, float]:
        """The figures as they are kept with a version. F1, `sure`, `label_*` are 0..1."""
        figures = {
            "held_out_tasks": self.tasks.num,
            "held_out_spans": self.tasks.after.expected,
            "cross_validated": float(self.cross_validated),
            "held_out_f1": self.tasks.after.f1,
            "held_out_f1_before": self.tasks.before.f1,
            "sure": self.tasks.sure,
            "guard_f1": self.guard.after.f1,
            "guard_f1_before": self.guard.before.f1,
            "matched_spans": self.agreement.num,
            "label_agreement": self.agreement.part,
        }
        if self.agreement.chance is not None:
            figures["label_chance"] = self.agreement.chance
        return {name: round(float(value), 4) for name, value in figures.items()}


def judge(tasks: Sequence[Answers], guard: Sequence[Answers], *, cross_validated: bool = False) -> Verdict:
    """`before` is the version served now in `tasks`, and the base model in `guard`."""
    compared, guarded, agreed = compare(tasks), compare(guard), agreement(tasks)
    objection = _objection(compared, guarded, agreed)
    reason = objection or _praise(compared, guarded, cross_validated)
    return Verdict(objection is None, reason, compared, cross_validated, guarded, agreed)


def compare(answers: Sequence[Answers]) -> Comparison:
    """Counts of both versions, and a paired bootstrap over the tasks."""
    counts = np.array([_counts(answer) for answer in answers], dtype=np.int64).reshape(-1, 5)
    there, found_before, right_before, found_after, right_after = map(int, counts.sum(0))
    before = Counts(right_before, found_before, there)
    after = Counts(right_after, found_after, there)
    return Comparison(len(answers), before, after, _sure(counts))


def agreement(tasks: Sequence[Answers]) -> Agreement:
    """The later version's labels beside the annotators', and a permutation test of whether that is more than chance."""
    pairs = [pair for task in tasks for pair in _label_pairs(task)]
    labels = sorted({label for pair in pairs for label in pair})
    codes = np.array([[labels.index(label) for label in pair] for pair in pairs], dtype=np.int64).reshape(-1, 2)
    gold, found = codes.T
    agreeing = int((gold == found).sum())
    part = agreeing / len(pairs) if pairs else 0.0
    if _log_arrangements(Counter(gold.tolist()).values()) < -math.log(_MAX_CHANCE_OF_ALL):
        return Agreement(len(pairs), part, None)
    rng = np.random.default_rng(_SEED)
    as_good = sum(int((rng.permutation(gold) == found).sum()) >= agreeing for _ in range(_SAMPLES))
    return Agreement(len(pairs), part, (1 + as_good) / (1 + _SAMPLES))


def _log_arrangements(counts: Collection[int]) -> float:
    """The natural logarithm of the number of ways to lay out labels that occur so often. One of them agrees wholly."""
    return math.lgamma(sum(counts) + 1) - sum(math.lgamma(count + 1) for count in counts)


def forgets(guard: Comparison) -> bool:
    """Whether the later version has lost more on the guard set than a version may."""
    return guard.after.f1 < guard.before.f1 - _MAX_GUARD_LOSS


def _objection(tasks: Comparison, guard: Comparison, agreed: Agreement) -> str | None:
    before, after = tasks.before.f1, tasks.after.f1
    if after == 0:
        return f"rejected: it finds none of the {tasks.after.expected} spans of {tasks.num} tasks not trained on"
    if after < before:
        return (
            f"rejected: span F1 on {tasks.num} tasks that it was not trained on is {after:.3f}, below the {before:.3f} "
            "of the version served now"
        )
    if agreed.chance is not None and agreed.chance > _MAX_CHANCE and agreed.part < _NEARLY_ALL:
        return (
            f"rejected: of {agreed.num} spans found, {100 * agreed.part:.0f} % have the annotators' label, no better "
            f"than chance (p = {agreed.chance:.2g}): do the annotations follow one rule?"
        )
    if forgets(guard):
        return (
            f"rejected: span F1 on the guard set fell from the base model's {guard.before.f1:.3f} to "
            f"{guard.after.f1:.3f}, by more than {_MAX_GUARD_LOSS}"
        )
    return None


def _praise(tasks: Comparison, guard: Comparison, cross_validated: bool) -> str:
    how = "by cross-validation over" if cross_validated else "on"
    return (
        f"published: span F1 {how} {tasks.num} tasks is {tasks.after.f1:.3f}, with the version before "
        f"{tasks.before.f1:.3f} (not worse: {100 * tasks.sure:.0f} % sure); on the guard set {guard.after.f1:.3f}, "
        f"the base model {guard.before.f1:.3f}"
    )


def _counts(answers: Answers) -> tuple[int, int, int, int, int]:
    """There; found and right before; found and right after."""
    gold, before, after = _strict(answers.gold), _strict(answers.before), _strict(answers.after)
    return len(gold), len(before), len(gold & before), len(after), len(gold & after)


def _strict(texts: Sequence[Sequence[Span]]) -> set[tuple[int, int, int, str]]:
    return {(index, span.start, span.end, span.label) for index, spans in enumerate(texts) for span in spans}


def _label_pairs(answers: Answers) -> Iterator[tuple[str, str]]:
    """The annotator's label and the later version's, of each span that both have."""
    found = {(index, span.start, span.end): span.label for index, spans in enumerate(answers.after) for span in spans}
    for index, spans in enumerate(answers.gold):
        for span in spans:
            label = found.get((index, span.start, span.end))
            if label is not None:
                yield span.label, label


def _sure(counts: NDArray[np.int64]) -> float:
    """`counts` (tasks, 5) are those of `_counts`. Where both are alike in a sample, it says neither."""
    if not len(counts):
        return 0.0
    rng = np.random.default_rng(_SEED)
    picks = rng.multinomial(len(counts), np.full(len(counts), 1 / len(counts)), size=_SAMPLES)
    there, found_before, right_before, found_after, right_after = (picks @ counts).T
    before = right_before / np.maximum(1, there + found_before)
    after = right_after / np.maximum(1, there + found_after)
    return float(np.mean(np.where(after == before, 0.5, after > before)))
