"""`gner-backend serve` as a person starts and stops it."""

from pathlib import Path

import pytest
import requests

from tests.e2e.conftest import BACKEND_START_S, ready_backend, started_backend
from tests.support.processes import wait_until
from tests.support.texts import config

pytestmark = pytest.mark.e2e


def test_starts_answers_and_ctrl_c_leaves_nothing_behind(tmp_path: Path, artifacts: Path) -> None:
    with ready_backend(tmp_path, artifacts / "backend-ctrl-c.log") as backend:
        assert backend.health()["status"] == "UP"
        tasks = [{"id": 1, "data": {"text": "Angela Merkel met Barack Obama in Berlin."}}]
        (item,) = backend.predict("1.1", config("label_config.xml"), tasks)
        assert item["result"]

        assert backend.server.interrupt() == 0, backend.server.log_tail()
        assert "Traceback" not in backend.server.log_tail()
        wait_until("the last child to end", lambda: not backend.server.descendants(), timeout_s=5)


def test_answers_health_while_the_model_loads(tmp_path: Path, artifacts: Path) -> None:
    with started_backend(tmp_path, artifacts / "backend-loading.log") as backend:
        states: list[str] = []

        def ready() -> bool:
            try:
                # Label Studio calls a backend disconnected after 1 s
                states.append(requests.get(f"{backend.url}/health", timeout=1).json()["state"])
            except requests.ConnectionError:
                assert not states, "/health was answered once and is not any more"
            return states[-1:] == ["ready"]

        backend.server.wait_until("the model is ready", ready, BACKEND_START_S)
        assert set(states) <= {"loading", "ready"}
