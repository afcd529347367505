"""/train and /job_status."""

from typing import Any

from flask import Blueprint, request
from flask.typing import ResponseReturnValue

from backend.labelstudio import wire
from backend.labelstudio.events import Events
from backend.labelstudio.routes.access import json_body
from backend.learning.jobs import JobStatus, TrainingQueue


def training_routes(events: Events, training: TrainingQueue) -> Blueprint:
    """Trainings on request, and what became of them."""
    routes = Blueprint("training", __name__)

    @routes.post("/train")
    def train() -> ResponseReturnValue:
        return {"status": "queued", "job": events.train(wire.parse_train(json_body()))}, 201

    @routes.route("/job_status", methods=["GET", "POST"])
    def job_status() -> ResponseReturnValue:
        body = {"job": request.args.get("job")} if request.method == "GET" else json_body()
        return _described(training.status(wire.parse_job_status(body)))

    return routes


def _described(status: JobStatus) -> dict[str, Any]:
    answer: dict[str, Any] = {
        "job": status.job,
        "project": status.project,
        "job_status": status.state,
        "progress": {} if status.progress is None else status.progress.to_json(),
    }
    if status.result is not None:
        answer["result"] = status.result
    if status.error is not None:
        answer["error"] = status.error
    return answer
