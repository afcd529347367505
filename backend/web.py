"""The web process: gunicorn with one worker, whose threads share one model."""

import logging
import os
import signal
import threading
from typing import Any

from flask import Flask
from gunicorn.app.base import BaseApplication

from backend import store
from backend.app import Services, build, create_app
from backend.processes import when_orphaned
from backend.settings import Settings

log = logging.getLogger(__name__)

_OTHER_THREADS = 16  # for what is no /predict: health checks, setups, webhooks


class _Web(BaseApplication):  # type: ignore[misc]  # gunicorn has no types
    """gunicorn, configured from our settings instead of a file or its own flags."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._services: Services | None = None
        self._is_orphaned = False
        super().__init__()

    def load_config(self) -> None:
        options: dict[str, Any] = {
            "bind": f"{self._settings.host}:{self._settings.port}",
            "workers": 1,  # one owner of the model
            "worker_class": "gthread",
            "threads": self._settings.threads + _OTHER_THREADS,
            "timeout": 300,  # of a silent worker, not of a request
            "graceful_timeout": 10,
            "loglevel": "warning",
            "proc_name": "gner-backend",
            "worker_exit": lambda _server, _worker: self._stop(),
            "when_ready": lambda _server: when_orphaned(self._end_at_once),
            "on_exit": lambda _server: self._stop_orphaned_store(),
        }
        for name, value in options.items():
            self.cfg.set(name, value)

    def load(self) -> Flask:
        """Called in the worker, after the fork."""
        self._services = build(self._settings, on_failure=_end_arbiter)
        self._services.start()
        _hurry_at(signal.SIGTERM, self._services)
        return create_app(self._services)

    def _stop(self) -> None:
        if self._services is not None:
            self._services.stop()

    def _end_at_once(self) -> None:
        """Without `serve`, nobody could stop us any more, and our port would stay taken."""
        self._is_orphaned = True
        os.kill(os.getpid(), signal.SIGQUIT)  # gunicorn's quick end

    def _stop_orphaned_store(self) -> None:
        """The embedded store is another child of `serve`, and cannot hear of its end by itself."""
        url = self._settings.redis_url
        if self._is_orphaned and url == store.embedded_url(self._settings.store_dir):
            store.shut_down(store.connect(url))


def _hurry_at(signum: int, services: Services) -> None:
    """At this signal, have requests that wait for predictions answered with what is done; then let gunicorn stop."""
    handler: Any = signal.getsignal(signum)

    def hurry(number: int, frame: Any) -> None:
        # in a thread: it waits for the batch in flight, and the handler may have interrupted whoever holds the lock
        threading.Thread(target=services.batcher.stop, name="hurry", daemon=True).start()
        handler(number, frame)

    signal.signal(signum, hurry)


def _end_arbiter(error: BaseException) -> None:
    """Without a model the backend is of no use: it stops, so that whoever started it notices."""
    log.error("stopping, because the model could not be loaded: %s", error)
    os.kill(os.getppid(), signal.SIGTERM)


def run(settings: Settings) -> None:
    """Serve until a signal says stop."""
    _Web(settings).run()
