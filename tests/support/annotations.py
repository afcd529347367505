"""A project and its annotations, as the tests of learning store them and learn from them."""

from collections.abc import Iterable
from typing import Any

from backend.learning.annotations import AnnotatedText, Annotation, ControlLabels, LabelledSpan, Project
from backend.ner.labels import PromptLabels
from backend.ner.spans import Passage

KEY = "2.1795333437"
TEXT = "Ann met Bob in Rome"
PROJECT = Project(
    key=KEY,
    id=2,
    title="News 😀",
    config_digest="c1",
    controls=(ControlLabels("label", PromptLabels.of([("person", "PER"), ("place", "LOC")])),),
    updated_at_us=50,
)


def text_of(
    spans: Iterable[tuple[int, int, str] | tuple[int, int, str, str]] = (),
    text: str = TEXT,
    labels: tuple[str, ...] = ("PER", "LOC"),
    control: str = "label",
    breaks: tuple[int, ...] = (),
) -> AnnotatedText:
    """Spans are (start, end, stored label) of somebody's own, or with an origin."""
    return AnnotatedText(
        control, Passage(text, breaks), labels, tuple(LabelledSpan(*(*span, "manual")[:4]) for span in spans)
    )


def saved(annotation_id: int = 1, task_id: int = 10, at_us: int = 100, **fields: Any) -> Annotation:
    """An accepted annotation with one span; `fields` replace those of Annotation."""
    known: dict[str, Any] = {
        "accepted": True,
        "ground_truth": False,
        "texts": (text_of([(0, 3, "PER")]),),
        "predicted_version": None,
        "predicted": (),
        "dropped": {},
    }
    return Annotation(id=annotation_id, task_id=task_id, updated_at_us=at_us, **(known | fields))
