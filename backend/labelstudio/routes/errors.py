"""Errors -> JSON: `error` is a stable name, `detail` a sentence for people."""

import logging

from flask import Blueprint, jsonify, request
from flask.typing import ResponseReturnValue
from werkzeug.exceptions import HTTPException

from backend.errors import BackendError, Unauthorized

log = logging.getLogger(__name__)


def answer_errors(routes: Blueprint) -> None:
    """Answer every error of the application as JSON, also for paths that do not exist."""
    routes.app_errorhandler(BackendError)(_expected)
    routes.app_errorhandler(HTTPException)(_http)
    routes.app_errorhandler(Exception)(_unexpected)


def _expected(error: BackendError) -> ResponseReturnValue:
    # Label Studio shows only the status line: users find the reason in the log
    log.warning("%s %s: %s", request.method, request.path, error)
    response = jsonify(error=error.name, detail=str(error))
    if isinstance(error, Unauthorized):
        response.headers["WWW-Authenticate"] = 'Basic realm="gner-backend"'
    return response, error.status


def _http(error: HTTPException) -> ResponseReturnValue:
    detail = f"{request.method} {request.path}: {error.description}"
    return jsonify(error=error.name.replace(" ", ""), detail=detail), error.code or 500


def _unexpected(error: Exception) -> ResponseReturnValue:
    log.exception("%s %s failed", request.method, request.path)
    return jsonify(error="InternalError", detail=f"{type(error).__name__}; the backend's log has the details"), 500
