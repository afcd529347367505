"""GNERModel, the seam to label-studio-ml: under the line that is installed and under the newer one's signature."""

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from label_studio_ml.model import LabelStudioMLBase

from backend.app import Services
from backend.errors import InvalidLabelConfig, InvalidRequest, ModelNotReady
from backend.labelstudio import wire
from backend.labelstudio.model import GNERModel, Models, TaskLimits
from backend.metrics import Metrics
from tests.support.running import (
    CONFIG,
    OTHER_CONFIG,
    TIMEOUT_S,
    count,
    publish_random,
    running,
    save_checkpoint,
    tasks_of,
)

TEXTS = ["Marie Curie worked in Paris , x", "", "2024 person in the city ! " * 5]
TWO_CONTROLS = (
    '<View><Labels name="label" toName="text" smart="true"><Label value="Person"/></Labels>'
    '<Labels name="kind" toName="text"><Label value="Work"/><Label value="City"/></Labels>'
    '<Text name="text" value="$text"/></View>'
)
DIALOGUE = (
    '<View><ParagraphLabels name="label" toName="talk"><Label value="Person"/><Label value="City"/></ParagraphLabels>'
    '<Paragraphs name="talk" value="$talk" layout="dialogue"/></View>'
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny")


@pytest.fixture(scope="module")
def services(checkpoint: Path, _valkey_url: str) -> Iterator[Services]:
    with running(model=str(checkpoint), redis_url=_valkey_url) as services:
        yield services


class NewerLine(LabelStudioMLBase):  # type: ignore[misc]  # label-studio-ml has no types
    """What the base class of label-studio-ml 2.x looks like from a subclass: two arguments and no more."""

    def __init__(self, project_id: str | None = None, label_config: str | None = None) -> None:
        self.project_id = project_id or ""
        self.label_config = label_config


def model_of(services: Services, config: str = CONFIG) -> GNERModel:
    return GNERModel(label_config=config, predictor=services.predictor, served_versions=services.served)


def spans(item: dict[str, Any]) -> list[tuple[Any, ...]]:
    values = [region["value"] for region in item["result"]]
    return [(value["start"], value["end"], *value["labels"]) for value in values]


def test_it_is_a_label_studio_ml_model() -> None:
    assert issubclass(GNERModel, LabelStudioMLBase)
    assert not inspect.isabstract(GNERModel)


def test_the_installed_line_constructs_it(services: Services) -> None:
    model = GNERModel.bound_to(services.predictor, services.served)(label_config=CONFIG, train_output={"a": 1})
    assert model.label_config == CONFIG
    assert model.train_output == {"a": 1}
    assert set(model.parsed_label_config) == {"label"}
    assert len(model.predict(tasks_of(*TEXTS))) == 3


def test_the_newer_lines_arguments_construct_it_too(services: Services) -> None:
    model = GNERModel.bound_to(services.predictor, services.served)(project_id="1", label_config=CONFIG)
    assert len(model.predict(tasks_of(*TEXTS), context=None, login="x", password="y")) == 3


def test_over_the_newer_lines_base_class_it_is_given_what_that_takes(services: Services) -> None:
    class UnderNewerLine(GNERModel, NewerLine):
        """Its next base is the newer one, as if that were installed."""

    assert UnderNewerLine.__mro__[2] is NewerLine
    model = UnderNewerLine.bound_to(services.predictor, services.served)(project_id="7", label_config=CONFIG)
    assert (model.project_id, model.label_config) == ("7", CONFIG)
    expected = model_of(services).predict(tasks_of(*TEXTS))
    assert [spans(item) for item in model.predict(tasks_of(*TEXTS))] == [spans(item) for item in expected]


def test_what_is_beyond_the_limits_is_answered_empty_and_counted(
    services: Services, caplog: pytest.LogCaptureFixture
) -> None:
    metrics = Metrics()
    models = Models(services.predictor, services.served, TaskLimits(text_chars=20, tasks=3), metrics)
    tasks = [wire.Task(number, {"text": text}) for number, text in enumerate(["Marie", "x" * 21, "Paris", "Curie"])]
    predictions = models.of(CONFIG).predict_tasks(tasks, None, TIMEOUT_S)
    assert [prediction is None for prediction in predictions] == [False, True, False, True]
    assert "task 1 has 21 characters, over GNER_MAX_TEXT_CHARS=20" in caplog.text
    assert "1 of 4 tasks are over GNER_MAX_TASKS=3" in caplog.text
    for reason in ("text too long", "too many tasks"):
        assert metrics.registry.get_sample_value("gner_refused_tasks_total", {"reason": reason}) == 1
    models.of(CONFIG).prefetch(tasks)


def test_the_limit_counts_the_texts_of_all_controls(services: Services) -> None:
    twice = CONFIG.replace("</View>", '<Labels name="b" toName="text"><Label value="City"/></Labels></View>')
    models = Models(services.predictor, services.served, TaskLimits(text_chars=8))
    task = wire.Task(1, {"text": "Marie"})
    assert models.of(CONFIG).predict_tasks([task], None, TIMEOUT_S) != [None]
    assert models.of(twice).predict_tasks([task], None, TIMEOUT_S) == [None]


def test_binding_makes_a_class_of_its_own(services: Services) -> None:
    bound = GNERModel.bound_to(services.predictor, services.served)
    assert bound.__name__ == "GNERModel"
    assert issubclass(bound, GNERModel)
    with pytest.raises(ModelNotReady, match="bound_to"):
        GNERModel(label_config=CONFIG).predict(tasks_of("Marie"))


@pytest.mark.parametrize("config", [None, "", "<View/>", "no xml"])
def test_a_config_that_cannot_be_used_is_refused_when_it_is_made(config: str | None) -> None:
    with pytest.raises(InvalidLabelConfig):
        GNERModel(label_config=config)


def test_predictions_are_what_label_studio_takes(services: Services) -> None:
    model = model_of(services)
    items = model.predict(tasks_of(*TEXTS))
    assert [set(item) for item in items] == [{"result", "score", "model_version"}] * 3
    assert {item["model_version"] for item in items} == {services.checkpoint.version}
    assert items[1]["result"] == []
    assert any(item["result"] for item in items)


def test_a_task_that_is_no_task_is_named(services: Services) -> None:
    model = model_of(services)
    with pytest.raises(InvalidRequest, match=r"tasks\[1\]"):
        model.predict([*tasks_of("Marie"), {"id": 2}])


def test_what_is_not_done_in_time_is_none(services: Services) -> None:
    model = model_of(services)
    tasks = [wire.Task(index, {"text": f"a text never seen {index}"}) for index in range(50)]
    assert None in model.predict_tasks(tasks, None, 0.0)
    assert None not in model.predict_tasks(tasks, None, 60.0)


def test_each_control_labels_with_its_own_labels(services: Services) -> None:
    model = model_of(services, TWO_CONTROLS)
    [item] = model.predict(tasks_of(TEXTS[2]))
    by_control: dict[str, set[str]] = {region["from_name"]: set() for region in item["result"]}
    for region in item["result"]:
        by_control[region["from_name"]].update(region["value"]["labels"])
    assert set(by_control) <= {"label", "kind"}
    assert by_control
    assert by_control.get("label", set()) <= {"Person"}
    assert by_control.get("kind", set()) <= {"Work", "City"}


def test_an_interactive_request_is_about_the_smart_control_or_the_one_in_use(services: Services) -> None:
    model = model_of(services, TWO_CONTROLS)
    task = [wire.Task(1, {"text": TEXTS[2]})]

    def controls(context: list[dict[str, Any]] | None) -> set[str]:
        [prediction] = model.predict_tasks(task, context, 60.0)
        assert prediction is not None
        return {region["from_name"] for region in prediction.result}

    drawn = {
        "id": "a",
        "from_name": "kind",
        "to_name": "text",
        "type": "labels",
        "value": {"start": 0, "end": 1, "labels": ["City"]},
    }
    assert controls(None) == {"label", "kind"}, "the text must have spans of both controls"
    assert controls([]) == {"label"}
    assert controls([drawn]) == {"kind"}


def test_the_phrases_of_a_dialogue_are_labelled_one_by_one(services: Services) -> None:
    model = model_of(services, DIALOGUE)
    phrases = [TEXTS[2], "", "😀 " + TEXTS[2], TEXTS[0]]
    talk = [{"author": "a", "text": phrase} for phrase in phrases]
    [item] = model.predict([{"id": 1, "data": {"talk": talk}}])
    assert {region["value"]["start"] for region in item["result"]} >= {"0", "2"}
    for region in item["result"]:
        value = region["value"]
        utf16 = phrases[int(value["start"])].encode("utf-16-le")
        found = utf16[2 * value["startOffset"] : 2 * value["endOffset"]].decode("utf-16-le")
        assert found == value["text"]


def test_the_score_of_a_task_weighs_its_texts_by_their_words(services: Services) -> None:
    model = model_of(services, DIALOGUE)

    def score(*phrases: str) -> float:
        [item] = model.predict([{"id": 1, "data": {"talk": [{"text": phrase} for phrase in phrases]}}])
        found: float = item["score"]
        return found

    short, long = score("Marie"), score(TEXTS[2])
    assert short != pytest.approx(long)
    assert score("Marie", "Marie") == pytest.approx(short)
    assert score("Marie", TEXTS[2]) == pytest.approx((short * long**30) ** (1 / 31))
    assert score("", "") == 1.0


def test_prefetched_tasks_are_answered_from_the_cache(services: Services) -> None:
    model = model_of(services, OTHER_CONFIG)
    tasks = [wire.Task(index, {"body": f"Marie ahead {index}"}) for index in range(5)]
    model.prefetch(tasks)
    model.predict_tasks(tasks, None, 60.0)
    decoded = count(services, "gner_windows_decoded_total")
    model.prefetch(tasks)
    assert None not in model.predict_tasks(tasks, None, 60.0)
    assert count(services, "gner_windows_decoded_total") == decoded


# --- versions of projects


def test_the_project_decides_which_version_answers(services: Services, checkpoint: Path) -> None:
    trained = publish_random(services.registry, checkpoint, "7.1795333437", seed=1).version
    services.served.refresh()
    tasks = [wire.Task(1, {"text": TEXTS[0]})]
    base = services.checkpoint.version

    def version_for(model: GNERModel, project: str | None = None) -> str | None:
        [prediction] = model.predict_tasks(tasks, None, 60.0, project)
        return None if prediction is None else prediction.model_version

    of_nobody = model_of(services)
    assert version_for(of_nobody) == base
    assert version_for(of_nobody, "7.1795333437") == trained
    assert version_for(of_nobody, "8.1795333437") == base
    of_project = GNERModel(
        label_config=CONFIG,
        predictor=services.predictor,
        served_versions=services.served,
        project="7.1795333437",
    )
    assert version_for(of_project) == trained
    assert version_for(of_project, "8.1795333437") == base
    assert {item["model_version"] for item in of_project.predict(tasks_of(*TEXTS))} == {trained}


def test_tasks_are_prefetched_for_the_version_of_their_project(services: Services, checkpoint: Path) -> None:
    publish_random(services.registry, checkpoint, "9.1795333437", seed=2)
    services.served.refresh()
    model = model_of(services, OTHER_CONFIG)
    tasks = [wire.Task(index, {"body": f"Paris ahead {index}"}) for index in range(3)]
    model.prefetch(tasks, "9.1795333437")
    assert None not in model.predict_tasks(tasks, None, 60.0, "9.1795333437")
    decoded = count(services, "gner_windows_decoded_total")
    assert None not in model.predict_tasks(tasks, None, 60.0, "9.1795333437")
    assert count(services, "gner_windows_decoded_total") == decoded
    assert None not in model.predict_tasks(tasks, None, 60.0)
    assert count(services, "gner_windows_decoded_total") == decoded + 3, "the base has been asked for nothing yet"
