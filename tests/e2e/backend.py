"""The backend as an operator sees it: its process, /health, /predict, /metrics."""

import re
from dataclasses import dataclass
from typing import Any

import requests

from .processes import Server

Json = Any


@dataclass(frozen=True, slots=True)
class Counters:
    """What the model has done since the start, from /metrics."""

    decoder_passes: float
    windows_decoded: float
    cache_hits: float


@dataclass(frozen=True, slots=True)
class Backend:
    server: Server
    url: str

    def health(self) -> Json:
        return requests.get(f"{self.url}/health", timeout=1).json()  # Label Studio waits no longer

    def is_ready(self) -> bool:
        try:
            state = self.health()["state"]
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

    def setup(self, project: str, label_config: str) -> Json:
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

    def counters(self) -> Counters:
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
