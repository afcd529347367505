"""GNERModel: a label config over the shared predictor. The seam to label-studio-ml."""

import inspect
import logging
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, ClassVar

from label_studio_ml.model import LabelStudioMLBase

from backend.errors import InvalidLabelConfig, ModelNotReady
from backend.labelstudio import regions, schema, wire
from backend.labelstudio.regions import TextUnit
from backend.labelstudio.schema import Control
from backend.ner.spans import Passage, Question, Span
from backend.serving.batcher import Priority
from backend.serving.cache import TextPrediction
from backend.serving.predictor import Predictor
from backend.serving.versions import UNUSABLE, ServedVersions

log = logging.getLogger(__name__)

DEFAULT_TIMEOUT_S = 90.0
_CACHED_MODELS = 256  # label configs of projects in use at the same time


class GNERModel(LabelStudioMLBase):  # type: ignore[misc]  # label-studio-ml has no types
    """Predicts for one label config. It holds no model: any number of these share one Predictor.

    Which version of the model answers is the project's matter: projects may share a label config.

    Constructs under both lines of label-studio-ml: 1.x calls (label_config=..., train_output=...), 2.x calls
    (project_id=..., label_config=...).
    """

    # For those who let label-studio-ml construct it: see `bound_to`.
    _bound_predictor: ClassVar[Predictor | None] = None
    _bound_versions: ClassVar[ServedVersions | None] = None

    def __init__(
        self,
        project_id: str | None = None,
        label_config: str | None = None,
        train_output: Mapping[str, Any] | None = None,
        *,
        predictor: Predictor | None = None,
        served_versions: ServedVersions | None = None,
        project: str | None = None,
        **kwargs: Any,
    ) -> None:
        """`project` is the key of the one that is meant where a call names none; None: the base version answers.

        Raises InvalidLabelConfig; the config is checked before any parser of the base class sees it.
        """
        if not label_config:
            raise InvalidLabelConfig("no label config was given")
        self.schema = schema.parse(label_config)
        base = inspect.signature(super().__init__).parameters
        ours = {"project_id": project_id, "label_config": label_config, "train_output": train_output}
        super().__init__(**{name: value for name, value in ours.items() if name in base}, **kwargs)
        self._predictor = predictor or self._bound_predictor
        self._versions = served_versions or self._bound_versions
        self._project = project

    @classmethod
    def bound_to(cls, predictor: Predictor, served_versions: ServedVersions) -> "type[GNERModel]":
        """A subclass that needs neither as an argument, for a framework that constructs the model itself."""
        return type(cls.__name__, (cls,), {"_bound_predictor": predictor, "_bound_versions": served_versions})

    def predict(
        self, tasks: Sequence[Mapping[str, Any]], context: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> list[Any]:
        """label-studio-ml's method: JSON in, JSON out, one item per task in order."""
        request = [wire.parse_task(dict(task), f"tasks[{index}]") for index, task in enumerate(tasks)]
        regions_so_far = None if context is None else tuple(context.get("result") or ())
        timeout_s = kwargs.get("timeout_s", DEFAULT_TIMEOUT_S)
        predictions = self.predict_tasks(request, regions_so_far, timeout_s, kwargs.get("project"))
        results: list[Any] = wire.predict_response(predictions)["results"]
        return results

    def predict_tasks(
        self,
        tasks: Sequence[wire.Task],
        context: Sequence[dict[str, Any]] | None,
        timeout_s: float,
        project: str | None = None,
    ) -> list[wire.Prediction | None]:
        """One item per task, in order; None for a task that is not done after `timeout_s`. All are of one version.

        `context` makes the request interactive: these regions are there already, and none is offered that
        overlaps one of its own control.
        """
        predictor, versions = self._require_serving()
        texts = _texts(tasks, self.schema.controls if context is None else self._asked(context))
        _log_empty(tasks, texts)
        deadline_s = time.monotonic() + timeout_s
        # once per request: what is promoted meanwhile must not get into its answer
        served = versions.of(project or self._project)
        while True:
            try:
                timeout_s = max(0.0, deadline_s - time.monotonic())
                answers = iter(predictor.predict(_questions(texts), timeout_s, _priority(tasks, context), served))
                break
            except UNUSABLE as error:  # its adapter has gone bad: all of the request is answered by another version
                served = versions.replace(project or self._project, served, error)
        return [_prediction(of_task, answers, context or (), served.version) for of_task in texts]

    def prefetch(self, tasks: Sequence[wire.Task], project: str | None = None) -> None:
        """Have tasks predicted in the background, into the cache."""
        predictor, versions = self._require_serving()
        served = versions.of(project or self._project)
        predictor.prefetch(_questions(_texts(tasks, self.schema.controls)), served)

    def _require_serving(self) -> tuple[Predictor, ServedVersions]:
        if self._predictor is None or self._versions is None:
            raise ModelNotReady(
                "GNERModel was made without a predictor and served_versions; pass them, or use GNERModel.bound_to"
            )
        return self._predictor, self._versions

    def _asked(self, context: Sequence[Mapping[str, Any]]) -> Sequence[Control]:
        """The controls that an interactive request is about: those in use, else those that are smart."""
        in_use = {region.get("from_name") for region in context}
        return (
            [control for control in self.schema.controls if control.name in in_use]
            or [control for control in self.schema.controls if control.smart]
            or self.schema.controls
        )


class Models:
    """A GNERModel for each label config, over one predictor: the only cache of parsed label configs. Thread-safe."""

    def __init__(self, predictor: Predictor, served_versions: ServedVersions) -> None:
        self._predictor = predictor
        self._versions = served_versions
        self._cached = lru_cache(maxsize=_CACHED_MODELS)(self._new)

    def of(self, label_config: str) -> GNERModel:
        """Raises InvalidLabelConfig."""
        return self._cached(label_config)

    def _new(self, label_config: str) -> GNERModel:
        return GNERModel(label_config=label_config, predictor=self._predictor, served_versions=self._versions)


_TextsOfTask = list[tuple[Control, tuple[TextUnit, ...]]]


def _texts(tasks: Sequence[wire.Task], controls: Sequence[Control]) -> list[_TextsOfTask]:
    return [[(control, regions.units(control, task.data)) for control in controls] for task in tasks]


def _questions(texts: Sequence[_TextsOfTask]) -> list[Question]:
    return [
        Question(Passage(unit.text, unit.breaks), control.label_names)
        for of_task in texts
        for control, units in of_task
        for unit in units
    ]


def _priority(tasks: Sequence[wire.Task], context: Sequence[Any] | None) -> Priority:
    if context is not None:
        return Priority.INTERACTIVE
    return Priority.OPEN_TASK if len(tasks) == 1 else Priority.BULK


def _log_empty(tasks: Sequence[wire.Task], texts: Sequence[_TextsOfTask]) -> None:
    for task, of_task in zip(tasks, texts, strict=True):
        for control, units in of_task:
            if not any(unit.text.strip() for unit in units):
                log.info("task %s: %r is empty or missing; its prediction is empty", task.id, control.task_key)


def _prediction(
    texts: _TextsOfTask, answers: Iterable[TextPrediction | None], context: Sequence[dict[str, Any]], version: str
) -> wire.Prediction | None:
    """The next answers are this task's, unit by unit. None if any of them is missing."""
    pending = iter(answers)
    found = [(control, units, [next(pending) for _ in units]) for control, units in texts]
    done = [answer for _, _, of_control in found for answer in of_control if answer is not None]
    if len(done) < sum(len(of_control) for _, _, of_control in found):
        return None
    result: list[dict[str, Any]] = []
    for control, units, of_control in found:
        taken = regions.parse(control, units, context).spans
        spans = [
            [span for span in answer.spans if not _overlaps(span, taken_of_unit)]
            for answer, taken_of_unit in zip(of_control, taken, strict=True)
            if answer is not None
        ]
        result += regions.render(control, units, spans)
    return wire.Prediction(tuple(result), _task_score(done), version)


def _overlaps(span: Span, others: Sequence[Span]) -> bool:
    return any(span.start < other.end and other.start < span.end for other in others)


def _task_score(answers: Sequence[TextPrediction]) -> float:
    """Exponent of the mean log-probability over all decisions of all texts of the task; 1.0 without any."""
    num_words = sum(answer.num_words for answer in answers)
    if not num_words:
        return 1.0
    return math.exp(sum(answer.num_words * math.log(answer.score) for answer in answers) / num_words)
