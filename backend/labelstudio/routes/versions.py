"""/versions, /promote, /rollback and /forget: what people ask for by hand."""

from dataclasses import asdict
from typing import Any

from flask import Blueprint, request
from flask.typing import ResponseReturnValue

from backend.labelstudio.routes.access import json_body
from backend.labelstudio.wire import management as wire
from backend.learning.jobs import TrainingQueue
from backend.management import Management, Removed
from backend.serving.versions import ServedVersions


def version_routes(management: Management, served: ServedVersions, training: TrainingQueue) -> Blueprint:
    """Trained versions, and forgetting."""
    routes = Blueprint("versions", __name__)

    @routes.route("/versions", methods=["GET", "POST"])
    def versions() -> ResponseReturnValue:
        named = request.args.get("project")
        if named is None:
            return {"versions": management.version_names()}
        return _versions(management.project(named), management, served)

    @routes.post("/promote")
    def promote() -> ResponseReturnValue:
        body = json_body()
        named, version = wire.parse_project(body), wire.parse_version(body)
        current = management.promote(management.project(named), version)
        served.wake()
        return {"current": current}

    @routes.post("/rollback")
    def rollback() -> ResponseReturnValue:
        current = management.rollback(management.project(wire.parse_project(json_body())))
        served.wake()
        return {"current": current}

    @routes.post("/forget")
    def forget() -> ResponseReturnValue:
        return _forget(json_body(), management, training)

    return routes


def _versions(project: str, management: Management, served: ServedVersions) -> dict[str, Any]:
    problem = served.problems().get(project)
    return {
        "project": project,
        "base": served.base_version,
        "current": management.current(project),
        "served": served.of(project).version,
        "versions": [asdict(info) for info in management.versions(project)],
        "problems": [] if problem is None else [problem],
    }


def _forget(body: Any, management: Management, training: TrainingQueue) -> dict[str, Any]:
    wanted = wire.parse_wanted(body)
    project = None if body.get("project") is None else management.project(wire.parse_project(body))
    removed = management.forget(wanted, project)
    return {"forgotten": [_removed(each, training if body.get("retrain") else None) for each in removed]}


def _removed(removed: Removed, retrain: TrainingQueue | None) -> dict[str, Any]:
    if retrain is None:
        return asdict(removed)
    # the current version may have seen it: the next one must not be trained from that
    return {**asdict(removed), "job": retrain.request(removed.project, from_base=True)}
