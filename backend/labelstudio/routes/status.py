"""/health, / and /metrics."""

import json
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from flask import Blueprint, Response, current_app
from flask.typing import ResponseReturnValue

from backend.errors import StoreUnavailable
from backend.labelstudio.model import GNERModel
from backend.learning.example_store import ExampleStore
from backend.metrics import Metrics
from backend.serving.batcher import Batcher, State
from backend.serving.cache import PredictionCache
from backend.serving.predictor import Predictor

_OPENAPI = Path(__file__).parent.parent / "openapi.json"


def status_routes(
    batcher: Batcher,
    predictor: Predictor,
    cache: PredictionCache,
    examples: ExampleStore,
    metrics: Metrics,
    base_version: str,
    device: str,
) -> Blueprint:
    """How the backend is doing.

    /health is for Label Studio and for those who restart containers: it is fine as long as the model may still answer.
    /ready is for load balancers and monitoring: it is fine when everything works.
    """
    routes = Blueprint("status", __name__)
    description = _description()

    @routes.get("/health")
    def health() -> ResponseReturnValue:
        answer = {**_of_model(batcher), "model_version": base_version, "device": device, "cache": cache.state}
        return answer, 503 if batcher.state is State.FAILED else 200

    @routes.get("/ready")
    def ready() -> ResponseReturnValue:
        problems = [*_problems(batcher, predictor, examples)]
        return {"ready": not problems, "problems": problems}, 503 if problems else 200

    @routes.get("/")
    def index() -> ResponseReturnValue:
        endpoints = sorted(rule.rule for rule in current_app.url_map.iter_rules() if rule.endpoint != "static")
        return {"name": "gner-backend", "model_version": base_version, "endpoints": endpoints}

    @routes.get("/metrics")
    def prometheus() -> ResponseReturnValue:
        return Response(metrics.render(), content_type="text/plain; version=0.0.4; charset=utf-8")

    @routes.get("/openapi.json")
    def openapi() -> ResponseReturnValue:
        return description

    return routes


def _description() -> dict[str, Any]:
    """The OpenAPI description of all endpoints."""
    described: dict[str, Any] = json.loads(_OPENAPI.read_text(encoding="utf-8"))
    described["info"]["version"] = version("gner-label-studio-backend")
    return described


def _of_model(batcher: Batcher) -> dict[str, str]:
    state = batcher.state
    reason = {} if batcher.failure is None else {"reason": batcher.failure}
    return {
        "status": "DOWN" if state is State.FAILED else "UP",
        "state": state.value,
        "model_class": GNERModel.__name__,
        **reason,
    }


def _problems(batcher: Batcher, predictor: Predictor, examples: ExampleStore) -> Iterator[str]:
    if batcher.state is not State.READY:
        yield f"the model is {batcher.state.value}" + (f": {batcher.failure}" if batcher.failure else "")
    if not batcher.is_alive:
        yield "the model's thread has ended"
    if not predictor.is_alive:
        yield "the thread that finishes predictions has ended"
    try:
        examples.check()
    except StoreUnavailable as error:
        yield f"annotations cannot be stored: {error}"
