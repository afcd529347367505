"""What events leave behind, and the threads that work in the background. The rest is tested over HTTP."""

import threading
from concurrent.futures import CancelledError

import pytest

from backend.labelstudio.events import Background

TIMEOUT_S = 20.0


def test_stopping_waits_for_what_runs_and_drops_what_has_not_begun() -> None:
    background = Background.new()
    begun, go_on = threading.Event(), threading.Event()
    done: list[str] = []

    def run() -> None:
        begun.set()
        assert go_on.wait(TIMEOUT_S)
        done.append("running")

    background.predictions.submit(run)
    waiting = background.predictions.submit(done.append, "waiting")
    assert begun.wait(TIMEOUT_S)
    stopping = threading.Thread(target=background.stop)
    stopping.start()
    with pytest.raises(CancelledError):
        waiting.result(TIMEOUT_S)
    go_on.set()
    stopping.join(TIMEOUT_S)
    assert not stopping.is_alive()
    assert done == ["running"]
    with pytest.raises(RuntimeError):
        background.predictions.submit(run)
