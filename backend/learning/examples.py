"""Accepted annotations -> the examples that a project is trained on.

An annotation is kept as Label Studio stores it, with stored labels and offsets as drawn. It becomes an example under
the label config that the project has when it is trained. The policy, counted in `Remapping`:

- One example per task: of its accepted annotations a ground truth first, else the one saved last.
- A label that is gone from its control drops its spans and its name. One that came later is not in the example's
  labels: nobody was asked for it, so its words would be false O's. A text whose control is gone is left out, and so is
  one without labels or words; an example without any text left is retired.
- A stored label that has several prompt names is trained under its first.
- Words are labelled as a whole: a span that begins or ends inside a word is widened to it; white space at its ends is
  left off. A span that holds no word is dropped.
- Spans of one text do not overlap: after widening the longest stays, of equally long ones the earliest.
"""

from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from backend.learning.annotations import AnnotatedText, Annotation, ControlLabels, LabelledSpan, Project
from backend.ner import segment
from backend.ner.spans import Span, Word


@dataclass(frozen=True, slots=True)
class LabelledText:
    """What the model is trained on."""

    text: str
    breaks: tuple[int, ...]
    labels: tuple[str, ...]  # prompt names
    spans: tuple[Span, ...]  # with prompt names and score 1.0, sorted, of whole words, not overlapping


@dataclass(frozen=True, slots=True)
class Example:
    """What one task teaches."""

    task_id: int
    annotation_id: int
    corrected: bool  # the annotator changed, added or removed a region of the prediction
    texts: tuple[LabelledText, ...]


@dataclass(frozen=True, slots=True)
class Remapping:
    """What the present label config makes of the examples."""

    kept: int  # examples
    retired: int  # examples of which nothing is left to learn from
    spans_dropped: int  # their control or label is gone, or they hold no word
    overlaps_dropped: int  # spans
    widened: int  # spans
    removed_labels: tuple[str, ...]  # stored labels that were offered once and are gone, sorted


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All that a training starts from, as it is at one moment."""

    project: Project
    examples: tuple[Example, ...]  # by task id
    remapping: Remapping
    changes: int  # the counter's value at that moment


def examples_of(project: Project, annotations: Iterable[Annotation]) -> tuple[tuple[Example, ...], Remapping]:
    """The examples that annotations give under a project's label config, by task id; the policy is the module's."""
    by_task: dict[int, list[Annotation]] = defaultdict(list)
    for annotation in annotations:
        if annotation.accepted:
            by_task[annotation.task_id].append(annotation)
    names = {control.control: _first_names(control) for control in project.controls}
    examples: list[Example] = []
    counts: Counter[str] = Counter()
    removed_labels: set[str] = set()
    for _, of_task in sorted(by_task.items()):
        best = max(of_task, key=lambda annotation: (annotation.ground_truth, annotation.updated_at_us, annotation.id))
        texts = []
        for text in best.texts:
            present = names.get(text.control, {})
            removed_labels.update(set(text.labels) - present.keys())
            labelled = _labelled(text, present, counts)
            if labelled is not None:
                texts.append(labelled)
        if texts:
            examples.append(Example(best.task_id, best.id, was_corrected(best), tuple(texts)))
    return tuple(examples), Remapping(
        kept=len(examples),
        retired=len(by_task) - len(examples),
        spans_dropped=counts["dropped"],
        overlaps_dropped=counts["overlaps"],
        widened=counts["widened"],
        removed_labels=tuple(sorted(removed_labels)),
    )


def was_corrected(annotation: Annotation) -> bool:
    """Whether the annotator changed, added or removed a region of the prediction that the annotation started from.

    Where the prediction was not told, only its regions' origins can say so; then one that was removed goes unseen.
    Work without any prediction corrects nothing.
    """
    origins = {span.origin for text in annotation.texts for span in text.spans}
    if annotation.predicted_version is None:
        return "prediction-changed" in origins or {"prediction", "manual"} <= origins
    predicted, present = _places(annotation.predicted), _places(annotation.texts)
    # a region drawn anew just as it was predicted is no correction
    added = {place for place, origin in present.items() if origin != "prediction" and place not in predicted}
    return bool(added or predicted.keys() - present.keys())


def _places(texts: Sequence[AnnotatedText]) -> dict[tuple[int, int, int, str], str]:
    return {
        (index, span.start, span.end, span.label): span.origin
        for index, text in enumerate(texts)
        for span in text.spans
    }


def _first_names(control: ControlLabels) -> dict[str, str]:
    """Stored label -> its first prompt name, in the config's order."""
    names: dict[str, str] = {}
    for name, label in control.names:
        names.setdefault(label, name)
    return names


def _labelled(text: AnnotatedText, names: Mapping[str, str], counts: Counter[str]) -> LabelledText | None:
    """A text under the present names of its control's labels; None if nothing can be learnt from it."""
    words = segment.words(text.text, text.breaks)
    spans = [_of_whole_words(span, names, words, counts) for span in text.spans]
    used = {span.label for span in text.spans}
    labels = tuple(name for label, name in names.items() if label in text.labels or label in used)
    if not labels or not words:
        return None
    return LabelledText(text.text, text.breaks, labels, _without_overlaps([span for span in spans if span], counts))


def _of_whole_words(
    span: LabelledSpan, names: Mapping[str, str], words: Sequence[Word], counts: Counter[str]
) -> Span | None:
    """The span with its prompt name, over all words that it touches; None if there are none, or its label is gone."""
    first = bisect_right(words, span.start, key=lambda word: word.end)
    last = bisect_left(words, span.end, key=lambda word: word.start) - 1
    if span.label not in names or last < first:
        counts["dropped"] += 1
        return None
    start, end = words[first].start, words[last].end
    counts["widened"] += start < span.start or end > span.end
    return Span(start, end, names[span.label], 1.0)


def _without_overlaps(spans: Sequence[Span], counts: Counter[str]) -> tuple[Span, ...]:
    kept: list[Span] = []
    for span in sorted(spans, key=lambda span: (span.start - span.end, span.start)):  # longest first, then earliest
        if all(span.end <= other.start or other.end <= span.start for other in kept):
            kept.append(span)
    counts["overlaps"] += len(spans) - len(kept)
    return tuple(sorted(kept, key=lambda span: span.start))
