"""What annotators accepted, and the project that they accepted it in, as it is kept."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LabelledSpan:
    """A region of an annotation or prediction: code points in its text, half-open."""

    start: int
    end: int
    label: str  # as Label Studio stores it
    origin: str  # "prediction", "prediction-changed" or "manual"


@dataclass(frozen=True, slots=True)
class AnnotatedText:
    """One text unit of one control."""

    control: str
    text: str
    breaks: tuple[int, ...]  # ascending offsets that no word goes over
    labels: tuple[str, ...]  # the stored labels that were offered when it was annotated
    spans: tuple[LabelledSpan, ...]


@dataclass(frozen=True, slots=True)
class Annotation:
    """An annotation of one task, as it was saved last."""

    id: int
    task_id: int
    updated_at_us: int  # microseconds since 1970, UTC
    accepted: bool  # False: skipped or cancelled; it takes part in ordering, and gives no example
    ground_truth: bool
    texts: tuple[AnnotatedText, ...]
    predicted_version: str | None  # of the prediction that it started from; None if there was none
    predicted: tuple[AnnotatedText, ...]  # that prediction; predicted[i] is of the same text as texts[i]
    dropped: dict[str, int]  # regions that gave no span, by the kind of their problem


@dataclass(frozen=True, slots=True)
class ControlLabels:
    """A control of a project's present label config."""

    control: str
    names: tuple[tuple[str, str], ...]  # (prompt name, stored label), in order; a stored label may have several names


@dataclass(frozen=True, slots=True)
class Project:
    """What is kept of a project."""

    key: str
    id: int
    title: str  # empty where it was not told
    config_digest: str
    controls: tuple[ControlLabels, ...]
    updated_at_us: int = 0  # when Label Studio changed it last; 0 where it was not told
