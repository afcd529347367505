"""A pass-through between Label Studio and the backend, that keeps what was said and how long it took."""

import json
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import requests


@dataclass(frozen=True, slots=True)
class Exchange:
    """One request of Label Studio and the backend's answer; `seconds` is the backend's share."""

    method: str
    path: str
    request: Any  # the JSON body; None without one
    status: int
    response: Any
    seconds: float


@dataclass
class Wiretap:
    """Listens on a port of its own, forwards to `backend_url`."""

    backend_url: str
    exchanges: list[Exchange] = field(default_factory=list, repr=False)

    def __post_init__(self) -> None:
        tap = self

        class Forward(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def forward(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                started_s = time.monotonic()
                answer = requests.request(
                    self.command,
                    tap.backend_url + self.path,
                    data=body,
                    headers={"Content-Type": self.headers.get("Content-Type") or "", "Connection": "close"},
                    timeout=120,
                )
                seconds = time.monotonic() - started_s
                said = json.loads(body) if body else None
                answered = json.loads(answer.content) if answer.content else None
                tap.exchanges.append(Exchange(self.command, self.path, said, answer.status_code, answered, seconds))
                self.send_response(answer.status_code)
                self.send_header("Content-Type", answer.headers.get("Content-Type", ""))
                self.send_header("Content-Length", str(len(answer.content)))
                self.end_headers()
                self.wfile.write(answer.content)

            do_GET = do_POST = forward  # noqa: N815

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Forward)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def to(self, path: str) -> list[Exchange]:
        return [exchange for exchange in self.exchanges if exchange.path == path]

    def webhooks(self, project: int) -> list[Exchange]:
        return [exchange for exchange in self.to("/webhook") if exchange.request["project"]["id"] == project]

    def key_of(self, project: int) -> str:
        """Label Studio's name for a project in ML calls: "<id>.<created timestamp>"."""
        keys = {str(exchange.request["project"]) for exchange in self.to("/setup")}
        (key,) = [key for key in keys if key.startswith(f"{project}.")]
        return key

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)
