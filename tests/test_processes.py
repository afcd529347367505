"""Children of `serve`, as real processes."""

import fcntl
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from backend.processes import Children, when_orphaned
from tests.support.paths import ROOT
from tests.support.processes import wait_until

TIMEOUT_S = 30
# tells its process id in a line of a file, then waits to be told to end
CHILD = """
import os, pathlib, signal, sys
with pathlib.Path(sys.argv[1]).open("a") as file: file.write(f"{os.getpid()}\\n")
signal.pause()
"""


def pids(file: Path) -> list[int]:
    return [int(line) for line in file.read_text(encoding="utf-8").split()] if file.exists() else []


@pytest.mark.slow  # waits between two starts
def test_a_child_is_started_again_when_it_ends_and_stopped_at_the_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "pids"
    with Children(os.environ).kept_running("helper", [sys.executable, "-c", CHILD, str(file)]):
        wait_until("the first", lambda: len(pids(file)) == 1, TIMEOUT_S)
        os.kill(pids(file)[0], signal.SIGKILL)
        wait_until("the second", lambda: len(pids(file)) == 2, TIMEOUT_S)
    for pid in pids(file):
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    assert "the helper has ended (-9)" in caplog.text
    assert len(pids(file)) == 2


# a supervisor of CHILD, in a process of its own, since it takes the signals over and dies
SUPERVISOR = """
import fcntl, os, sys
from backend.processes import Children
lock = open(sys.argv[2], "w")
fcntl.flock(lock, fcntl.LOCK_EX)
sys.exit(Children(os.environ, [lock.fileno()]).supervise([sys.executable, "-c", sys.argv[3], sys.argv[1]]))
"""
# ends a second after its parent
ORPHAN = """
import os, pathlib, sys, time
from backend.processes import when_orphaned
when_orphaned(lambda: (time.sleep(1), os._exit(0)))
with pathlib.Path(sys.argv[1]).open("a") as file: file.write(f"{os.getpid()}\\n")
time.sleep(600)
"""


@pytest.fixture
def supervise(tmp_path: Path) -> Iterator[Callable[[str], "subprocess.Popen[bytes]"]]:
    started: list[subprocess.Popen[bytes]] = []

    def start(program: str) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-c", SUPERVISOR, str(tmp_path / "pids"), str(tmp_path / "lock"), program]
        started.append(subprocess.Popen(command, cwd=ROOT))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.mark.parametrize(("code", "expected"), [(3, 3), (0, 1)])
def test_a_child_whose_end_is_the_end_gives_its_status(
    supervise: Callable[[str], "subprocess.Popen[bytes]"], code: int, expected: int
) -> None:
    assert supervise(f"raise SystemExit({code})").wait(TIMEOUT_S) == expected


@pytest.mark.slow  # waits between two starts
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGHUP])
def test_a_child_that_was_killed_is_started_again_until_a_signal_says_stop(
    supervise: Callable[[str], "subprocess.Popen[bytes]"], tmp_path: Path, signum: int
) -> None:
    supervisor, file = supervise(CHILD), tmp_path / "pids"
    wait_until("the first", lambda: len(pids(file)) == 1, TIMEOUT_S)
    os.kill(pids(file)[0], signal.SIGKILL)
    wait_until("the second", lambda: len(pids(file)) == 2, TIMEOUT_S)
    supervisor.send_signal(signum)
    assert supervisor.wait(TIMEOUT_S) == 0
    assert not psutil.pid_exists(pids(file)[1])


def test_children_hear_of_their_parents_sudden_end_and_hold_its_lock_until_theirs(
    supervise: Callable[[str], "subprocess.Popen[bytes]"], tmp_path: Path
) -> None:
    supervisor, file = supervise(ORPHAN), tmp_path / "pids"
    wait_until("the child", lambda: len(pids(file)) == 1, TIMEOUT_S)
    with (tmp_path / "lock").open() as lock:
        supervisor.kill()
        supervisor.wait()
        with pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        wait_until("the child to end", lambda: not psutil.pid_exists(pids(file)[0]), TIMEOUT_S)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_process_that_nobody_started_has_no_lifeline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GNER_LIFELINE", raising=False)
    before = threading.active_count()
    when_orphaned(lambda: pytest.fail("nobody has died"))
    assert threading.active_count() == before
