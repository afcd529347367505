"""The HTTP endpoints. Each parses its JSON, calls one thing, and renders; errors become JSON in one place."""

import hmac
import logging
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import wait as wait_for_futures
from dataclasses import asdict
from functools import lru_cache
from typing import Any

from flask import Blueprint, Response, current_app, g, jsonify, request
from flask.typing import ResponseReturnValue
from werkzeug.exceptions import HTTPException

from backend import management as manage
from backend.errors import BackendError, InvalidRequest, StoreUnavailable, Unauthorized
from backend.labelstudio import annotations, schema, wire
from backend.labelstudio.model import GNERModel
from backend.labelstudio.schema import LabelSchema
from backend.learning.annotations import Project
from backend.learning.example_store import MAX_UNLABELLED_TASKS, ExampleStore
from backend.learning.examples import require_examples
from backend.learning.jobs import TrainingQueue
from backend.learning.registry import Registry
from backend.management import Management
from backend.metrics import Metrics
from backend.serving.batcher import Batcher, State
from backend.serving.cache import PredictionCache
from backend.serving.predictor import Predictor
from backend.serving.versions import ServedVersions

log = logging.getLogger(__name__)

# Label configs whose parsed form is kept: projects in use at the same time.
_KEPT_CONFIGS = 256
# /setup stands before every prediction: a store that hangs must not hold it up.
_NOTING_S = 0.5
# Holds no secret, and container platforms ask it without credentials.
_ALWAYS_OPEN = frozenset({"backend.health"})


def create_routes(
    *,
    predictor: Predictor,
    batcher: Batcher,
    cache: PredictionCache,
    metrics: Metrics,
    device: str,
    auth: tuple[str, str] | None,
    deadline_s: float,
    served: ServedVersions,
    registry: Registry,
    examples: ExampleStore,
    training: TrainingQueue,
    syncs: bool = False,
) -> Blueprint:
    """All endpoints over the running services. `auth` are user and password that callers must give, if any.

    `syncs`: a training first gets from Label Studio what is missing here, so how much is here says nothing.
    """
    routes = Blueprint("backend", __name__)
    management = Management(examples, registry, cache)
    # TASKS_CREATED is answered at once, and its tasks predicted in the background
    background = ThreadPoolExecutor(max_workers=1, thread_name_prefix="prefetch")
    notes = ThreadPoolExecutor(max_workers=2, thread_name_prefix="notes")

    @lru_cache(maxsize=_KEPT_CONFIGS)
    def model_of(label_config: str) -> GNERModel:
        return GNERModel(label_config=label_config, predictor=predictor, served_versions=served)

    @routes.before_request
    def start() -> None:
        g.started_s = time.perf_counter()
        if auth is not None and request.endpoint not in _ALWAYS_OPEN and not _authorised(auth):
            raise Unauthorized("this backend asks for basic auth: user and password are missing or wrong")

    @routes.after_request
    def count(response: Response) -> Response:
        endpoint = str(request.endpoint).removeprefix("backend.")
        metrics.requests.labels(endpoint, response.status_code).inc()
        metrics.request_seconds.labels(endpoint).observe(time.perf_counter() - g.started_s)
        return response

    @routes.get("/health")
    def health() -> ResponseReturnValue:
        state = batcher.state
        answer = {
            "status": "DOWN" if state is State.FAILED else "UP",
            "state": state.value,
            "model_class": GNERModel.__name__,
            "model_version": served.base_version,
            "device": device,
            "cache": cache.state,
        }
        if batcher.failure is not None:
            answer["reason"] = batcher.failure
        return answer, 503 if state is State.FAILED else 200

    @routes.get("/")
    def index() -> ResponseReturnValue:
        endpoints = sorted(rule.rule for rule in current_app.url_map.iter_rules() if rule.endpoint != "static")
        return {"name": "gner-backend", "model_version": served.base_version, "endpoints": endpoints}

    @routes.get("/metrics")
    def prometheus() -> ResponseReturnValue:
        return Response(metrics.render(), mimetype="text/plain; version=0.0.4; charset=utf-8")

    @routes.post("/setup")
    def setup() -> ResponseReturnValue:
        asked = wire.parse_setup(_json())
        labels = model_of(asked.label_config).schema.label_values
        project = None
        if asked.project is not None:
            project = asked.project.key
            wait_for_futures([notes.submit(_note_setup, asked, asked.project)], _NOTING_S)
        return {"model_version": served.of(project).version, "labels": list(labels), "state": batcher.state.value}

    def _note_setup(asked: wire.SetupRequest, ref: wire.ProjectRef) -> None:
        """Keep what only /setup tells; written only if it is new, for /setup comes before every prediction."""
        try:
            project, known = annotations.project_of_ref(ref, asked.label_config), examples.project(ref.key)
            if known is None or (known.config_digest, known.controls) != (project.config_digest, project.controls):
                examples.save_project(project)
            if asked.extra_params is not None and asked.extra_params != examples.params(ref.key):
                examples.save_params(ref.key, asked.extra_params)
        except BackendError as error:  # predictions go on without it, and it is told again before the next one
            log.warning("what /setup says of project %s is not stored: %s", ref.key, error)
        except Exception:  # thread boundary
            log.exception("what /setup says of project %s is not stored", ref.key)

    @routes.post("/predict")
    def predict() -> ResponseReturnValue:
        asked = wire.parse_predict(_json())
        project = None if asked.project is None else asked.project.key
        predictions = model_of(asked.label_config).predict_tasks(asked.tasks, asked.context, deadline_s, project)
        late = predictions.count(None)
        if late:
            log.warning("%d of %d tasks are not done in time; they go on in the background", late, len(predictions))
        return wire.predict_response(predictions)

    @routes.post("/webhook")
    def webhook() -> ResponseReturnValue:
        event = wire.parse_webhook(_json())
        match event:
            case wire.AnnotationsSaved():
                changed = _store(annotations.project_of(event.project), event.project.label_config, event.items)
                return _stored(event.action, event.project.key, changed)
            case wire.AnnotationsDeleted():
                changed = examples.delete_annotations(event.project.key, event.annotation_ids)
                return _stored(event.action, event.project.key, changed)
            case wire.TasksDeleted():
                return _stored(
                    event.action, event.project.key, examples.delete_tasks(event.project.key, event.task_ids)
                )
            case wire.TasksCreated():
                background.submit(_prefetch, event)
                return {"action": event.action, "status": "queued"}, 202
            case wire.ProjectUpdated():
                examples.save_project(annotations.project_of(event.project))
                remapping = asdict(examples.snapshot(event.project.key).remapping)
                log.info("project %s: its label config makes of the examples: %s", event.project.key, remapping)
                return {"action": event.action, "status": "stored", "examples": remapping}
            case wire.TrainingStarted():
                examples.save_project(annotations.project_of(event.project))
                return {"action": event.action, "status": "queued", "job": _request(event.project.key)}, 201
            case wire.Ignored():
                return {"action": event.action, "status": "ignored"}

    def _store(project: Project, label_config: str, items: Sequence[wire.AnnotatedTask]) -> int:
        """Durable when it returns."""
        found = [annotations.annotation_of(item, annotations.schema_of(label_config)) for item in items]
        examples.save_project(project)
        return examples.put(project.key, found)

    def _stored(action: str, project: str, changed: int) -> ResponseReturnValue:
        answer: dict[str, Any] = {"action": action, "status": "stored", "changed": changed}
        try:
            job = training.request_if_due(project, examples)
        except StoreUnavailable as error:
            # what was sent is stored, which is what the answer tells; the next annotation finds the training due
            log.warning("project %s: whether a training is due is not known: %s", project, error)
            job = None
        return answer if job is None else {**answer, "job": job}

    def _request(project: str) -> str:
        """Raises NotEnoughExamples where it is known before."""
        num_examples = len(examples.snapshot(project).examples)
        if not syncs:
            require_examples(project, num_examples)
        return training.request(project)

    def _prefetch(event: wire.TasksCreated) -> None:
        project = event.project.key
        try:
            model = model_of(event.project.label_config)
            _note_texts(event, model.schema)
            model.prefetch(event.tasks, project)
        except BackendError as error:  # thread boundary: nobody waits for this; whoever asks later is told
            log.warning("new tasks of project %s are not predicted ahead: %s", project, error)
        except Exception:
            log.exception("new tasks of project %s are not predicted ahead", project)

    def _note_texts(event: wire.TasksCreated, labels: LabelSchema) -> None:
        """What the base model is sure of in texts that nobody has labelled keeps a training from forgetting it."""
        tasks = {task.id: task for task in event.tasks[:MAX_UNLABELLED_TASKS] if task.id is not None}
        try:
            examples.note_texts(
                event.project.key, {task_id: annotations.texts_of(task, labels) for task_id, task in tasks.items()}
            )
        except StoreUnavailable as error:
            log.warning("new tasks of project %s are not noted: %s", event.project.key, error)

    # --- training

    @routes.post("/train")
    def train() -> ResponseReturnValue:
        asked = wire.parse_train(_json())
        if asked.project is None:
            raise InvalidRequest('project is missing or null; expected "<id>.<created timestamp>" or an id')
        _store(annotations.project_of_ref(asked.project, asked.label_config), asked.label_config, asked.items)
        return {"status": "queued", "job": _request(asked.project.key)}, 201

    @routes.route("/job_status", methods=["GET", "POST"])
    def job_status() -> ResponseReturnValue:
        body = {"job": request.args.get("job")} if request.method == "GET" else _json()
        status = training.status(wire.parse_job_status(body).job)
        answer: dict[str, Any] = {
            "job": status.job,
            "project": status.project,
            "job_status": status.state,
            "progress": {} if status.progress is None else status.progress.to_json(),
        }
        if status.result is not None:
            answer["result"] = status.result
        if status.error is not None:
            answer["error"] = status.error
        return answer

    # --- versions

    @routes.route("/versions", methods=["GET", "POST"])
    def versions() -> ResponseReturnValue:
        named = request.args.get("project")
        if named is None:
            return {"versions": management.version_names()}
        project = management.project(named)
        problem = served.problems().get(project)
        return {
            "project": project,
            "base": served.base_version,
            "current": management.current(project),
            "served": served.of(project).version,
            "versions": [asdict(info) for info in management.versions(project)],
            "problems": [] if problem is None else [problem],
        }

    @routes.post("/promote")
    def promote() -> ResponseReturnValue:
        body = _json()
        named, version = manage.parse_project(body), manage.parse_version(body)
        current = management.promote(management.project(named), version)
        served.wake()
        return {"current": current}

    @routes.post("/rollback")
    def rollback() -> ResponseReturnValue:
        current = management.rollback(management.project(manage.parse_project(_json())))
        served.wake()
        return {"current": current}

    @routes.post("/forget")
    def forget() -> ResponseReturnValue:
        body = _json()
        wanted = manage.parse_wanted(body)
        named = None if body.get("project") is None else manage.parse_project(body)
        removed = management.forget(wanted, None if named is None else management.project(named))
        retrain = bool(body.get("retrain"))
        return {
            "forgotten": [
                # what is current may have seen it: the next version must not be trained from that
                {**each.to_json(), **({"job": training.request(each.project, from_base=True)} if retrain else {})}
                for each in removed
            ]
        }

    # --- the rest of Label Studio's protocol

    @routes.post("/validate")
    def validate() -> ResponseReturnValue:
        parsed = schema.parse(wire.parse_validate(_json()))
        return {"status": "ok", "labels": list(parsed.label_values)}

    @routes.post("/duplicate_model")
    def duplicate_model() -> ResponseReturnValue:
        wire.parse_duplicate_model(_json())
        # a copy begins with the base version, and learns from its own annotations
        return {"status": "ok"}

    @routes.post("/delete")
    def delete() -> ResponseReturnValue:
        wire.parse_delete(_json())
        return {"status": "ok"}

    @routes.app_errorhandler(BackendError)
    def expected(error: BackendError) -> ResponseReturnValue:
        # Label Studio shows only the status line: the log is where a user finds the reason
        log.warning("%s %s: %s", request.method, request.path, error)
        response = jsonify(error=error.name, detail=str(error))
        if isinstance(error, Unauthorized):
            response.headers["WWW-Authenticate"] = 'Basic realm="gner-backend"'
        return response, error.status

    @routes.app_errorhandler(HTTPException)
    def of_http(error: HTTPException) -> ResponseReturnValue:
        detail = f"{request.method} {request.path}: {error.description}"
        return jsonify(error=error.name.replace(" ", ""), detail=detail), error.code or 500

    @routes.app_errorhandler(Exception)
    def unexpected(error: Exception) -> ResponseReturnValue:
        log.exception("%s %s failed", request.method, request.path)
        return jsonify(error="InternalError", detail=f"{type(error).__name__}; the backend's log has the details"), 500

    return routes


def _json() -> Any:
    """The request's body. Raises InvalidRequest if it is no JSON."""
    body = request.get_json(force=True, silent=True)
    if body is None:
        raise InvalidRequest(f"the body of {request.path} is no JSON: it begins with {request.get_data()[:40]!r}")
    return body


def _authorised(auth: tuple[str, str]) -> bool:
    given = request.authorization
    if given is None or given.type != "basic":
        return False
    pairs = zip((given.username or "", given.password or ""), auth, strict=True)
    # both are compared in full, so that the time taken tells nothing
    matches = [hmac.compare_digest(a.encode(), b.encode()) for a, b in pairs]
    return all(matches)
