"""The servers and the browser: started once, stopped whatever happens, their logs kept in artifacts/e2e/."""

import os
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import requests

from tests.support import browser as chromium
from tests.support.backend import Backend
from tests.support.browser import Browser
from tests.support.label_studio import Account, LabelStudio
from tests.support.paths import ARTIFACTS, ROOT
from tests.support.processes import Server, free_port
from tests.support.wiretap import Wiretap

ACCOUNT = Account(email="annotator@example.com", password="correct-horse-battery")

# Starting takes half a minute on two idle cores, most of it database migrations.
LABEL_STUDIO_START_S = 240
BACKEND_START_S = 240

LABEL_STUDIO_SETTINGS = {
    # a backend on a private address is refused otherwise
    "SSRF_PROTECTION_ENABLED": "false",
    "ML_BLOCK_LOCAL_IP": "false",
    # nothing outside this machine is asked for anything
    "LATEST_VERSION_CHECK": "false",
    "COLLECT_ANALYTICS": "false",
    "SENTRY_DSN": "",
    "FRONTEND_SENTRY_DSN": "",
}


def require(what: str | None) -> None:
    """Skips when something is missing; fails instead under `make test`, which has installed it."""
    if what is not None:
        if os.environ.get("E2E_REQUIRED"):
            pytest.fail(f"{what}, though `make test` installs it")
        pytest.skip(f"{what}: `make test` installs it")


def program(path: Path) -> Path:
    require(None if path.exists() else f"{path} does not exist")
    return path


@pytest.fixture(scope="package")
def artifacts() -> Path:
    ARTIFACTS.mkdir(parents=True, exist_ok=True)
    return ARTIFACTS


@pytest.fixture(scope="package")
def label_studio(tmp_path_factory: pytest.TempPathFactory, artifacts: Path) -> Iterator[LabelStudio]:
    """A fresh Label Studio on SQLite; LABEL_STUDIO_VENV names the venv that it is installed in."""
    venv = Path(os.environ.get("LABEL_STUDIO_VENV", ROOT / ".venv-labelstudio"))
    executable = program(venv / "bin" / "label-studio")
    home, port = tmp_path_factory.mktemp("label-studio"), free_port()
    url = f"http://localhost:{port}"
    command = [str(executable), "start", "--no-browser", "--data-dir", str(home)]
    command += ["--internal-host", "127.0.0.1", "--port", str(port)]
    command += ["--username", ACCOUNT.email, "--password", ACCOUNT.password]
    server = Server(command, {"HOME": str(home), **LABEL_STUDIO_SETTINGS}, artifacts / "label-studio.log")

    def answers() -> bool:
        try:
            return requests.get(f"{url}/health", timeout=5).ok
        except requests.ConnectionError:
            return False

    try:
        server.wait_until("Label Studio answers", answers, LABEL_STUDIO_START_S)
        session = LabelStudio(url, ACCOUNT)
        yield session
        session.close()
    finally:
        server.kill()


@contextmanager
def started_backend(model_dir: Path, log: Path, **settings: str) -> Iterator[Backend]:
    """As a user starts it, with nothing but a port and a folder of its own, and the environment `settings`."""
    executable = program(Path(sys.executable).with_name("gner-backend"))
    port = free_port()
    environment = {"HOME": str(model_dir), "MODEL_DIR": str(model_dir), **settings}
    server = Server([str(executable), "serve", "--port", str(port)], environment, log)
    try:
        yield Backend(server=server, url=f"http://127.0.0.1:{port}", model_dir=model_dir)
    finally:
        server.kill()


@contextmanager
def ready_backend(model_dir: Path, log: Path, **settings: str) -> Iterator[Backend]:
    """A started one whose model is loaded."""
    with started_backend(model_dir, log, **settings) as backend:
        backend.server.wait_until("the model is ready", backend.is_ready, BACKEND_START_S)
        yield backend


@pytest.fixture(scope="package")
def backend(tmp_path_factory: pytest.TempPathFactory, artifacts: Path) -> Iterator[Backend]:
    with ready_backend(tmp_path_factory.mktemp("model-dir"), artifacts / "backend.log") as backend:
        yield backend


@pytest.fixture(scope="package")
def tap(backend: Backend) -> Iterator[Wiretap]:
    """Give its `url` to Label Studio instead of the backend's to see what passes between the two."""
    with closing(Wiretap(backend.url)) as tap:
        yield tap


@pytest.fixture(scope="package")
def browser(tmp_path_factory: pytest.TempPathFactory, artifacts: Path, label_studio: LabelStudio) -> Iterator[Browser]:
    require(chromium.missing())
    browser = Browser(tmp_path_factory.mktemp("chromium"), artifacts / "chromedriver.log")
    try:
        browser.log_in(label_studio)
        yield browser
    finally:
        browser.close()
