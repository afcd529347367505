"""What happens around every request: basic auth, and the request metrics."""

import hmac
import time
from typing import Any

from flask import Blueprint, Response, g, request

from backend.errors import InvalidRequest, Unauthorized
from backend.metrics import Metrics

# Holds no secret, and container platforms call it without credentials.
_ALWAYS_OPEN = frozenset({"health"})


def json_body() -> Any:
    """The body of the current request. Raises InvalidRequest if it is not JSON."""
    body = request.get_json(force=True, silent=True)
    if body is None:
        raise InvalidRequest(f"the body of {request.path} is not JSON: it begins with {request.get_data()[:40]!r}")
    return body


def count_requests(routes: Blueprint, metrics: Metrics) -> None:
    """Count and time every request to an endpoint of `routes`."""

    @routes.before_request
    def start() -> None:
        g.started_s = time.perf_counter()

    @routes.after_request
    def count(response: Response) -> Response:
        endpoint = _endpoint()
        metrics.requests.labels(endpoint, response.status_code).inc()
        metrics.request_seconds.labels(endpoint).observe(time.perf_counter() - g.started_s)
        return response


def require_login(routes: Blueprint, user: str, password: str) -> None:
    """Answer 401 to a request to `routes` without this user and password."""

    @routes.before_request
    def check() -> None:
        if _endpoint() not in _ALWAYS_OPEN and not _is_authorized(user, password):
            raise Unauthorized("this backend asks for basic auth: user and password are missing or wrong")


def _endpoint() -> str:
    """The current endpoint's own name: `predict` of `backend.predictions.predict`."""
    return str(request.endpoint).rpartition(".")[2]


def _is_authorized(user: str, password: str) -> bool:
    given = request.authorization
    if given is None or given.type != "basic":
        return False
    pairs = ((given.username or "", user), (given.password or "", password))
    # both are always compared, in constant time, so that the time taken reveals nothing
    matches = [hmac.compare_digest(a.encode(), b.encode()) for a, b in pairs]
    return all(matches)
