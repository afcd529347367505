"""What Label Studio tells -> what is learnt from: the annotations, projects and texts of `learning.examples`."""

import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from backend.labelstudio import regions, schema, wire
from backend.labelstudio.regions import TextUnit
from backend.labelstudio.schema import Control, LabelSchema
from backend.learning.annotations import AnnotatedText, Annotation, ControlLabels, LabelledSpan, Project
from backend.ner.labels import PromptLabels
from backend.ner.spans import Passage

_ORIGINS = frozenset({"prediction", "prediction-changed", "manual"})
_MAX_CONFIGS = 64

_Units = Sequence[tuple[Control, Sequence[TextUnit]]]


@functools.lru_cache(maxsize=_MAX_CONFIGS)
def schema_of(label_config: str) -> LabelSchema:
    """`schema.parse`, remembered: every event brings its project's label config. Raises InvalidLabelConfig."""
    return schema.parse(label_config)


def project_of(project: wire.Project) -> Project:
    """Raises InvalidLabelConfig."""
    return _project(project.key, project.id, project.label_config, project.title, project.updated_at_us)


def project_of_ref(ref: wire.ProjectRef, label_config: str) -> Project:
    """The project of an ML call, which tells no title and no date. Raises InvalidLabelConfig."""
    return _project(ref.key, ref.id, label_config, title="", updated_at_us=0)


def annotation_of(item: wire.AnnotatedTask, schema: LabelSchema) -> Annotation:
    """An annotation, under the label config that came with it.

    `dropped` counts the regions of other controls (choices, relations) too. A region without an `origin`, as those that
    came through Label Studio's API, is somebody's own: "manual".
    """
    saved = item.annotation
    units = _units(item.task, schema)
    texts, dropped = _labelled(units, saved.result)
    prediction = saved.prediction.get("result")
    is_told = isinstance(prediction, list)
    return Annotation(
        id=saved.id,
        task_id=saved.task_id,
        updated_at_us=saved.updated_at_us,
        accepted=not saved.was_cancelled,
        ground_truth=saved.ground_truth,
        texts=texts,
        predicted_version=str(saved.prediction.get("model_version") or "") if is_told else None,
        predicted=_labelled(units, prediction, origin="prediction")[0] if isinstance(prediction, list) else (),
        dropped=dict(dropped),
    )


def texts_of(task: wire.Task, schema: LabelSchema) -> tuple[AnnotatedText, ...]:
    """The texts of a task that nobody has labelled: without spans."""
    return _labelled(_units(task, schema), ())[0]


def _project(key: str, project_id: int, label_config: str, title: str, updated_at_us: int) -> Project:
    parsed = schema_of(label_config)
    # one control on several objects is a Control for each, all with the same labels
    controls = {control.name: control for control in parsed.controls}
    return Project(
        key=key,
        id=project_id,
        title=title,
        config_digest=parsed.digest,
        controls=tuple(
            ControlLabels(name, PromptLabels.of((label.name, label.value) for label in control.prompt_labels))
            for name, control in controls.items()
        ),
        updated_at_us=updated_at_us,
    )


def _units(task: wire.Task, schema: LabelSchema) -> _Units:
    return [(control, regions.units(control, task.data)) for control in schema.controls]


def _labelled(
    units: _Units, found: Sequence[Any], origin: str | None = None
) -> tuple[tuple[AnnotatedText, ...], Counter[str]]:
    """All texts with their regions, and how many regions gave no span. `origin` is that of every region, if given."""
    dropped: Counter[str] = Counter()
    texts: list[AnnotatedText] = []
    num_claimed = 0
    for control, of_control in units:
        claimed = [region for region in found if _is_of(region, control)]
        num_claimed += len(claimed)
        values = {label.name: label.value for label in control.prompt_labels}
        spans: list[list[LabelledSpan]] = [[] for _ in of_control]
        for region in claimed:
            # one by one, since a span does not tell its region
            parsed = regions.parse(control, of_control, [region])
            dropped.update(problem.kind for problem in parsed.problems)
            for of_unit, parsed_spans in zip(spans, parsed.spans, strict=True):
                of_unit += [
                    LabelledSpan(span.start, span.end, values[span.label], origin or _origin(region))
                    for span in parsed_spans
                ]
        labels = tuple(dict.fromkeys(values.values()))
        texts += [
            AnnotatedText(control.name, Passage(unit.text, unit.breaks), labels, tuple(of_unit))
            for unit, of_unit in zip(of_control, spans, strict=True)
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
