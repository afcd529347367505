"""GNERModel: a label config over the shared predictor. The seam to label-studio-ml."""

import inspect
import logging
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, ClassVar

from label_studio_ml.model import LabelStudioMLBase

from backend.errors import InvalidLabelConfig, ModelNotReady
from backend.labelstudio import regions, schema, wire
from backend.labelstudio.schema import Control
from backend.metrics import Metrics
from backend.ner.spans import Passage, Question, Span
from backend.serving.cache import TextPrediction
from backend.serving.predictor import Predictor
from backend.serving.versions import UNUSABLE, ServedVersions
from backend.serving.windows import Priority

log = logging.getLogger(__name__)

DEFAULT_TIMEOUT_S = 90.0
_CACHED_MODELS = 256  # label configs of projects in use at the same time


@dataclass(frozen=True, slots=True)
class TaskLimits:
    """What is predicted at most; more is answered empty. `text_chars` counts a task's texts of all controls."""

    text_chars: int = 1_000_000
    tasks: int = 10_000  # of one request


class GNERModel(LabelStudioMLBase):  # type: ignore[misc]  # label-studio-ml has no types
    """Predicts for one label config. It holds no model: any number of these share one Predictor.

    The project decides which version of the model answers: projects may share a label config.

    Constructs under both lines of label-studio-ml: 1.x calls (label_config=..., train_output=...), 2.x calls
    (project_id=..., label_config=...).
    """

    # For callers who let label-studio-ml construct it: see `bound_to`.
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
        limits: TaskLimits | None = None,
        metrics: Metrics | None = None,
        **kwargs: Any,
    ) -> None:
        """`project` is the key of the default project, for calls that name none; without it the base version answers.

        Raises InvalidLabelConfig: the config is checked before the base class parses it.
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
        self._limits = limits or TaskLimits()
        self._metrics = metrics or Metrics()

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
        """One item per task, in order; None for a task that is not done after `timeout_s`, or is beyond the limits.

        All predictions are of one version.

        `context` makes the request interactive: it holds the regions that exist already. A region that overlaps one of
        them of the same control is left out.
        """
        predictor, versions = self._require_serving()
        controls = self.schema.controls if context is None else self._interactive_controls(context)
        passages = self._within_limits(tasks, _passages(tasks[: self._limits.tasks], controls))
        _log_empty(tasks, passages)
        deadline_s = time.monotonic() + timeout_s
        # once per request: a version that is promoted meanwhile must not be mixed into its answer
        served = versions.of(project or self._project)
        while True:
            try:
                timeout_s = max(0.0, deadline_s - time.monotonic())
                answers = iter(predictor.predict(_questions(passages), timeout_s, priority_of(tasks, context), served))
                break
            except UNUSABLE as error:  # a damaged adapter: another version answers the whole request
                served = versions.replace(project or self._project, served, error)
        return [
            None if of_task is None else _prediction(of_task, answers, context or (), served.version)
            for of_task in passages
        ]

    def prefetch(self, tasks: Sequence[wire.Task], project: str | None = None) -> None:
        """Have tasks predicted in the background, into the cache."""
        predictor, versions = self._require_serving()
        served = versions.of(project or self._project)
        passages = self._within_limits(tasks, _passages(tasks[: self._limits.tasks], self.schema.controls))
        predictor.prefetch(_questions(passages), served)

    def _within_limits(
        self, tasks: Sequence[wire.Task], passages: "Sequence[_PassagesOfTask]"
    ) -> "list[_PassagesOfTask | None]":
        """For each task its passages, or None if it is not to be predicted. `passages` has the first tasks only."""
        kept: list[_PassagesOfTask | None] = []
        for task, of_task in zip(tasks, passages, strict=False):
            num_chars = sum(len(passage.text) for _, of_control in of_task for passage in of_control)
            is_too_long = num_chars > self._limits.text_chars
            if is_too_long:
                limit = self._limits.text_chars
                log.warning(
                    "task %s has %d characters, over GNER_MAX_TEXT_CHARS=%d: not predicted", task.id, num_chars, limit
                )
                self._metrics.refused_tasks.labels("text too long").inc()
            kept.append(None if is_too_long else of_task)
        left = len(tasks) - len(kept)
        if left:
            log.warning(
                "%d of %d tasks are over GNER_MAX_TASKS=%d: not predicted", left, len(tasks), self._limits.tasks
            )
            self._metrics.refused_tasks.labels("too many tasks").inc(left)
        return kept + [None] * left

    def _require_serving(self) -> tuple[Predictor, ServedVersions]:
        if self._predictor is None or self._versions is None:
            raise ModelNotReady(
                "GNERModel was made without a predictor and served_versions; pass them, or use GNERModel.bound_to"
            )
        return self._predictor, self._versions

    def _interactive_controls(self, context: Sequence[Mapping[str, Any]]) -> Sequence[Control]:
        """Those that the context uses, else those that are smart, else all."""
        in_use = [region.get("from_name") for region in context]  # anything may stand there
        return (
            [control for control in self.schema.controls if control.name in in_use]
            or [control for control in self.schema.controls if control.smart]
            or self.schema.controls
        )


class Models:
    """A GNERModel for each label config, over one predictor: the only cache of parsed label configs. Thread-safe."""

    def __init__(
        self,
        predictor: Predictor,
        served_versions: ServedVersions,
        limits: TaskLimits | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        self._predictor = predictor
        self._versions = served_versions
        self._limits, self._metrics = limits, metrics
        self._cached = lru_cache(maxsize=_CACHED_MODELS)(self._new)

    def of(self, label_config: str) -> GNERModel:
        """Raises InvalidLabelConfig."""
        return self._cached(label_config)

    def _new(self, label_config: str) -> GNERModel:
        return GNERModel(
            label_config=label_config,
            predictor=self._predictor,
            served_versions=self._versions,
            limits=self._limits,
            metrics=self._metrics,
        )


_PassagesOfTask = list[tuple[Control, tuple[Passage, ...]]]


def _passages(tasks: Sequence[wire.Task], controls: Sequence[Control]) -> list[_PassagesOfTask]:
    return [[(control, regions.passages(control, task.data)) for control in controls] for task in tasks]


def _questions(passages: Iterable[_PassagesOfTask | None]) -> list[Question]:
    """The only place where a control's labels become prompt words."""
    return [
        Question(passage, control.labels.words)
        for of_task in passages
        for control, of_control in of_task or ()
        for passage in of_control
    ]


def priority_of(tasks: Sequence[wire.Task], context: Sequence[Any] | None) -> Priority:
    """A request with a context comes from somebody who draws a region, one with a single task from one who opens it."""
    if context is not None:
        return Priority.INTERACTIVE
    return Priority.OPEN_TASK if len(tasks) == 1 else Priority.BULK


def _log_empty(tasks: Sequence[wire.Task], passages: Sequence[_PassagesOfTask | None]) -> None:
    for task, of_task in zip(tasks, passages, strict=True):
        for control, of_control in of_task or ():
            if not any(passage.text.strip() for passage in of_control):
                log.info("task %s: %r is empty or missing; its prediction is empty", task.id, control.task_key)


def _prediction(
    passages: _PassagesOfTask, answers: Iterable[TextPrediction | None], context: Sequence[dict[str, Any]], version: str
) -> wire.Prediction | None:
    """The next answers are this task's, one per passage. None if any of them is missing."""
    pending = iter(answers)
    found = [(control, of_control, [next(pending) for _ in of_control]) for control, of_control in passages]
    done = [answer for _, _, of_control in found for answer in of_control if answer is not None]
    if len(done) < sum(len(of_control) for _, _, of_control in found):
        return None
    result: list[dict[str, Any]] = []
    for control, of_control, answers_of_control in found:
        taken = regions.parse(control, of_control, context).spans
        spans = [
            [span for span in _with_stored_labels(answer.spans, control) if not _overlaps(span, taken_of_passage)]
            for answer, taken_of_passage in zip(answers_of_control, taken, strict=True)
            if answer is not None
        ]
        result += regions.render(control, of_control, spans)
    return wire.Prediction(tuple(result), _task_score(done), version)


def _with_stored_labels(spans: Iterable[Span], control: Control) -> list[Span]:
    """The only place where the model's prompt words become stored labels."""
    return [replace(span, label=control.labels.label_of(span.label)) for span in spans]


def _overlaps(span: Span, others: Sequence[Span]) -> bool:
    return any(span.start < other.end and other.start < span.end for other in others)


def _task_score(answers: Sequence[TextPrediction]) -> float:
    """Exponent of the mean log-probability over all decisions of all texts of the task; 1.0 without any."""
    num_words = sum(answer.num_words for answer in answers)
    if not num_words:
        return 1.0
    return math.exp(sum(answer.num_words * math.log(answer.score) for answer in answers) / num_words)
