"""Annotations and their projects, as they are stored. All labels here are stored labels."""

from dataclasses import dataclass

from backend.ner.labels import PromptLabels
from backend.ner.spans import Passage


@dataclass(frozen=True, slots=True)
class LabelledSpan:
    """A region of an annotation or of a prediction: half-open offsets in code points of its text."""

    start: int
    end: int
    label: str
    origin: str  # "prediction", "prediction-changed" or "manual"


@dataclass(frozen=True, slots=True)
class AnnotatedText:
    """A passage as one control labels it."""

    control: str
    passage: Passage
    labels: tuple[str, ...]  # those that the control offered when the passage was annotated
    spans: tuple[LabelledSpan, ...]


@dataclass(frozen=True, slots=True)
class Annotation:
    """The latest save of an annotation."""

    id: int
    task_id: int
    updated_at_us: int  # microseconds since 1970, UTC
    accepted: bool  # False for a skipped or cancelled one: it gives no example
    ground_truth: bool
    texts: tuple[AnnotatedText, ...]
    predicted_version: str | None  # the model version of the prediction that it started from; None without one
    predicted: tuple[AnnotatedText, ...]  # that prediction; predicted[i] has the passage of texts[i]
    dropped: dict[str, int]  # how many regions gave no span, by the kind of problem


@dataclass(frozen=True, slots=True)
class ControlLabels:
    """A control of a project's current label config."""

    control: str
    labels: PromptLabels


@dataclass(frozen=True, slots=True)
class Project:
    """What is stored about a project."""

    key: str
    id: int
    title: str  # empty if unknown
    config_digest: str
    controls: tuple[ControlLabels, ...]
    updated_at_us: int = 0  # its last change in Label Studio; 0 if unknown
