"""The HTTP endpoints. Each parses its JSON, calls one thing, and renders; errors become JSON in one place."""

import hmac
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

from flask import Blueprint, Response, current_app, g, jsonify, request
from flask.typing import ResponseReturnValue
from werkzeug.exceptions import HTTPException

from backend.errors import BackendError, Gone, InvalidRequest, NotImplementedYet, Unauthorized
from backend.labelstudio import schema, wire
from backend.labelstudio.model import GNERModel
from backend.metrics import Metrics
from backend.serving.batcher import Batcher, State
from backend.serving.cache import PredictionCache
from backend.serving.predictor import Predictor

log = logging.getLogger(__name__)

# Label configs whose parsed form is kept: projects in use at the same time.
_KEPT_CONFIGS = 256
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
) -> Blueprint:
    """All endpoints over the running services. `auth` are user and password that callers must give, if any."""
    routes = Blueprint("backend", __name__)
    # TASKS_CREATED is answered at once, and its tasks predicted in the background
    background = ThreadPoolExecutor(max_workers=1, thread_name_prefix="prefetch")

    @lru_cache(maxsize=_KEPT_CONFIGS)
    def model_of(label_config: str) -> GNERModel:
        return GNERModel(label_config=label_config, predictor=predictor)

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
            "model_version": predictor.version,
            "device": device,
            "cache": cache.state,
        }
        if batcher.failure is not None:
            answer["reason"] = batcher.failure
        return answer, 503 if state is State.FAILED else 200

    @routes.get("/")
    def index() -> ResponseReturnValue:
        endpoints = sorted(rule.rule for rule in current_app.url_map.iter_rules() if rule.endpoint != "static")
        return {"name": "gner-backend", "model_version": predictor.version, "endpoints": endpoints}

    @routes.get("/metrics")
    def prometheus() -> ResponseReturnValue:
        return Response(metrics.render(), mimetype="text/plain; version=0.0.4; charset=utf-8")

    @routes.post("/setup")
    def setup() -> ResponseReturnValue:
        asked = wire.parse_setup(_json())
        labels = model_of(asked.label_config).schema.label_values
        return {"model_version": predictor.version, "labels": list(labels), "state": batcher.state.value}

    @routes.post("/predict")
    def predict() -> ResponseReturnValue:
        asked = wire.parse_predict(_json())
        predictions = model_of(asked.label_config).predict_tasks(asked.tasks, asked.context, deadline_s)
        late = predictions.count(None)
        if late:
            log.warning("%d of %d tasks are not done in time; they go on in the background", late, len(predictions))
        return wire.predict_response(predictions)

    @routes.post("/webhook")
    def webhook() -> ResponseReturnValue:
        event = wire.parse_webhook(_json())
        if isinstance(event, wire.TasksCreated):
            background.submit(_prefetch, event)
            return {"action": event.action, "status": "queued"}, 202
        if isinstance(event, wire.TrainingStarted):
            raise NotImplementedYet("training is not part of this version")
        return {"action": event.action, "status": "ignored"}

    def _prefetch(event: wire.TasksCreated) -> None:
        try:
            model_of(event.project.label_config).prefetch(event.tasks)
        except BackendError as error:  # thread boundary: nobody waits for this; whoever asks later is told
            log.warning("new tasks of project %d are not predicted ahead: %s", event.project.id, error)
        except Exception:
            log.exception("new tasks of project %d are not predicted ahead", event.project.id)

    @routes.post("/train")
    def train() -> ResponseReturnValue:
        wire.parse_train(_json())
        raise NotImplementedYet("training is not part of this version")

    @routes.post("/job_status")
    def job_status() -> ResponseReturnValue:
        raise Gone(f"job {wire.parse_job_status(_json()).job!r} is not known here")

    @routes.route("/versions", methods=["GET", "POST"])
    def versions() -> ResponseReturnValue:
        return {"versions": [predictor.version]}

    @routes.post("/validate")
    def validate() -> ResponseReturnValue:
        parsed = schema.parse(wire.parse_validate(_json()))
        return {"status": "ok", "labels": list(parsed.label_values)}

    @routes.post("/duplicate_model")
    def duplicate_model() -> ResponseReturnValue:
        wire.parse_duplicate_model(_json())
        # a project's predictions depend on its label config and the served version alone: nothing to copy
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


def _json() -> object:
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
