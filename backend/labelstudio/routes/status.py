"""/health, / and /metrics."""

from flask import Blueprint, Response, current_app
from flask.typing import ResponseReturnValue

from backend.labelstudio.model import GNERModel
from backend.metrics import Metrics
from backend.serving.batcher import Batcher, State
from backend.serving.cache import PredictionCache


def status_routes(
    batcher: Batcher, cache: PredictionCache, metrics: Metrics, base_version: str, device: str
) -> Blueprint:
    """How the backend is doing."""
    routes = Blueprint("status", __name__)

    @routes.get("/health")
    def health() -> ResponseReturnValue:
        answer = {**_of_model(batcher), "model_version": base_version, "device": device, "cache": cache.state}
        return answer, 503 if batcher.state is State.FAILED else 200

    @routes.get("/")
    def index() -> ResponseReturnValue:
        endpoints = sorted(rule.rule for rule in current_app.url_map.iter_rules() if rule.endpoint != "static")
        return {"name": "gner-backend", "model_version": base_version, "endpoints": endpoints}

    @routes.get("/metrics")
    def prometheus() -> ResponseReturnValue:
        return Response(metrics.render(), content_type="text/plain; version=0.0.4; charset=utf-8")

    return routes


def _of_model(batcher: Batcher) -> dict[str, str]:
    state = batcher.state
    reason = {} if batcher.failure is None else {"reason": batcher.failure}
    return {
        "status": "DOWN" if state is State.FAILED else "UP",
        "state": state.value,
        "model_class": GNERModel.__name__,
        **reason,
    }
