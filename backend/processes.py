"""The child processes of `serve`, and what ties them to it: they end with it, however it ends.

Each child holds the reading end of a pipe whose writing end only its parent has: the lifeline. When the parent dies,
even by kill -9, the pipe is closed, and the child hears of it.
"""

import logging
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from types import FrameType

log = logging.getLogger(__name__)

_LIFELINE = "GNER_LIFELINE"  # in a child's environment: the file descriptor of its end of the pipe
_STOP_TIMEOUT_S = 20
_FIRST_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 60.0
_STABLE_S = 60.0  # a child that ran for this long started without trouble
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # Ctrl-C, systemd or Docker, a closed terminal


class Children:
    """Starts children of this process. Build it once; they end when this process does."""

    def __init__(self, environment: Mapping[str, str], inherited_fds: Sequence[int] = ()) -> None:
        """`inherited_fds` stay open in the children: what this process has locked stays locked until all have ended."""
        self._lifeline, self._own_end = (
            os.pipe()
        )  # our end is closed in every child, because Python's are not inherited
        self._environment = {**environment, _LIFELINE: str(self._lifeline)}
        self._inherited_fds = (self._lifeline, *inherited_fds)

    def start(self, command: Sequence[str]) -> "subprocess.Popen[bytes]":
        """Start a child in a session of its own, so that Ctrl-C reaches it through us only: once, before the store."""
        return subprocess.Popen(command, env=self._environment, pass_fds=self._inherited_fds, start_new_session=True)

    def supervise(self, command: Sequence[str]) -> int:
        """Run a child until it ends by itself or a signal tells us to stop. The status is 0 only after a signal.

        A child that somebody else's signal killed is started again, after a pause that grows.
        """
        supervisor = _Supervisor(self, command)
        for signum in _STOP_SIGNALS:
            signal.signal(signum, supervisor.stop)
        return supervisor.run()

    @contextmanager
    def kept_running(self, name: str, command: Sequence[str]) -> Iterator[None]:
        """Run a child, and start it again whenever it ends, after a pause that grows. It is stopped on leaving."""
        keeper = _Keeper(self, name, command)
        keeper.start()
        try:
            yield
        finally:
            keeper.stop()


def when_orphaned(act: Callable[[], None]) -> None:
    """Have a thread call `act` when the parent has died. Does nothing in a process that no `Children` started."""
    lifeline = os.environ.get(_LIFELINE)
    if lifeline is None:
        return

    def wait() -> None:
        with suppress(OSError):
            os.read(int(lifeline), 1)  # nothing is ever written: it returns when the parent's end is closed
        log.warning("the process that started this one has died; ending")
        act()

    threading.Thread(target=wait, name="lifeline", daemon=True).start()


class _Pause:
    """How long to wait before a child is started again: longer each time, until it has run without trouble."""

    def __init__(self) -> None:
        self._next_s = _FIRST_PAUSE_S

    def after(self, started_s: float) -> float:
        """Seconds to wait for a child that was started at this time of the monotonic clock."""
        if time.monotonic() - started_s > _STABLE_S:
            self._next_s = _FIRST_PAUSE_S
        pause_s, self._next_s = self._next_s, min(2 * self._next_s, _LONGEST_PAUSE_S)
        return pause_s


class _Supervisor:
    """Runs the one child without which there is nothing to do."""

    def __init__(self, children: Children, command: Sequence[str]) -> None:
        self._children, self._command = children, command
        self._stopping = threading.Event()
        self._pause = _Pause()
        self._started_s = time.monotonic()
        self._child = children.start(command)

    def stop(self, signum: int, frame: FrameType | None) -> None:  # noqa: ARG002
        """A signal handler."""
        self._stopping.set()
        self._child.terminate()

    def run(self) -> int:
        """Wait for the end. Returns the status for the shell."""
        while True:
            try:
                status = self._child.wait(_STOP_TIMEOUT_S if self._stopping.is_set() else None)
            except subprocess.TimeoutExpired:
                self._child.kill()
                continue
            if self._stopping.is_set():
                return 0
            if status >= 0:
                return status or 1
            self._start_again(status)

    def _start_again(self, status: int) -> None:
        pause_s = self._pause.after(self._started_s)
        log.error("the web process was killed (%d); starting it again in %.0f s", status, pause_s)
        if self._stopping.wait(pause_s):
            return
        self._started_s = time.monotonic()
        self._child = self._children.start(self._command)
        if self._stopping.is_set():  # `stop` may not have seen this child
            self._child.terminate()


class _Keeper:
    """A thread that keeps a child running."""

    def __init__(self, children: Children, name: str, command: Sequence[str]) -> None:
        self._children, self._name, self._command = children, name, command
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
        pause = _Pause()
        while not self._stopping.is_set():
            started_s = time.monotonic()
            status = self._run_child()
            pause_s = pause.after(started_s)
            if not self._stopping.is_set():
                log.warning("the %s has ended (%d); starting it again in %.0f s", self._name, status, pause_s)
            self._stopping.wait(pause_s)

    def _run_child(self) -> int:
        self._child = self._children.start(self._command)
        if self._stopping.is_set():  # `stop` may not have seen this child
            self._child.terminate()
        return self._child.wait()
