"""A backend in a process of its own, used through HTTP."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests

from backend import store
from backend.learning.annotations import Annotation
from backend.learning.example_store import ExampleStore
from tests.support.processes import Server, wait_until

Json = Any


@dataclass(frozen=True, slots=True)
class Counters:
    """Work done since the start, from /metrics."""

    decoder_passes: float
    windows_decoded: float
    cache_hits: float


@dataclass(frozen=True, slots=True)
class Backend:
    """A running backend: its process, its URL and its MODEL_DIR."""

    server: Server
    url: str
    model_dir: Path

    def accepted(self, project: str) -> tuple[Annotation, ...]:
        """The annotations of a project in the backend's store, which must be running."""
        client = store.connect(store.embedded_url(self.model_dir.resolve() / "store"))
        return ExampleStore(client).annotations(project)

    def health(self) -> Json:
        """The answer of /health, with Label Studio's timeout of one second."""
        return requests.get(f"{self.url}/health", timeout=1).json()

    def is_ready(self) -> bool:
        """Whether the model is loaded. Fails the test if it could not be loaded."""
        try:
            state = str(self.health()["state"])
        except (requests.ConnectionError, requests.Timeout):  # not listening yet, or slow to start
            return False
        assert state != "failed", f"the model could not be loaded:\n{self.server.log_tail()}"
        return state == "ready"

    def predict(self, project: str, label_config: str, tasks: list[Json]) -> list[Json]:
        """The call that Label Studio makes; one item per task."""
        body = {"tasks": tasks, "project": project, "label_config": label_config, "params": {"context": None}}
        answer = requests.post(f"{self.url}/predict", json=body, timeout=100)
        assert answer.status_code == 200, f"/predict answered {answer.status_code}: {answer.text[:1000]}"
        return list(answer.json()["results"])

    def predict_all(self, project: str, label_config: str, tasks: list[Json], timeout_s: float) -> list[Json]:
        """A prediction for every task. /predict is called again until none is missing.

        On a slow machine /predict returns what is ready in time, and the rest is predicted in the background.
        """

        def complete() -> list[Json]:
            predictions = self.predict(project, label_config, tasks)
            return predictions if all(predictions) else []

        return wait_until(f"{len(tasks)} predictions", complete, timeout_s)

    def setup(self, project: str, label_config: str) -> Json:
        """The call with which Label Studio connects a project."""
        body = {
            "project": project,
            "schema": label_config,
            "hostname": "http://localhost:8080",
            "access_token": "",
            "extra_params": None,
        }
        answer = requests.post(f"{self.url}/setup", json=body, timeout=3)
        assert answer.status_code == 200, f"/setup answered {answer.status_code}: {answer.text[:1000]}"
        return answer.json()

    def post(self, path: str, body: Json, status: int = 200) -> Json:
        """Any other call; `status` is the expected one."""
        answer = requests.post(self.url + path, json=body, timeout=100)
        assert answer.status_code == status, f"{path} answered {answer.status_code}: {answer.text[:1000]}"
        return answer.json()

    def versions(self, project: str) -> Json:
        """The trained versions of a project, and the current one."""
        answer = requests.get(f"{self.url}/versions", params={"project": project}, timeout=10)
        assert answer.status_code == 200, f"/versions answered {answer.status_code}: {answer.text[:1000]}"
        return answer.json()

    def job(self, job: str) -> Json:
        """The answer of /job_status for a training."""
        return self.post("/job_status", {"job": job})

    def wait_for_job(self, job: str, timeout_s: float) -> Json:
        """The answer of /job_status once the training has finished or failed."""

        def over() -> Json:
            status = self.job(job)
            return status if status["job_status"] in ("finished", "failed") else None

        return self.server.wait_until(f"job {job} to end", over, timeout_s)

    def counters(self) -> Counters:
        """The counters of /metrics."""
        text = requests.get(f"{self.url}/metrics", timeout=5).text
        return Counters(
            decoder_passes=_sample(text, "gner_decoder_passes_total"),
            windows_decoded=_sample(text, "gner_windows_decoded_total"),
            cache_hits=_sample(text, "gner_cache_hits_total"),
        )


def _sample(metrics: str, name: str) -> float:
    """The sum of a counter over its label values, in the Prometheus text format."""
    values = re.findall(rf"^{name}(?:\{{[^}}]*\}})? (\S+)", metrics, re.MULTILINE)
    assert values, f"/metrics has no {name}:\n{metrics[:2000]}"
    return sum(map(float, values))
