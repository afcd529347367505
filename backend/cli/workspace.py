"""What subcommands work on: the store, the examples, the versions; and the lock of MODEL_DIR."""

import argparse
import fcntl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from backend.cli.flags import read_settings
from backend.errors import InvalidSettings
from backend.settings import Settings

if TYPE_CHECKING:
    import redis

    from backend.learning.example_store import ExampleStore
    from backend.management import Management


@dataclass(frozen=True, slots=True)
class Workspace:
    """What the subcommands about projects work on."""

    settings: Settings
    client: "redis.Redis"
    examples: "ExampleStore"
    management: "Management"


@contextmanager
def opened(options: argparse.Namespace) -> Iterator[Workspace]:
    """The workspace that the flags name. Raises InvalidSettings, CheckpointError, StoreUnavailable."""
    from backend.engine import checkpoint as checkpoints
    from backend.learning.example_store import ExampleStore
    from backend.learning.registry import Registry
    from backend.management import Management
    from backend.metrics import Metrics
    from backend.serving.cache import CacheLimits, PredictionCache
    from backend.store import connect

    settings = read_settings(options)
    registry = Registry(settings.model_dir, checkpoints.resolve(settings.model).version)
    with _reachable_store(settings) as url, connect(url) as client:
        examples = ExampleStore(client)
        cache = PredictionCache(client, CacheLimits(settings.cache_entries, age_s=1), Metrics())
        yield Workspace(settings, client, examples, Management(examples, registry, cache))


@contextmanager
def _reachable_store(settings: Settings) -> Iterator[str]:
    """The URL of the backend's store; if none is running, its embedded store is started meanwhile."""
    from backend import store

    if settings.redis_url:
        yield settings.redis_url
        return
    url = store.embedded_url(settings.store_dir)
    with store.connect(url) as client:
        answers = store.answers(client)
    if answers:
        yield url
        return
    with only_backend_of(settings.model_dir), store.embedded(settings.store_dir) as url:
        yield url


@contextmanager
def only_backend_of(model_dir: Path) -> Iterator[int]:
    """Hold MODEL_DIR's lock: two backends over one folder would overwrite each other.

    Yields its file descriptor. A child that inherits it holds the lock as well, until it ends.
    """
    try:
        model_dir.mkdir(parents=True, exist_ok=True)
        with suppress(PermissionError):  # a mounted folder may belong to somebody else
            model_dir.chmod(0o700)
        lock = (model_dir / "lock").open("w")
    except OSError as error:
        raise InvalidSettings(f"MODEL_DIR={str(model_dir)!r} cannot be used: {error}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InvalidSettings(
                f"MODEL_DIR={str(model_dir)!r} is in use by another backend; give this one its own with --model-dir"
            ) from None
        yield lock.fileno()
