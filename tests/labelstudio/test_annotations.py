"""Annotations as Label Studio 1.23.2 writes them -> what is kept of them."""

import json
from pathlib import Path
from typing import Any

import pytest

from backend.labelstudio import annotations, schema, wire
from backend.labelstudio.annotations import annotation_of
from backend.learning.annotations import AnnotatedText, Annotation, ControlLabels, LabelledSpan, Project
from backend.learning.examples import was_corrected
from backend.ner.labels import PromptLabels
from backend.ner.spans import Passage

SAMPLES = Path(__file__).parent / "samples"
LABELS = '<Label value="Person"/><Label value="GPE" alias="place"/>'
TEXT = f'<View><Labels name="label" toName="text">{LABELS}</Labels><Text name="text" value="$text"/></View>'
HYPERTEXT = (
    f'<View><HyperTextLabels name="label" toName="text">{LABELS}</HyperTextLabels>'
    '<HyperText name="text" value="$text"/></View>'
)
PARAGRAPHS = (
    f'<View><ParagraphLabels name="label" toName="text">{LABELS}</ParagraphLabels>'
    '<Paragraphs name="text" value="$text"/></View>'
)


def region(value: dict[str, Any], kind: str = "labels", origin: str | None = "manual", **fields: Any) -> dict[str, Any]:
    told = {} if origin is None else {"origin": origin}
    return {"id": "r", "from_name": "label", "to_name": "text", "type": kind, "value": value, **told, **fields}


def span(start: int, end: int, *labels: str, origin: str | None = "manual") -> dict[str, Any]:
    return region({"start": start, "end": end, "labels": list(labels)}, origin=origin)


def annotated(label_config: str, text: Any, result: list[Any], **fields: Any) -> Annotation:
    task = {"id": 10, "data": {"text": text}, "annotations": [{"id": 1, "result": result, **fields}]}
    (item,) = wire.parse_annotated_task(task)
    return annotation_of(item, schema.parse(label_config))


def spans_of(annotation: Annotation) -> list[list[tuple[int, int, str]]]:
    return [[(found.start, found.end, found.label) for found in text.spans] for text in annotation.texts]


@pytest.mark.parametrize(
    ("name", "updated_at_us"), [("ANNOTATION_CREATED", 1795333438867173), ("ANNOTATION_UPDATED", 1795333439008619)]
)
def test_an_event_as_recorded(name: str, updated_at_us: int) -> None:
    event = wire.parse_webhook(json.loads((SAMPLES / f"webhook_{name}.json").read_text(encoding="utf-8")))
    assert isinstance(event, wire.AnnotationsSaved)
    text = "Barack Obama met Angela Merkel in Berlin."
    spans = (LabelledSpan(0, 12, "Place", "manual"),)
    assert annotation_of(event.items[0], schema.parse(event.project.label_config)) == Annotation(
        id=1,
        task_id=10,
        updated_at_us=updated_at_us,
        accepted=True,
        ground_truth=False,
        texts=(AnnotatedText("label", Passage(text), ("Person", "Place"), spans),),
        predicted_version=None,
        predicted=(),
        dropped={},
    )


def test_a_project_as_recorded() -> None:
    event = wire.parse_webhook(json.loads((SAMPLES / "webhook_PROJECT_UPDATED.json").read_text(encoding="utf-8")))
    assert isinstance(event, wire.ProjectUpdated)
    project = annotations.project_of(event.project, schema.parse(event.project.label_config))
    assert project == Project(
        key="2.1795333437",
        id=2,
        title="renamed",
        config_digest=schema.parse(event.project.label_config).digest,
        controls=(ControlLabels("label", PromptLabels.of([("person", "Person"), ("place", "Place")])),),
        updated_at_us=1795333439158943,
    )
    ref = wire.ProjectRef(2, "2.1795333437")
    of_ml_call = annotations.project_of_ref(ref, schema.parse(event.project.label_config))
    assert (of_ml_call.key, of_ml_call.controls) == (project.key, project.controls)
    assert (of_ml_call.title, of_ml_call.updated_at_us) == ("", 0)


def test_nothing_secret_is_kept_of_a_project() -> None:
    body = json.loads((SAMPLES / "webhook_PROJECT_UPDATED.json").read_text(encoding="utf-8"))
    body["project"] |= {"token": "secret-1", "task_data_login": "secret-2", "task_data_password": "secret-3"}
    event = wire.parse_webhook(body)
    assert isinstance(event, wire.ProjectUpdated)
    assert "secret" not in repr(annotations.project_of(event.project, schema.parse(event.project.label_config)))


def test_a_control_on_two_objects_is_one_control_with_two_texts() -> None:
    config = (
        '<View><Labels name="label" toName="a,b"><Label value="X" predicted_values="ex,ix"/></Labels>'
        '<Text name="a" value="$a"/><Text name="b" value="$b"/></View>'
    )
    project = annotations.project_of_ref(wire.ProjectRef(1, "1"), schema.parse(config))
    assert project.controls == (ControlLabels("label", PromptLabels.of([("ex", "X"), ("ix", "X")])),)
    regions = [region({"start": 0, "end": 1, "labels": ["X"]}) | {"to_name": "b"}]
    task = {"id": 10, "data": {"a": "one", "b": "two"}, "annotations": [{"id": 1, "result": regions}]}
    (item,) = wire.parse_annotated_task(task)
    annotation = annotation_of(item, schema.parse(config))
    assert [(text.passage.text, text.control, text.labels) for text in annotation.texts] == [
        ("one", "label", ("X",)),
        ("two", "label", ("X",)),
    ]
    assert spans_of(annotation) == [[], [(0, 1, "X")]]
    assert annotation.dropped == {}


@pytest.mark.parametrize(
    ("fields", "accepted", "ground_truth"),
    [
        ({}, True, False),
        ({"was_cancelled": True}, False, False),
        ({"ground_truth": True}, True, True),
    ],
)
def test_what_kind_of_annotation_it_is(fields: dict[str, Any], accepted: bool, ground_truth: bool) -> None:
    annotation = annotated(TEXT, "x", [], **fields)
    assert (annotation.accepted, annotation.ground_truth) == (accepted, ground_truth)


def test_labels_are_kept_as_label_studio_stores_them() -> None:
    annotation = annotated(TEXT, "😀 Bob in\r\nRome", [span(2, 5, "Person"), span(10, 14, "place", "Person")])
    assert annotation.texts[0].labels == ("Person", "place")
    assert spans_of(annotation) == [[(2, 5, "Person"), (10, 14, "place"), (10, 14, "Person")]]


# <p>Ann 😀 &amp; Bob</p><p>in Rome</p> is drawn as "Ann 😀 & Bobin Rome", with a break after Bob
XPATHS = {"start": "/p[2]/text()[1]", "end": "/p[2]/text()[1]", "startOffset": 3, "endOffset": 7}


@pytest.mark.parametrize(
    "value",
    [
        pytest.param({"start": 14, "end": 18}, id="the integers that were predicted"),
        pytest.param({**XPATHS, "globalOffsets": {"start": 14, "end": 18}}, id="as drawn in the editor"),
    ],
)
def test_both_forms_of_offsets_in_hypertext(value: dict[str, Any]) -> None:
    regions = [region({**value, "text": "Rome", "hypertextlabels": ["place"]}, "hypertextlabels")]
    annotation = annotated(HYPERTEXT, "<p>Ann 😀 &amp; Bob</p><p>in Rome</p>", regions)
    assert annotation.texts[0].passage == Passage("Ann 😀 & Bobin Rome", (11,))
    assert spans_of(annotation) == [[(14, 18, "place")]]
    assert annotation.dropped == {}


def test_paragraphs() -> None:
    value = {"start": "1", "end": "1", "startOffset": 3, "endOffset": 6, "paragraphlabels": ["Person"]}
    annotation = annotated(
        PARAGRAPHS, [{"author": "A", "text": "Hi"}, {"text": "😀 Bob"}], [region(value, "paragraphlabels")]
    )
    assert [text.passage.text for text in annotation.texts] == ["Hi", "😀 Bob"]
    assert spans_of(annotation) == [[], [(2, 5, "Person")]]


def test_regions_that_give_no_span_are_counted() -> None:
    regions = [
        span(0, 3, "Person"),
        span(0, 99, "Person"),
        span(0, 3, "Person", "gone"),
        region({"start": "/p[1]", "end": "/p[1]", "labels": ["Person"]}),
        region({"start": 0, "end": 3, "choices": ["Person"]}, "choices"),
        region({"choices": ["x"]}, "choices") | {"from_name": "kind"},
        {"type": "relation", "from_id": "a", "to_id": "b"},
    ]
    annotation = annotated(TEXT, "Ann", regions)
    assert spans_of(annotation) == [[(0, 3, "Person"), (0, 3, "Person")]]
    assert annotation.dropped == {
        "out_of_bounds": 1,
        "unknown_label": 1,
        "no_offsets": 1,
        "other_type": 1,
        "other_control": 2,
    }


@pytest.mark.parametrize(
    ("origin", "kept"),
    [
        ("prediction", "prediction"),
        ("prediction-changed", "prediction-changed"),
        ("manual", "manual"),
        (None, "manual"),
        ("from elsewhere", "manual"),
    ],
)
def test_origins(origin: str | None, kept: str) -> None:
    annotation = annotated(TEXT, "Ann", [span(0, 3, "Person", origin=origin)])
    assert annotation.texts[0].spans[0].origin == kept


PREDICTION = {
    "id": 4,
    "model_version": "gner-mini-0123456789",
    "result": [span(0, 3, "Person", origin=None), span(0, 3, "gone", origin=None)],
}


@pytest.mark.parametrize(
    ("result", "corrected"),
    [
        ([span(0, 3, "Person", origin="prediction")], False),
        ([span(0, 3, "place", origin="prediction-changed")], True),
        ([span(0, 3, "Person", origin="prediction"), span(4, 7, "Person")], True),
        ([], True),
    ],
)
def test_the_prediction_that_was_corrected(result: list[Any], corrected: bool) -> None:
    annotation = annotated(TEXT, "Ann Bob", result, prediction=PREDICTION, parent_prediction=4)
    assert annotation.predicted_version == "gner-mini-0123456789"
    assert [text.spans for text in annotation.predicted] == [(LabelledSpan(0, 3, "Person", "prediction"),)]
    assert annotation.dropped == {}
    assert was_corrected(annotation) is corrected


@pytest.mark.parametrize(
    ("prediction", "version"),
    [
        ({}, None),
        ({"id": 4, "model_version": "v"}, None),
        ({"model_version": None, "result": []}, ""),
        ({"model_version": "v", "result": ["x", None, span(0, 99, "Person")]}, "v"),
    ],
)
def test_predictions_that_tell_little(prediction: dict[str, Any], version: str | None) -> None:
    annotation = annotated(TEXT, "Ann", [], prediction=prediction)
    assert annotation.predicted_version == version
    assert not any(text.spans for text in annotation.predicted)


def test_texts_of_a_task() -> None:
    task = wire.Task(10, {"text": "<p>a</p><p>b</p>"})
    texts = annotations.texts_of(task, schema.parse(HYPERTEXT))
    assert texts == (AnnotatedText("label", Passage("ab", (1,)), ("Person", "place"), ()),)
    assert annotations.texts_of(wire.Task(None, {}), schema.parse(PARAGRAPHS)) == ()
