"""What Label Studio sends -> what is learned from: annotations, projects and texts as `learning` stores them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from backend.labelstudio import regions, wire
from backend.labelstudio.schema import Control, LabelSchema
from backend.learning.annotations import AnnotatedText, Annotation, ControlLabels, LabelledSpan, Project
from backend.ner.spans import Passage

_ORIGINS = frozenset({"prediction", "prediction-changed", "manual"})

_Passages = Sequence[tuple[Control, Sequence[Passage]]]


def project_of(project: wire.ProjectPayload, schema: LabelSchema) -> Project:
    """A project with what its label config asks for."""
    return _project(project.key, project.id, schema, project.title, project.updated_at_us)


def project_of_ref(ref: wire.ProjectRef, schema: LabelSchema) -> Project:
    """The project of an ML call, which brings neither a title nor a date."""
    return _project(ref.key, ref.id, schema, title="", updated_at_us=0)


def annotation_of(item: wire.AnnotatedTask, schema: LabelSchema) -> Annotation:
    """An annotation, under the label config that came with it.

    `dropped` counts the regions of other controls (choices, relations) too. A region without an `origin`, as those
    made through Label Studio's API, counts as "manual".
    """
    saved = item.annotation
    passages = _passages(item.task, schema)
    texts, dropped = _labelled(passages, saved.result)
    prediction = saved.prediction.get("result")
    has_prediction = isinstance(prediction, list)
    return Annotation(
        id=saved.id,
        task_id=saved.task_id,
        updated_at_us=saved.updated_at_us,
        accepted=not saved.was_cancelled,
        ground_truth=saved.ground_truth,
        texts=texts,
        predicted_version=str(saved.prediction.get("model_version") or "") if has_prediction else None,
        predicted=_labelled(passages, prediction, origin="prediction")[0] if isinstance(prediction, list) else (),
        dropped=dict(dropped),
    )


def texts_of(task: wire.Task, schema: LabelSchema) -> tuple[AnnotatedText, ...]:
    """The texts of a task that nobody has labelled: without spans."""
    return _labelled(_passages(task, schema), ())[0]


def _project(key: str, project_id: int, schema: LabelSchema, title: str, updated_at_us: int) -> Project:
    # one control on several objects is a Control for each, all with the same labels
    controls = {control.name: control for control in schema.controls}
    return Project(
        key=key,
        id=project_id,
        title=title,
        config_digest=schema.digest,
        controls=tuple(ControlLabels(name, control.labels) for name, control in controls.items()),
        updated_at_us=updated_at_us,
    )


def _passages(task: wire.Task, schema: LabelSchema) -> _Passages:
    return [(control, regions.passages(control, task.data)) for control in schema.controls]


def _labelled(
    passages: _Passages, found: Sequence[Any], origin: str | None = None
) -> tuple[tuple[AnnotatedText, ...], Counter[str]]:
    """All texts with their spans, and how many regions gave no span. `origin`, if given, holds for every region."""
    dropped: Counter[str] = Counter()
    texts: list[AnnotatedText] = []
    num_claimed = 0
    for control, of_control in passages:
        claimed = [region for region in found if _is_of(region, control)]
        num_claimed += len(claimed)
        spans: list[list[LabelledSpan]] = [[] for _ in of_control]
        for region in claimed:
            # one by one, since a span does not name its region
            parsed = regions.parse(control, of_control, [region])
            dropped.update(problem.kind for problem in parsed.problems)
            for of_passage, parsed_spans in zip(spans, parsed.spans, strict=True):
                of_passage += [
                    LabelledSpan(span.start, span.end, span.label, origin or _origin(region)) for span in parsed_spans
                ]
        texts += [
            AnnotatedText(control.name, passage, control.labels.labels, tuple(of_passage))
            for passage, of_passage in zip(of_control, spans, strict=True)
        ]
    if num_claimed < len(found):
        dropped["other_control"] += len(found) - num_claimed
    return tuple(texts), dropped


def _is_of(region: Any, control: Control) -> bool:
    return isinstance(region, Mapping) and (region.get("from_name"), region.get("to_name")) == (
        control.name,
        control.object_name,
    )


def _origin(region: Mapping[str, Any]) -> str:
    origin = region.get("origin")
    return origin if isinstance(origin, str) and origin in _ORIGINS else "manual"
