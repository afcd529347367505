"""The engine over a real tiny checkpoint and a real registry of adapters."""

from pathlib import Path

import pytest
import torch

from backend.engine import checkpoint as checkpoints
from backend.engine.adapter_files import CONFIG_FILE, WEIGHTS_FILE
from backend.engine.adapters import Adapters
from backend.engine.decode import ExactDecoder
from backend.errors import AdapterError, CorruptVersion, UnknownVersion
from backend.learning.registry import Registry
from backend.serving.engine import AdapterEngine
from tests.support.running import publish_random, save_checkpoint

A, B = "1.1795333437", "2.1795333999"
TEXTS = [
    "Marie Curie worked in Paris , x",
    "the University of Paris",
    "x of art in Paris a b c",
    "2024 person in the city !",
    "University of art , city of work",
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny")


@pytest.fixture
def loaded(checkpoint: Path) -> checkpoints.LoadedModel:
    return checkpoints.load(checkpoints.resolve(str(checkpoint)), torch.device("cpu"), torch.float32)


@pytest.fixture
def registry(loaded: checkpoints.LoadedModel, tmp_path: Path) -> Registry:
    return Registry(tmp_path, loaded.checkpoint.version)


@pytest.fixture
def engine(loaded: checkpoints.LoadedModel, registry: Registry) -> AdapterEngine:
    adapters = Adapters(loaded.family, max_loaded=1)
    return AdapterEngine(loaded.codec, ExactDecoder(loaded.family, 64), adapters, registry)


def decode(engine: AdapterEngine) -> list[tuple[str, ...]]:
    prompts = [engine.codec.encode(("person", "city"), text.split()) for text in TEXTS]
    return [decoded.tags for decoded in engine.decoder.decode(prompts)]


def test_a_version_that_left_the_memory_is_loaded_again(
    checkpoint: Path, engine: AdapterEngine, registry: Registry
) -> None:
    base = registry.base_version
    versions = [publish_random(registry, checkpoint, A, seed).version for seed in (1, 2)]
    said: dict[str, list[tuple[str, ...]]] = {}
    for version in (base, *versions, base, *versions):
        engine.activate(version)
        assert decode(engine) == said.setdefault(version, decode(engine))
    assert len({str(tags) for tags in said.values()}) == 3


def test_what_cannot_be_activated_leaves_the_version_before_active(
    checkpoint: Path, engine: AdapterEngine, registry: Registry
) -> None:
    good, bad = (publish_random(registry, checkpoint, A, seed).version for seed in (1, 2))
    unfit = publish_random(registry, checkpoint, B, 3).version
    weights = registry.folder(A, bad) / WEIGHTS_FILE
    weights.write_bytes(weights.read_bytes()[:-10])
    (registry.folder(B, unfit) / CONFIG_FILE).write_text("{", encoding="utf-8")
    engine.activate(good)
    said = decode(engine)
    for version, error in ((bad, CorruptVersion), (unfit, AdapterError), ("gone", UnknownVersion)):
        with pytest.raises(error):
            engine.activate(version)
        engine.activate(good)
        assert decode(engine) == said


def test_the_active_version_is_activated_without_reading_its_files(
    checkpoint: Path, engine: AdapterEngine, registry: Registry
) -> None:
    version = publish_random(registry, checkpoint, A, seed=1).version
    engine.activate(version)
    (registry.folder(A, version) / WEIGHTS_FILE).unlink()
    engine.activate(version)
