"""The child processes of `serve`: one whose end stops everything, and one that is started again when it ends."""

import logging
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType

log = logging.getLogger(__name__)

_STOP_TIMEOUT_S = 20
_FIRST_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 60.0
_STABLE_S = 60.0  # a child that ran for this long started without trouble


def supervise(command: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run a child until it ends or a signal tells us to stop. The status is 0 only after a signal."""
    stopping = threading.Event()
    child = _start(command, environment)

    def stop(signum: int, frame: FrameType | None) -> None:  # noqa: ARG001
        stopping.set()
        child.terminate()

    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, stop)
    while True:
        try:
            status = child.wait(_STOP_TIMEOUT_S if stopping.is_set() else None)
        except subprocess.TimeoutExpired:
            child.kill()
            continue
        return 0 if stopping.is_set() else status or 1


@contextmanager
def kept_running(name: str, command: Sequence[str], environment: Mapping[str, str]) -> Iterator[None]:
    """Run a child, and start it again whenever it ends, after a pause that grows. It is stopped on leaving."""
    keeper = _Keeper(name, command, environment)
    keeper.start()
    try:
        yield
    finally:
        keeper.stop()


class _Keeper:
    """A thread that keeps a child running."""

    def __init__(self, name: str, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self._name, self._command, self._environment = name, command, environment
        self._stopping = threading.Event()
        self._child: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._keep, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the child, by force if it takes too long."""
        self._stopping.set()
        if self._child is not None:
            self._child.terminate()
        self._thread.join(_STOP_TIMEOUT_S)
        if self._thread.is_alive():
            if self._child is not None:
                self._child.kill()
            self._thread.join()

    def _keep(self) -> None:
        pause_s = _FIRST_PAUSE_S
        while not self._stopping.is_set():
            started_s = time.monotonic()
            status = self._run_child()
            if time.monotonic() - started_s > _STABLE_S:
                pause_s = _FIRST_PAUSE_S
            if not self._stopping.is_set():
                log.warning("the %s has ended (%d); starting it again in %.0f s", self._name, status, pause_s)
            self._stopping.wait(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def _run_child(self) -> int:
        self._child = _start(self._command, self._environment)
        if self._stopping.is_set():  # `stop` may not have seen this child
            self._child.terminate()
        return self._child.wait()


def _start(command: Sequence[str], environment: Mapping[str, str]) -> "subprocess.Popen[bytes]":
    # a session of its own, so that Ctrl-C reaches it through us only: once, and before the store
    return subprocess.Popen(command, env=environment, start_new_session=True)
