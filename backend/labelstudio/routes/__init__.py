"""The HTTP endpoints, one blueprint per subject. Each parses its JSON, calls one thing and renders the answer."""

from collections.abc import Iterable

from flask import Blueprint

from backend.labelstudio.routes import access, errors
from backend.metrics import Metrics


def create_routes(parts: Iterable[Blueprint], metrics: Metrics, auth: tuple[str, str] | None) -> Blueprint:
    """All endpoints under one roof: counted, and with errors answered as JSON.

    `auth`: the user and password that callers must give, if any.
    """
    routes = Blueprint("backend", __name__)
    access.count_requests(routes, metrics)
    if auth is not None:
        access.require_login(routes, *auth)
    errors.answer_errors(routes)
    for part in parts:
        routes.register_blueprint(part)
    return routes
