"""The child processes of `serve`: one whose end is the end of all, and one that is started again when it ends."""

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
_LASTED_S = 60.0  # a child that lived for so long had no trouble with starting


def supervise(command: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run a child until it ends or we are told to stop. 0 only if we were told."""
    told: list[int] = []
    child = _start(command, environment)

    def stop(signum: int, frame: FrameType | None) -> None:  # noqa: ARG001
        told.append(signum)
        child.terminate()

    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, stop)
    while True:
        try:
            status = child.wait(_STOP_TIMEOUT_S if told else None)
        except subprocess.TimeoutExpired:
            child.kill()
            continue
        return 0 if told else status or 1


@contextmanager
def kept_running(name: str, command: Sequence[str], environment: Mapping[str, str]) -> Iterator[None]:
    """Run a child beside, and start it again when it ends, after a pause that grows; it is stopped at the end."""
    stopping = threading.Event()
    children: list[subprocess.Popen[bytes]] = []

    def keep() -> None:
        pause_s = _FIRST_PAUSE_S
        while not stopping.is_set():
            started_s = time.monotonic()
            children[:] = [_start(command, environment)]
            if stopping.is_set():  # whoever stops us may not have seen this child
                children[0].terminate()
            status = children[0].wait()
            if time.monotonic() - started_s > _LASTED_S:
                pause_s = _FIRST_PAUSE_S
            if not stopping.is_set():
                log.warning("the %s has ended (%d); it is started again in %.0f s", name, status, pause_s)
            stopping.wait(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    keeper = threading.Thread(target=keep, name=name, daemon=True)
    keeper.start()
    try:
        yield
    finally:
        stopping.set()
        for child in list(children):
            child.terminate()
        keeper.join(_STOP_TIMEOUT_S)
        if keeper.is_alive():
            for child in list(children):
                child.kill()
            keeper.join()


def _start(command: Sequence[str], environment: Mapping[str, str]) -> "subprocess.Popen[bytes]":
    # a session of its own: Ctrl-C must reach it through us, once, and the store last
    return subprocess.Popen(command, env=environment, start_new_session=True)
