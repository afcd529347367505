"""The one place where long-lived objects are made."""

import logging
from collections.abc import Callable
from dataclasses import dataclass

from flask import Flask

from backend import store
from backend.engine import checkpoint as checkpoints
from backend.engine.adapters import Adapters
from backend.engine.checkpoint import Checkpoint, LoadedModel
from backend.engine.decode import Decoder, ExactDecoder
from backend.engine.device import DeviceProfile, profile_of
from backend.engine.drafter import Drafter
from backend.engine.generate import GenerateDecoder
from backend.engine.sequential import SequentialDecoder
from backend.errors import InvalidSettings
from backend.labelstudio.events import Background, Events
from backend.labelstudio.model import Models, TaskLimits
from backend.labelstudio.routes import create_routes
from backend.labelstudio.routes.login import Credentials
from backend.labelstudio.routes.predictions import prediction_routes
from backend.labelstudio.routes.protocol import protocol_routes
from backend.labelstudio.routes.status import status_routes
from backend.labelstudio.routes.training import training_routes
from backend.labelstudio.routes.versions import version_routes
from backend.labelstudio.routes.webhook import webhook_routes
from backend.learning.example_store import ExampleStore
from backend.learning.jobs import TrainingQueue
from backend.learning.registry import Registry
from backend.management import Management
from backend.metrics import Metrics
from backend.serving.admission import Admission
from backend.serving.batcher import Batcher
from backend.serving.cache import CacheLimits, PredictionCache
from backend.serving.engine import AdapterEngine
from backend.serving.predictor import Predictor
from backend.serving.versions import ServedVersions
from backend.serving.windows import BatchLimits
from backend.settings import Settings

log = logging.getLogger(__name__)


_SECONDS_PER_DAY = 86_400
_BYTES_PER_MB = 1_000_000


@dataclass(frozen=True, slots=True)
class Services:
    """All long-lived objects of the web process."""

    settings: Settings
    checkpoint: Checkpoint
    device: str
    metrics: Metrics
    cache: PredictionCache
    batcher: Batcher
    predictor: Predictor
    registry: Registry
    served: ServedVersions
    examples: ExampleStore
    training: TrainingQueue
    management: Management
    models: Models
    background: Background

    def start(self) -> None:
        """Start the threads. Must be called in the process that serves, after its fork."""
        self.batcher.start()
        self.predictor.start()
        self.served.start()

    def stop(self) -> None:
        """End the threads. Background tasks that have not begun are dropped; one that runs is waited for."""
        self.background.stop()
        self.batcher.stop()
        self.predictor.stop()
        self.served.stop()


def build(settings: Settings, on_failure: Callable[[BaseException], None] = lambda _: None) -> Services:
    """Make and connect everything; starts nothing. `on_failure` is called in the model's thread if it cannot load.

    Raises CheckpointError and InvalidSettings, each naming the value.
    """
    checkpoint = checkpoints.resolve(settings.model)
    device = checkpoints.pick_device(settings.device)
    profile = profile_of(device)
    limits = BatchLimits(
        settings.batch_tokens or profile.batch_tokens, profile.batch_rows, profile.personal_rows, settings.max_queue
    )
    registry = Registry(settings.model_dir, checkpoint.version)
    for base, number in registry.of_other_bases().items():
        log.warning("%d versions were trained from %s and are not used with %s", number, base, checkpoint.version)

    def load_engine() -> AdapterEngine:
        loaded = checkpoints.load(
            checkpoint,
            device,
            checkpoints.pick_dtype(settings.dtype, device),
            all_gpus=settings.gpus == "all",
            quantization=settings.quantization,
        )
        decoder = _decoder(loaded, settings, profile)
        decoder.decode([loaded.codec.encode(("person",), ["warm", "up"])])
        log.info("%s is ready on %s in %s", checkpoint.version, device, loaded.dtype)
        return AdapterEngine(loaded.codec, decoder, Adapters(loaded.family), registry)

    metrics = Metrics()
    client = store.connect(settings.redis_url or store.embedded_url(settings.store_dir))
    cache = PredictionCache(
        client if settings.cache == "on" else None,
        CacheLimits(settings.cache_entries, round(settings.cache_days * _SECONDS_PER_DAY)),
        metrics,
    )
    batcher = Batcher(load_engine, limits, metrics, on_failure)
    predictor = Predictor(batcher, cache, metrics, decoding=settings.decoding)
    served = ServedVersions(checkpoint.version, registry, batcher, cache)
    examples = ExampleStore(client)
    return Services(
        settings=settings,
        checkpoint=checkpoint,
        device=str(device),
        metrics=metrics,
        cache=cache,
        batcher=batcher,
        predictor=predictor,
        registry=registry,
        served=served,
        examples=examples,
        training=TrainingQueue(client, settings.train_after),
        management=Management(examples, registry, cache),
        models=Models(predictor, served, TaskLimits(settings.max_text_chars, settings.max_tasks), metrics),
        background=Background.new(),
    )


def _decoder(loaded: LoadedModel, settings: Settings, profile: DeviceProfile) -> Decoder:
    if settings.decoding == "exact":
        window_tokens = settings.draft_window or profile.window_tokens
        return ExactDecoder(
            loaded.family,
            window_tokens,
            _drafter(loaded, settings.draft_model),
            draft_threshold=profile.draft_threshold,
        )
    if settings.decoding == "sequential":
        return SequentialDecoder(loaded.family)
    return GenerateDecoder(
        loaded.family.model,
        loaded.codec.tokenizer,
        num_beams=settings.beams,
        max_new_tokens=loaded.codec.limits.target_tokens,
    )


def _drafter(loaded: LoadedModel, draft_model: str) -> Drafter | None:
    """The drafter for a checkpoint without a draft head of its own."""
    if loaded.checkpoint.draft_head is not None or draft_model == "off":
        return None
    small = checkpoints.resolve(draft_model)
    if small.draft_head is None:
        raise InvalidSettings(f"GNER_DRAFT_MODEL={draft_model!r} has no draft head; use gner-mini, or off")
    drafting = checkpoints.load(small, loaded.device, loaded.dtype)
    return Drafter(drafting.family, drafting.codec)


def create_app(services: Services) -> Flask:
    """The Flask application over running services."""
    settings = services.settings
    events = Events(
        services.models,
        services.examples,
        services.training,
        services.background,
        syncs=bool(settings.label_studio_url and settings.label_studio_api_key),
    )
    version, served = services.checkpoint.version, services.served
    parts = (
        status_routes(
            services.batcher,
            services.predictor,
            services.cache,
            services.examples,
            services.metrics,
            version,
            services.device,
        ),
        prediction_routes(
            services.models,
            events,
            services.batcher,
            Admission(services.batcher, settings.threads),
            served,
            settings.predict_deadline_s,
        ),
        webhook_routes(events, services.metrics),
        training_routes(events, services.training),
        version_routes(services.management, served, services.training),
        protocol_routes(services.models, services.management),
    )
    app = Flask("gner_backend")
    app.config["MAX_CONTENT_LENGTH"] = round(settings.max_body_mb * _BYTES_PER_MB)
    credentials = Credentials(settings.auth, settings.webhook_secret)
    app.register_blueprint(create_routes(parts, services.metrics, credentials, settings.allowed_host_names))
    return app
