"""A backend in this process: the real application over a tiny checkpoint and a real Valkey."""

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from flask.testing import FlaskClient

from backend.app import Services, build, create_app
from backend.engine import checkpoint as checkpoints
from backend.engine.adapters import Adapters, AdapterSettings
from backend.engine.checkpoint import LoadedModel
from backend.learning.registry import PUBLISHED, Registry, VersionInfo, version_name
from backend.settings import Settings
from tests.support import tiny

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
    """Services with their threads; the model is ready. MODEL_DIR is a folder of its own, unless it is given."""
    with tempfile.TemporaryDirectory(prefix="gner-test-") as folder:
        services = build(Settings(**{"model_dir": Path(folder), **settings}))
        services.start()
        try:
            services.batcher.codec(TIMEOUT_S)
            yield services
        finally:
            services.stop()


def publish_random(
    registry: Registry, checkpoint: Path, project: str, seed: int, *, parent: str = "", promote: bool = True
) -> VersionInfo:
    """A version whose adapter was not trained but drawn: it says other things than its base, and than other seeds."""
    base = registry.base_version
    described = VersionInfo(
        version=version_name("tiny", project, str(seed)),
        project=project,
        base=base,
        parent=parent or base,
        created_at=f"2026-11-22T10:00:{seed:02}+00:00",
        status=PUBLISHED,
        reason="it was drawn",
    )
    with registry.new_folder(project) as folder:
        draw_adapter(checkpoint, seed, folder)
        registry.publish(folder, described, promote=promote)
    return registry.info(project, described.version)


def draw_adapter(checkpoint: Path, seed: int, folder: Path) -> None:
    adapters = Adapters(_loaded(checkpoint).family)
    torch.manual_seed(seed)
    parameters = adapters.new("drawn", AdapterSettings(rank=4, alpha=8))
    with torch.no_grad():
        for parameter in parameters:
            parameter.normal_(std=0.3)
    adapters.save("drawn", folder)
    adapters.drop("drawn")


def _loaded(checkpoint: Path) -> LoadedModel:
    return checkpoints.load(checkpoints.resolve(str(checkpoint)), torch.device("cpu"), torch.float32)


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
