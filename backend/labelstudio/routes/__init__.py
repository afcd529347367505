"""The HTTP endpoints, one blueprint per subject. Each parses its JSON, calls one thing and renders the answer."""

from collections.abc import Collection, Iterable

from flask import Blueprint

from backend.labelstudio.routes import access, browsers, errors, login
from backend.labelstudio.routes.login import Credentials
from backend.metrics import Metrics


def create_routes(
    parts: Iterable[Blueprint], metrics: Metrics, credentials: Credentials, allowed_hosts: Collection[str] = ()
) -> Blueprint:
    """All endpoints under one roof: counted, guarded, and with errors answered as JSON.

    `allowed_hosts`: see `browsers.refuse_foreign_pages`.
    """
    routes = Blueprint("backend", __name__)
    access.count_requests(routes, metrics)
    browsers.refuse_foreign_pages(routes, allowed_hosts, has_login=credentials.login is not None)
    browsers.send_security_headers(routes)
    login.require_login(routes, credentials)
    errors.answer_errors(routes)
    for part in parts:
        routes.register_blueprint(part)
    return routes
