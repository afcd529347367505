"""What happens around every request: its body is read, and it is counted."""

import time
from typing import Any

from flask import Blueprint, Response, g, request

from backend.errors import WrongContentType
from backend.labelstudio.wire.body import parse_json
from backend.metrics import Metrics


def json_body() -> Any:
    """The body of the current request. Raises WrongContentType and InvalidRequest.

    Only `application/json` is read. A page of another site cannot send that without asking first.
    """
    if not request.is_json:
        raise WrongContentType(f"the body is {request.mimetype or 'of no type'!r:.80}; expected application/json")
    return parse_json(request.get_data())


def count_requests(routes: Blueprint, metrics: Metrics) -> None:
    """Count and time every request to an endpoint of `routes`."""

    @routes.before_request
    def start() -> None:
        g.started_s = time.perf_counter()

    @routes.after_request
    def count(response: Response) -> Response:
        endpoint = endpoint_name()
        metrics.requests.labels(endpoint, response.status_code).inc()
        metrics.request_seconds.labels(endpoint).observe(time.perf_counter() - g.started_s)
        return response


def endpoint_name() -> str:
    """The current endpoint's own name: `predict` of `backend.predictions.predict`."""
    return str(request.endpoint).rpartition(".")[2]
