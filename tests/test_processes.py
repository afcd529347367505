"""Children of `serve`, as real processes."""

import os
import signal
import sys
from pathlib import Path

import pytest

from backend import processes
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
    with processes.kept_running("helper", [sys.executable, "-c", CHILD, str(file)], dict(os.environ)):
        wait_until("the first", lambda: len(pids(file)) == 1, TIMEOUT_S)
        os.kill(pids(file)[0], signal.SIGKILL)
        wait_until("the second", lambda: len(pids(file)) == 2, TIMEOUT_S)
    for pid in pids(file):
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    assert "the helper has ended (-9)" in caplog.text
    assert len(pids(file)) == 2


def test_a_child_whose_end_is_the_end_gives_its_status() -> None:
    """In a process of its own, since it takes the signals over."""
    program = "import os, sys; from backend import processes; sys.exit(processes.supervise({!r}, dict(os.environ)))"
    for code, expected in ((3, 3), (0, 1)):
        child = [sys.executable, "-c", f"raise SystemExit({code})"]
        status = os.spawnv(os.P_WAIT, sys.executable, [sys.executable, "-c", program.format(child)])
        assert status == expected
