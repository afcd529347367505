"""Servers as child processes: waits for them, and always stops them and their descendants."""

import contextlib
import os
import signal
import socket
import subprocess
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import psutil

T = TypeVar("T")


def wait_until(what: str, condition: Callable[[], T], timeout_s: float, poll_s: float = 0.1) -> T:
    """The first true value of `condition()`; TimeoutError with `what` and the last value after `timeout_s`."""
    deadline_s = time.monotonic() + timeout_s
    while not (value := condition()):
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"waited {timeout_s:g} s for {what}; the last value was {value!r}")
        time.sleep(poll_s)
    return value


def free_port() -> int:
    """A TCP port that nothing listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


class Server:
    """A child process with its descendants; its output goes to `log`.

    It sees only `environment`, PATH and LANG, so the settings of a developer's shell do not reach it.
    """

    # Descendants inherit this variable. It finds those that have left our process tree.
    MARK = "GNER_E2E_SERVER"

    def __init__(self, command: list[str], environment: dict[str, str], log: Path) -> None:
        self.log = log
        self._mark = uuid.uuid4().hex
        self._known: set[psutil.Process] = set()
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={"PATH": os.environ["PATH"], "LANG": "C.UTF-8", **environment, self.MARK: self._mark},
                start_new_session=True,
            )

    def wait_until(self, what: str, condition: Callable[[], T], timeout_s: float) -> T:
        """As `wait_until`, but fails at once with the end of the log if the process has ended."""

        def alive_and_condition() -> T:
            if (exit_code := self._process.poll()) is not None:
                raise RuntimeError(f"exited with {exit_code} before {what}; {self.log} ends:\n{self.log_tail()}")
            return condition()

        try:
            return wait_until(what, alive_and_condition, timeout_s, poll_s=0.2)
        except TimeoutError as error:
            raise TimeoutError(f"{error}; {self.log} ends:\n{self.log_tail()}") from error

    def log_tail(self, num_chars: int = 3000) -> str:
        """The end of the log."""
        return self.log.read_text(encoding="utf-8", errors="replace")[-num_chars:]

    def interrupt(self, timeout_s: float = 20) -> int:
        """Send SIGINT to the process group, as Ctrl-C in a terminal does. The exit code."""
        self.descendants()  # remembers them, in case they leave the process tree
        os.killpg(self._process.pid, signal.SIGINT)
        return self._process.wait(timeout_s)

    def kill_alone(self) -> None:
        """Kill the process as kill -9 does, and leave its descendants."""
        self.descendants()  # remembers them
        self._process.kill()
        self._process.wait()

    def descendants(self) -> list[psutil.Process]:
        """Every running process that this one started, directly or not, and itself.

        Two searches complement each other: by parent, which misses processes whose parent has ended, and by the
        inherited variable, which misses processes that were started with another environment.
        """
        self._known.update(process for process in psutil.process_iter() if self._is_marked(process))
        if self._process.poll() is None:
            self._known.update(psutil.Process(self._process.pid).children(recursive=True))
        return [process for process in self._known if is_alive(process)]

    def _is_marked(self, process: psutil.Process) -> bool:
        try:
            return process.environ().get(self.MARK) == self._mark
        except psutil.Error:  # it belongs to another user, or has ended
            return False

    def kill(self) -> None:
        """Kill the process and its descendants, and wait for its end."""
        for process in self.descendants():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.kill()
        self._process.wait(10)


def is_alive(process: psutil.Process) -> bool:
    """Whether a process runs: a zombie does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
