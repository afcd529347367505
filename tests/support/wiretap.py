"""A proxy between Label Studio and the backend that records every exchange and its duration."""

import json
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import requests


@dataclass(frozen=True, slots=True)
class Exchange:
    """A request of Label Studio and the backend's answer, which took `seconds`."""

    method: str
    path: str
    request: Any  # the JSON body; None without one
    status: int
    response: Any
    seconds: float


@dataclass
class Wiretap:
    """Listens on a port of its own and forwards to `backend_url`."""

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
                request = json.loads(body) if body else None
                response = json.loads(answer.content) if answer.content else None
                tap.exchanges.append(Exchange(self.command, self.path, request, answer.status_code, response, seconds))
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
        """The URL to give to Label Studio."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def to(self, path: str) -> list[Exchange]:
        """The recorded exchanges of a path."""
        return [exchange for exchange in self.exchanges if exchange.path == path]

    def webhooks(self, project: int) -> list[Exchange]:
        """The recorded webhooks of a project."""
        return [exchange for exchange in self.to("/webhook") if exchange.request["project"]["id"] == project]

    def key_of(self, project: int) -> str:
        """The project's key in ML calls, "<id>.<created timestamp>", as Label Studio sent it to /setup."""
        keys = {str(exchange.request["project"]) for exchange in self.to("/setup")}
        (key,) = [key for key in keys if key.startswith(f"{project}.")]
        return key

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)
