"""Errors -> JSON: `error` is a stable name, `detail` a sentence for people."""

import logging
import re

from flask import Blueprint, jsonify, request
from flask.typing import ResponseReturnValue
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge

from backend.errors import BackendError, Overloaded, TooManyGuesses, Unauthorized

log = logging.getLogger(__name__)

_SHOWN_CHARS = 200
_SECRET_PATH = re.compile(r"/webhook/.*", re.DOTALL)


def answer_errors(routes: Blueprint) -> None:
    """Answer every error of the application as JSON, also for paths that do not exist."""
    routes.app_errorhandler(BackendError)(_expected)
    routes.app_errorhandler(HTTPException)(_http)
    routes.app_errorhandler(Exception)(_unexpected)


def _expected(error: BackendError) -> ResponseReturnValue:
    # Label Studio shows only the status line: users find the reason in the log
    log.warning("%s %s: %s", request.method, _path(), error)
    response = jsonify(error=error.name, detail=str(error))
    if isinstance(error, Unauthorized):
        response.headers["WWW-Authenticate"] = 'Basic realm="gner-backend"'
    if isinstance(error, TooManyGuesses | Overloaded):
        response.headers["Retry-After"] = str(error.retry_after_s)
    return response, error.status


def _http(error: HTTPException) -> ResponseReturnValue:
    detail = f"{request.method} {_path()}: {error.description}"
    if isinstance(error, RequestEntityTooLarge):
        detail = (
            f"the body of {_path()} has {request.content_length or 'too many'} bytes; at most "
            f"{request.max_content_length} are read (GNER_MAX_BODY_MB)"
        )
    return jsonify(error=error.name.replace(" ", ""), detail=detail), error.code or 500


def _unexpected(error: Exception) -> ResponseReturnValue:
    log.exception("%s %s failed", request.method, _path())
    return jsonify(error="InternalError", detail=f"{type(error).__name__}; the backend's log has the details"), 500


def _path() -> str:
    """The path for people and logs: without the secret that it may hold, and without line breaks of the caller's."""
    if request.url_rule is not None:
        return request.url_rule.rule
    path = _SECRET_PATH.sub("/webhook/...", request.path)
    return repr(path)[1:-1][:_SHOWN_CHARS]
