"""Accepted annotations -> the examples that a project is trained on.

An annotation is stored with its stored labels and with offsets as drawn. It becomes an example under the label config
that the project has when it is trained. These are the rules; `Remapping` counts what they do:

- A task gives one example: its latest accepted annotation, or the latest ground truth if it has one.
- If a label is gone from its control, its spans are dropped and it is not asked for. A label that was added after the
  annotation is not asked for either: nobody looked for it, so O would be wrong for its words.
- A text is left out if its control is gone, or if it has no labels or no words. An example without texts is retired.
- A stored label with several prompt words is trained with the first.
- Words are labelled as a whole: a span that begins or ends inside a word is widened to the word. White space at its
  ends is left off. A span without a word is dropped.
- Spans of one text do not overlap: after widening, the longest stays; of equally long ones, the earliest.
"""

from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from backend.errors import NotEnoughExamples
from backend.learning.annotations import AnnotatedText, Annotation, LabelledSpan, Project
from backend.ner import segment
from backend.ner.labels import PromptLabels
from backend.ner.spans import Passage, Question, Span, Word

MIN_EXAMPLES = 4  # with fewer, two versions cannot be compared


@dataclass(frozen=True, slots=True)
class LabelledText:
    """A passage, the labels that are asked for, and the answer that the model should give. Labels are prompt words."""

    passage: Passage
    labels: tuple[str, ...]
    spans: tuple[Span, ...]  # sorted, of whole words, not overlapping, with score 1.0

    @property
    def question(self) -> Question:
        """The passage and the labels, without the answer."""
        return Question(self.passage, self.labels)


@dataclass(frozen=True, slots=True)
class Example:
    """What a training learns from one task."""

    task_id: int
    annotation_id: int
    corrected: bool  # the annotator changed, added or removed a region of the prediction
    texts: tuple[LabelledText, ...]


@dataclass(frozen=True, slots=True)
class Remapping:
    """What the current label config does to the examples, in counts."""

    kept: int  # examples
    retired: int  # examples that have no text left
    spans_dropped: int  # because their control or label is gone, or they hold no word
    overlaps_dropped: int  # spans
    widened: int  # spans
    removed_labels: tuple[str, ...]  # stored labels that are no longer in the config, sorted


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All that a training starts from, read at one moment."""

    project: Project
    examples: tuple[Example, ...]  # by task id
    remapping: Remapping
    changes: int  # the store's counter of changes at that moment


def require_examples(project: str, num_examples: int) -> None:
    """Raises NotEnoughExamples if a project has fewer than a training needs. `project` is its key."""
    if num_examples < MIN_EXAMPLES:
        raise NotEnoughExamples(
            f"project {project} has {num_examples} accepted annotations to learn from; "
            f"a training needs at least {MIN_EXAMPLES}"
        )


def examples_of(project: Project, annotations: Iterable[Annotation]) -> tuple[tuple[Example, ...], Remapping]:
    """The examples that annotations give under a project's label config, by task id; the module has the rules."""
    by_task: dict[int, list[Annotation]] = defaultdict(list)
    for annotation in annotations:
        if annotation.accepted:
            by_task[annotation.task_id].append(annotation)
    labels_of = {control.control: control.labels for control in project.controls}
    examples: list[Example] = []
    counts: Counter[str] = Counter()
    removed_labels: set[str] = set()
    for _, of_task in sorted(by_task.items()):
        best = max(of_task, key=lambda annotation: (annotation.ground_truth, annotation.updated_at_us, annotation.id))
        texts = []
        for text in best.texts:
            current = labels_of.get(text.control, PromptLabels(()))
            removed_labels.update(set(text.labels) - set(current.labels))
            labelled = _labelled(text, current, counts)
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

    If the prediction is unknown, the origins of the regions decide; a removed region goes unnoticed then. An
    annotation without a prediction corrects nothing.
    """
    origins = {span.origin for text in annotation.texts for span in text.spans}
    if annotation.predicted_version is None:
        return "prediction-changed" in origins or {"prediction", "manual"} <= origins
    predicted, present = _places(annotation.predicted), _places(annotation.texts)
    # a region that was drawn again exactly as predicted is no correction
    added = {place for place, origin in present.items() if origin != "prediction" and place not in predicted}
    return bool(added or predicted.keys() - present.keys())


def _places(texts: Sequence[AnnotatedText]) -> dict[tuple[int, int, int, str], str]:
    return {
        (index, span.start, span.end, span.label): span.origin
        for index, text in enumerate(texts)
        for span in text.spans
    }


def _labelled(text: AnnotatedText, current: PromptLabels, counts: Counter[str]) -> LabelledText | None:
    """The text with the prompt words of its control's current labels; None if nothing can be learnt from it."""
    words = segment.words(text.passage.text, text.passage.breaks)
    spans = [_of_whole_words(span, current, words, counts) for span in text.spans]
    asked = {*text.labels, *(span.label for span in text.spans)}
    labels = tuple(
        prompt_words
        for label in current.labels
        if label in asked and (prompt_words := current.words_of(label)) is not None
    )
    if not labels or not words:
        return None
    return LabelledText(text.passage, labels, _without_overlaps([span for span in spans if span], counts))


def _of_whole_words(
    span: LabelledSpan, current: PromptLabels, words: Sequence[Word], counts: Counter[str]
) -> Span | None:
    """The span over all words that it touches, with its prompt words; None without a word or a current label."""
    first = bisect_right(words, span.start, key=lambda word: word.end)
    last = bisect_left(words, span.end, key=lambda word: word.start) - 1
    prompt_words = current.words_of(span.label)
    if prompt_words is None or last < first:
        counts["dropped"] += 1
        return None
    start, end = words[first].start, words[last].end
    counts["widened"] += start < span.start or end > span.end
    return Span(start, end, prompt_words, 1.0)


def _without_overlaps(spans: Sequence[Span], counts: Counter[str]) -> tuple[Span, ...]:
    kept: list[Span] = []
    for span in sorted(spans, key=lambda span: (span.start - span.end, span.start)):  # longest first, then earliest
        if all(span.end <= other.start or other.end <= span.start for other in kept):
            kept.append(span)
    counts["overlaps"] += len(spans) - len(kept)
    return tuple(sorted(kept, key=lambda span: span.start))
