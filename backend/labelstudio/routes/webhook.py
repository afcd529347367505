"""/webhook: what Label Studio reports about a project."""

from dataclasses import asdict
from typing import Any

from flask import Blueprint
from flask.typing import ResponseReturnValue

from backend.labelstudio import wire
from backend.labelstudio.events import Changed, Events
from backend.labelstudio.routes.access import json_body
from backend.metrics import Metrics


def webhook_routes(events: Events, metrics: Metrics) -> Blueprint:
    """One endpoint for all events."""
    routes = Blueprint("webhooks", __name__)

    @routes.post("/webhook")
    @routes.post("/webhook/<secret>")
    def webhook(secret: str | None = None) -> ResponseReturnValue:  # noqa: ARG001  # has been checked: see login.py
        return _answer(wire.parse_webhook(json_body()), events, metrics)

    return routes


def _answer(event: wire.WebhookEvent, events: Events, metrics: Metrics) -> ResponseReturnValue:
    match event:
        case wire.AnnotationsSaved():
            return _saved(event, events.save_annotations(event), metrics)
        case wire.AnnotationsDeleted():
            return _stored(event.action, events.delete_annotations(event))
        case wire.TasksDeleted():
            return _stored(event.action, events.delete_tasks(event))
        case wire.TasksCreated():
            events.predict_ahead(event)
            return {"action": event.action, "status": "queued"}, 202
        case wire.ProjectUpdated():
            remapping = events.update_project(event)
            return {"action": event.action, "status": "stored", "examples": asdict(remapping)}
        case wire.TrainingStarted():
            return {"action": event.action, "status": "queued", "job": events.start_training(event)}, 201
        case wire.Ignored():
            return {"action": event.action, "status": "ignored"}


def _saved(event: wire.AnnotationsSaved, changed: Changed, metrics: Metrics) -> ResponseReturnValue:
    """An annotation that is as old as the stored one, or older, or deleted, is ignored: events come twice and late."""
    ignored = len(event.items) - changed.annotations
    metrics.ignored_annotations.inc(ignored)
    answer = _stored(event.action, changed)
    return answer if changed.annotations else {**answer, "status": "ignored"}


def _stored(action: str, changed: Changed) -> dict[str, Any]:
    answer = {"action": action, "status": "stored", "changed": changed.annotations}
    return answer if changed.job is None else {**answer, "job": changed.job}
