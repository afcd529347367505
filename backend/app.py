"""The one place where long-lived objects are made."""

import logging
from collections.abc import Callable
from dataclasses import dataclass

from flask import Flask

from backend import store
from backend.engine import checkpoint as checkpoints
from backend.engine.checkpoint import Checkpoint
from backend.engine.codec import Codec
from backend.engine.decode import Decoder, ExactDecoder
from backend.engine.sequential import SequentialDecoder
from backend.labelstudio.routes import create_routes
from backend.metrics import Metrics
from backend.serving.batcher import Batcher, BatchLimits
from backend.serving.cache import CacheLimits, PredictionCache
from backend.serving.predictor import Predictor
from backend.settings import Settings

log = logging.getLogger(__name__)

# What suits a device: the exact decoder's window, and a batch. A CPU's time grows with every token, a GPU's with
# every pass.
_BY_DEVICE = {
    "cpu": (64, BatchLimits(tokens=6_000, rows=32)),
    "cuda": (1_024, BatchLimits(tokens=100_000, rows=256)),
}
_SECONDS_PER_DAY = 86_400


@dataclass(frozen=True, slots=True)
class Engine:
    """A loaded model, as the batcher needs it."""

    codec: Codec
    decoder: Decoder


@dataclass(frozen=True, slots=True)
class Services:
    """What the web process consists of."""

    settings: Settings
    checkpoint: Checkpoint
    device: str
    metrics: Metrics
    cache: PredictionCache
    batcher: Batcher
    predictor: Predictor

    def start(self) -> None:
        """Start the threads: in the process that serves, after its fork."""
        self.batcher.start()
        self.predictor.start()

    def stop(self) -> None:
        self.batcher.stop()
        self.predictor.stop()


def build(settings: Settings, on_failure: Callable[[BaseException], None] = lambda _: None) -> Services:
    """Wire everything; starts nothing. `on_failure` is called in the model's thread if the model cannot be loaded.

    Raises CheckpointError and InvalidSettings, each naming the value.
    """
    checkpoint = checkpoints.resolve(settings.model)
    device = checkpoints.pick_device(settings.device)
    window_tokens, limits = _BY_DEVICE[device.type]
    window_tokens = settings.draft_window or window_tokens
    limits = BatchLimits(settings.batch_tokens or limits.tokens, limits.rows)

    def load_engine() -> Engine:
        loaded = checkpoints.load(checkpoint, device, checkpoints.pick_dtype(settings.dtype, device))
        decoder: Decoder = (
            ExactDecoder(loaded.family, window_tokens)
            if settings.decoding == "exact"
            else SequentialDecoder(loaded.family)
        )
        decoder.decode([loaded.codec.encode(("person",), ["warm", "up"])])
        log.info("%s is ready on %s in %s", checkpoint.version, device, loaded.dtype)
        return Engine(loaded.codec, decoder)

    metrics = Metrics()
    client = None
    if settings.cache == "on":
        client = store.connect(settings.redis_url or store.embedded_url(settings.store_dir))
    cache = PredictionCache(
        client, CacheLimits(settings.cache_entries, round(settings.cache_days * _SECONDS_PER_DAY)), metrics
    )
    batcher = Batcher(load_engine, limits, metrics, on_failure)
    predictor = Predictor(batcher, cache, metrics, version=checkpoint.version, decoding=settings.decoding)
    return Services(settings, checkpoint, str(device), metrics, cache, batcher, predictor)


def create_app(services: Services) -> Flask:
    """The Flask application over running services."""
    app = Flask("gner_backend")
    app.register_blueprint(
        create_routes(
            predictor=services.predictor,
            batcher=services.batcher,
            cache=services.cache,
            metrics=services.metrics,
            device=services.device,
            auth=services.settings.auth,
            deadline_s=services.settings.predict_deadline_s,
        )
    )
    return app
