"""The rest of Label Studio's protocol."""

from dataclasses import asdict

from flask import Blueprint
from flask.typing import ResponseReturnValue

from backend.labelstudio import wire
from backend.labelstudio.model import Models
from backend.labelstudio.routes.access import json_body
from backend.management import Management


def protocol_routes(models: Models, management: Management) -> Blueprint:
    """What Label Studio's client for backends has, and its server does not call so far."""
    routes = Blueprint("protocol", __name__)

    @routes.post("/validate")
    def validate() -> ResponseReturnValue:
        schema = models.of(wire.parse_validate(json_body())).schema
        return {"status": "ok", "labels": list(schema.label_values)}

    @routes.post("/duplicate_model")
    def duplicate_model() -> ResponseReturnValue:
        wire.check_duplicate_model(json_body())
        # a copy begins with the base version, and learns from its own annotations
        return {"status": "ok"}

    @routes.post("/delete")
    def delete() -> ResponseReturnValue:
        removed = management.forget_project(wire.parse_delete(json_body()))
        return {"status": "ok", "deleted": asdict(removed)}

    return routes
