"""/setup and /predict: what Label Studio calls whenever it shows a task."""

import logging

from flask import Blueprint
from flask.typing import ResponseReturnValue

from backend.labelstudio import wire
from backend.labelstudio.events import Events
from backend.labelstudio.model import Models, priority_of
from backend.labelstudio.routes.access import json_body
from backend.serving.admission import Admission
from backend.serving.batcher import Batcher
from backend.serving.versions import ServedVersions

log = logging.getLogger(__name__)


def prediction_routes(
    models: Models,
    events: Events,
    batcher: Batcher,
    admission: Admission,
    served: ServedVersions,
    deadline_s: float,
) -> Blueprint:
    """`deadline_s`: after this time /predict answers with what is done."""
    routes = Blueprint("predictions", __name__)

    @routes.post("/setup")
    def setup() -> ResponseReturnValue:
        asked = wire.parse_setup(json_body())
        labels = models.of(asked.label_config).schema.label_values
        events.set_up(asked)
        project = None if asked.project is None else asked.project.key
        return {"model_version": served.of(project).version, "labels": list(labels), "state": batcher.state.value}

    @routes.post("/predict")
    def predict() -> ResponseReturnValue:
        asked = wire.parse_predict(json_body())
        project = None if asked.project is None else asked.project.key
        model = models.of(asked.label_config)
        with admission.of(priority_of(asked.tasks, asked.context)):
            predictions = model.predict_tasks(asked.tasks, asked.context, deadline_s, project)
        late = predictions.count(None)
        if late:
            log.warning("%d of %d tasks are not done in time; they continue in the background", late, len(predictions))
        return wire.predict_response(predictions)

    return routes
