"""A backend in this process: the real application over a tiny checkpoint and a real Valkey."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flask.testing import FlaskClient

from backend.app import Services, build, create_app
from backend.settings import Settings

from ..engine import tiny

TIMEOUT_S = 60.0
CONFIG = (
    '<View><Labels name="label" toName="text"><Label value="Person"/><Label value="City"/></Labels>'
    '<Text name="text" value="$text"/></View>'
)
OTHER_CONFIG = (
    '<View><Labels name="kind" toName="body"><Label value="Work"/><Label value="work of art"/></Labels>'
    '<Text name="body" value="$body"/></View>'
)


def save_checkpoint(folder: Path) -> Path:
    """A tiny checkpoint with a short prompt, of a seed that finds spans in most texts."""
    tiny.save("bert", folder, seed=3)
    (folder / "gner.json").write_text(
        json.dumps({"name": "tiny", "template": "{labels} : {sentence}"}), encoding="utf-8"
    )
    return folder


@contextmanager
def running(**settings: Any) -> Iterator[Services]:
    """Services with their threads; the model is ready."""
    services = build(Settings(**settings))
    services.start()
    try:
        services.batcher.codec(TIMEOUT_S)
        yield services
    finally:
        services.stop()


def client_of(services: Services) -> FlaskClient:
    return create_app(services).test_client()


def count(services: Services, name: str, **labels: str) -> float:
    """A counter's value."""
    return services.metrics.registry.get_sample_value(name, labels) or 0.0


def tasks_of(*texts: Any, key: str = "text") -> list[dict[str, Any]]:
    return [{"id": index + 1, "data": {key: text}} for index, text in enumerate(texts)]


def predict_body(tasks: list[dict[str, Any]], config: str = CONFIG, context: Any = None) -> dict[str, Any]:
    return {
        "tasks": tasks,
        "project": "1.1795333437",
        "label_config": config,
        "params": {"login": None, "password": None, "context": context},
    }
