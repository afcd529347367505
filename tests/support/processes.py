"""Servers as child processes: polled until they answer, always stopped, nothing left behind."""

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
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


class Server:
    """One child process with its descendants, its output in `log`.

    `environment` is all that it gets: settings in a developer's shell do not reach it.
    """

    # The variable that descendants inherit, so that one which left our process tree is found too.
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
        """As wait_until, but gives up at once, with the end of the log, when the process has ended."""

        def alive_and_condition() -> T:
            if (exit_code := self._process.poll()) is not None:
                raise RuntimeError(f"exited with {exit_code} before {what}; {self.log} ends:\n{self.log_tail()}")
            return condition()

        try:
            return wait_until(what, alive_and_condition, timeout_s, poll_s=0.2)
        except TimeoutError as error:
            raise TimeoutError(f"{error}; {self.log} ends:\n{self.log_tail()}") from error

    def log_tail(self, num_chars: int = 3000) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")[-num_chars:]

    def interrupt(self, timeout_s: float = 20) -> int:
        """What Ctrl-C in a terminal does: SIGINT to the whole foreground group. The exit code."""
        self.descendants()  # from now on they are known, wherever they move to
        os.killpg(self._process.pid, signal.SIGINT)
        return self._process.wait(timeout_s)

    def descendants(self) -> list[psutil.Process]:
        """Every process that this one started and that still runs, itself included.

        Found by parentage and by the inherited mark: one misses those whose parent has ended, the other those that
        were given an environment of their own.
        """
        self._known.update(process for process in psutil.process_iter() if self._is_marked(process))
        if self._process.poll() is None:
            self._known.update(psutil.Process(self._process.pid).children(recursive=True))
        return [process for process in self._known if is_alive(process)]

    def _is_marked(self, process: psutil.Process) -> bool:
        try:
            return process.environ().get(self.MARK) == self._mark
        except psutil.Error:  # another user's, or gone meanwhile
            return False

    def kill(self) -> None:
        """Ends whatever is left, and reaps it."""
        for process in self.descendants():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.kill()
        self._process.wait(10)


def is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
