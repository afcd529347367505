"""Pages of other sites cannot make a browser change or read anything here."""

import pytest
from flask import Blueprint, Flask
from flask.testing import FlaskClient

from backend.labelstudio.routes import create_routes
from backend.labelstudio.routes.access import json_body
from backend.labelstudio.routes.browsers import is_local
from backend.labelstudio.routes.login import Credentials
from backend.metrics import Metrics


def client_of(login: tuple[str, str] | None = None, allowed: tuple[str, ...] = ()) -> FlaskClient:
    part = Blueprint("part", __name__)
    part.get("/versions", endpoint="versions")(lambda: {"versions": []})
    part.post("/promote", endpoint="promote")(lambda: {"asked": json_body()})
    app = Flask("test")
    app.register_blueprint(create_routes([part], Metrics(), Credentials(login), allowed))
    return app.test_client()


def status(client: FlaskClient, method: str = "POST", **headers: str) -> int:
    sent = {name.replace("_", "-"): value for name, value in {"Host": "localhost:9090", **headers}.items()}
    path = "/promote" if method == "POST" else "/versions"
    return client.open(path, method=method, headers=sent, json={} if method == "POST" else None).status_code


def test_what_no_browser_sent_is_answered_under_every_name() -> None:
    assert status(client_of(), Host="gner.example.org") == 200
    assert status(client_of(), "GET", Host="gner.example.org") == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "http://localhost:8080"},
        {"Origin": "null"},
        {"Origin": "http://[broken"},
        {"Origin": "http://evil.example", "Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site"},
        {"Origin": "http://rebound.example:9090", "Host": "rebound.example:9090", "Sec_Fetch_Site": "same-origin"},
    ],
)
def test_a_page_of_another_site_changes_nothing(headers: dict[str, str]) -> None:
    assert status(client_of(), **headers) == 403


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://localhost:9090", "Sec_Fetch_Site": "same-origin"},
        {"Origin": "http://LOCALHOST:9090"},
        {"Origin": "http://192.0.2.1:9090", "Host": "192.0.2.1:9090"},
        {"Origin": "http://[::1]:9090", "Host": "[::1]:9090"},
        {"Origin": "http://gner:9090", "Host": "gner:9090"},
        {"Sec_Fetch_Site": "none"},
    ],
)
def test_our_own_pages_do(headers: dict[str, str]) -> None:
    assert status(client_of(), **headers) == 200


def test_a_public_name_must_be_known_or_a_password_asked() -> None:
    own = {"Host": "gner.example.org", "Sec_Fetch_Site": "same-origin"}
    assert status(client_of(), "GET", **own) == 403
    assert status(client_of(allowed=("gner.example.org",)), "GET", **own) == 200
    assert status(client_of(login=("ada", "x")), "GET", **own) == 401


def test_behind_a_proxy_the_allowed_name_may_differ_from_the_host() -> None:
    sent = {"Host": "gner:9090", "Origin": "https://gner.example.org"}
    assert status(client_of(), **sent) == 403
    assert status(client_of(allowed=("gner.example.org",)), **sent) == 200


def test_links_from_other_sites_may_be_followed() -> None:
    assert status(client_of(), "GET", Sec_Fetch_Site="cross-site") == 200


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "", "application/jso"])
def test_only_json_is_read(content_type: str) -> None:
    answer = client_of().post("/promote", data=b'{"project": 1}', content_type=content_type or None)
    assert answer.status_code == 415
    assert "application/json" in answer.get_json()["detail"]


def test_every_answer_is_data_for_browsers() -> None:
    client = client_of()
    for answer in (client.get("/versions"), client.get("/nowhere"), client.post("/promote", data=b"{")):
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
        assert answer.headers["X-Frame-Options"] == "DENY"


@pytest.mark.parametrize(
    "name", ["localhost", "gner", "a.localhost", "box.lan", "10.0.0.1", "::1", "host.docker.internal"]
)
def test_local_names(name: str) -> None:
    assert is_local(name, ())


@pytest.mark.parametrize("name", ["example.org", "localhost.example.org", "10.0.0.1.nip.io", "lan.example"])
def test_public_names(name: str) -> None:
    assert not is_local(name, ())
