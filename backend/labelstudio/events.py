"""What Label Studio reports -> the example store and the training queue, one method per event."""

import logging
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

from backend.errors import BackendError, InvalidRequest, StoreUnavailable
from backend.labelstudio import annotations, wire
from backend.labelstudio.model import Models
from backend.labelstudio.schema import LabelSchema
from backend.learning.annotations import Project
from backend.learning.example_store import MAX_UNLABELLED_TASKS, ExampleStore
from backend.learning.examples import Remapping, require_examples
from backend.learning.jobs import PARAMS, TrainingQueue

log = logging.getLogger(__name__)

_MOST_AHEAD_S = 86_400  # clocks differ, and a time zone may be taken for UTC
# /setup comes before every prediction: a store that hangs must not hold it up for longer.
_SETUP_WAIT_S = 0.5


@dataclass(frozen=True, slots=True)
class Background:
    """Threads for what no caller waits for to its end. They start with their first task."""

    predictions: Executor
    setups: Executor

    @classmethod
    def new(cls) -> "Background":
        """Predictions one project after the other; setups beside them, since their callers wait for a moment."""
        return cls(
            predictions=ThreadPoolExecutor(max_workers=1, thread_name_prefix="prefetch"),
            setups=ThreadPoolExecutor(max_workers=2, thread_name_prefix="setup"),
        )

    def stop(self) -> None:
        """Drop what has not begun, and wait for what runs."""
        for executor in (self.predictions, self.setups):
            executor.shutdown(cancel_futures=True)


@dataclass(frozen=True, slots=True)
class Changed:
    """What an event changed."""

    annotations: int
    job: str | None  # of the training that became due


class Events:
    """Thread-safe. What a method stores is durable when it returns."""

    def __init__(
        self,
        models: Models,
        examples: ExampleStore,
        training: TrainingQueue,
        background: Background,
        *,
        syncs: bool,
    ) -> None:
        """`syncs`: a training first fetches from Label Studio what is missing here, so it may have enough examples."""
        self._models = models
        self._examples = examples
        self._training = training
        self._background = background
        self._syncs = syncs

    def save_annotations(self, event: wire.AnnotationsSaved) -> Changed:
        """Add or replace annotations. Raises InvalidLabelConfig, StoreUnavailable."""
        schema = self._schema(event.project.label_config)
        project = annotations.project_of(event.project, schema)
        return self._changed(project.key, self._store(project, schema, event.items))

    def delete_annotations(self, event: wire.AnnotationsDeleted) -> Changed:
        """Raises StoreUnavailable."""
        project = event.project.key
        return self._changed(project, self._examples.delete_annotations(project, event.annotation_ids))

    def delete_tasks(self, event: wire.TasksDeleted) -> Changed:
        """Delete the annotations of these tasks. Raises StoreUnavailable."""
        project = event.project.key
        return self._changed(project, self._examples.delete_tasks(project, event.task_ids))

    def update_project(self, event: wire.ProjectUpdated) -> Remapping:
        """What the new label config makes of the examples. Raises InvalidLabelConfig, StoreUnavailable."""
        self._save_project(event.project)
        remapping = self._examples.snapshot(event.project.key).remapping
        log.info("project %s: what its new label config makes of the examples: %s", event.project.key, remapping)
        return remapping

    def start_training(self, event: wire.TrainingStarted) -> str:
        """The job. Raises InvalidLabelConfig, NotEnoughExamples, StoreUnavailable."""
        self._save_project(event.project)
        return self._request_training(event.project.key)

    def train(self, asked: wire.TrainRequest) -> str:
        """Store the annotations that a request for a training brings; returns the job.

        Raises InvalidRequest, InvalidLabelConfig, NotEnoughExamples, StoreUnavailable.
        """
        if asked.project is None:
            raise InvalidRequest('project is missing or null; expected "<id>.<created timestamp>" or an id')
        schema = self._schema(asked.label_config)
        self._store(annotations.project_of_ref(asked.project, schema), schema, asked.items)
        return self._request_training(asked.project.key)

    def set_up(self, asked: wire.SetupRequest) -> None:
        """Keep what only /setup says of a project. A store that is slow or away is not waited for."""
        if asked.project is not None:
            wait([self._background.setups.submit(self._keep_setup, asked, asked.project)], _SETUP_WAIT_S)

    def predict_ahead(self, event: wire.TasksCreated) -> None:
        """Predict new tasks into the cache, in the background."""
        self._background.predictions.submit(self._predict_ahead, event)

    def _schema(self, label_config: str) -> LabelSchema:
        return self._models.of(label_config).schema

    def _save_project(self, project: wire.ProjectPayload) -> None:
        self._examples.save_project(annotations.project_of(project, self._schema(project.label_config)))

    def _store(self, project: Project, schema: LabelSchema, items: Sequence[wire.AnnotatedTask]) -> int:
        for item in items:
            _check_date(item.annotation)
        found = [annotations.annotation_of(item, schema) for item in items]
        self._examples.save_project(project)
        return self._examples.put(project.key, found)

    def _changed(self, project: str, count: int) -> Changed:
        try:
            return Changed(count, self._training.request_if_due(project, self._examples))
        except StoreUnavailable as error:
            # the event itself is stored; the next annotation finds the training due
            log.warning("project %s: cannot tell whether a training is due: %s", project, error)
            return Changed(count, None)

    def _request_training(self, project: str) -> str:
        num_examples = len(self._examples.snapshot(project).examples)
        if not self._syncs:
            require_examples(project, num_examples)
        return self._training.request(project)

    def _keep_setup(self, asked: wire.SetupRequest, ref: wire.ProjectRef) -> None:
        """Writes only what is new, since /setup comes before every prediction."""
        examples = self._examples
        try:
            project = annotations.project_of_ref(ref, self._schema(asked.label_config))
            known = examples.project(ref.key)
            if known is None or (known.config_digest, known.controls) != (project.config_digest, project.controls):
                examples.save_project(project)
            params = _known_params(asked.extra_params)
            if params is not None and params != examples.params(ref.key):
                examples.save_params(ref.key, params)
        except BackendError as error:  # predictions go on without it, and the next /setup brings it again
            log.warning("what /setup says of project %s is not stored: %s", ref.key, error)
        except Exception:  # thread boundary
            log.exception("what /setup says of project %s is not stored", ref.key)

    def _predict_ahead(self, event: wire.TasksCreated) -> None:
        project = event.project.key
        try:
            model = self._models.of(event.project.label_config)
            self._keep_texts(event, model.schema)
            model.prefetch(event.tasks, project)
        except BackendError as error:  # no caller waits; a later request for these tasks reports the error
            log.warning("new tasks of project %s are not predicted ahead: %s", project, error)
        except Exception:  # thread boundary
            log.exception("new tasks of project %s are not predicted ahead", project)

    def _keep_texts(self, event: wire.TasksCreated, schema: LabelSchema) -> None:
        """Unlabelled texts keep a training from forgetting: it holds on to what the base model is sure of in them."""
        tasks = {task.id: task for task in event.tasks[:MAX_UNLABELLED_TASKS] if task.id is not None}
        texts = {task_id: annotations.texts_of(task, schema) for task_id, task in tasks.items()}
        try:
            self._examples.note_texts(event.project.key, texts)
        except StoreUnavailable as error:
            log.warning("the texts of new tasks of project %s are not stored: %s", event.project.key, error)


def _check_date(annotation: wire.AnnotationPayload) -> None:
    """Of two saves the later one counts, so one dated in the future would keep all later ones out."""
    ahead_s = annotation.updated_at_us / 1_000_000 - time.time()
    if ahead_s > _MOST_AHEAD_S:
        raise InvalidRequest(
            f"annotation {annotation.id} is dated {ahead_s / 86_400:.1f} days after this machine's clock; at most "
            f"{_MOST_AHEAD_S / 86_400:.0f} is taken, because later saves would be ignored"
        )


def _known_params(params: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Only what we read is stored: people put credentials for other backends there."""
    return None if params is None else {name: params[name] for name in PARAMS if name in params}
