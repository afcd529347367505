"""Who is let in: basic auth, the webhook secret, and how fast one may guess."""

import base64
from typing import Any

import pytest
from flask import Blueprint, Flask
from flask.testing import FlaskClient

from backend.labelstudio.routes import create_routes
from backend.labelstudio.routes.access import json_body
from backend.labelstudio.routes.login import SECRET_HEADER, Credentials, Guesses
from backend.metrics import Metrics

LOGIN = ("ada", "pä:ss")
SECRET = "s3cret-of-webhooks"


def stored(secret: str | None = None) -> dict[str, Any]:
    return {"status": "stored", "has_secret": secret is not None}


def client_of(credentials: Credentials) -> FlaskClient:
    part = Blueprint("part", __name__)
    part.get("/health", endpoint="health")(lambda: {"status": "UP"})
    part.get("/versions", endpoint="versions")(lambda: {"versions": []})
    for rule in ("/webhook", "/webhook/<secret>"):
        part.add_url_rule(rule, "webhook", stored, methods=["POST"])
    app = Flask("test")
    app.register_blueprint(create_routes([part], Metrics(), credentials))
    return app.test_client()


def basic(user: str, password: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}


def status(client: FlaskClient, path: str, method: str = "GET", **headers: str) -> int:
    return client.open(path, method=method, headers=headers).status_code


def test_without_credentials_all_is_open() -> None:
    client = client_of(Credentials(None))
    assert status(client, "/versions") == status(client, "/webhook", "POST") == 200


def test_a_secret_opens_the_webhook_and_nothing_else() -> None:
    client = client_of(Credentials(LOGIN, SECRET))
    assert client.post(f"/webhook/{SECRET}").status_code == 200
    assert client.post("/webhook", headers={SECRET_HEADER: SECRET}).status_code == 200
    assert client.post("/webhook", headers=basic(*LOGIN)).status_code == 200
    assert client.post("/webhook").status_code == 401
    assert client.post("/webhook/wrong").status_code == 401
    assert client.get("/versions", headers={SECRET_HEADER: SECRET}).status_code == 401
    assert client.get("/versions", headers=basic(*LOGIN)).status_code == 200


def test_a_secret_alone_closes_the_webhook_and_nothing_else() -> None:
    client = client_of(Credentials(None, SECRET))
    answer = client.post("/webhook")
    assert answer.status_code == 401
    assert "/webhook/SECRET" in answer.get_json()["detail"]
    assert client.post(f"/webhook/{SECRET}").status_code == 200
    assert client.get("/versions").status_code == 200


def test_without_a_secret_its_path_opens_nothing() -> None:
    client = client_of(Credentials(LOGIN))
    assert client.post("/webhook/").status_code == 404
    assert client.post("/webhook/x").status_code == 401
    assert client.post("/webhook", headers={SECRET_HEADER: ""}).status_code == 401


@pytest.mark.parametrize("given", ["wrong", "\udcff", "ключ", "x" * 5000])
def test_a_wrong_password_is_a_401_whatever_its_signs(given: str) -> None:
    client = client_of(Credentials(LOGIN, SECRET))
    raw = base64.b64encode(f"ada:{given}".encode("utf-8", "surrogateescape")).decode()
    assert client.get("/versions", headers={"Authorization": f"Basic {raw}"}).status_code == 401


def test_the_secret_is_in_no_answer_and_in_no_log(caplog: pytest.LogCaptureFixture) -> None:
    client = client_of(Credentials(LOGIN, SECRET))
    answers = [client.get(f"/webhook/{SECRET}"), client.post(f"/webhook/{SECRET}x"), client.get(f"/webhook/{SECRET}/x")]
    said = "".join(answer.get_data(as_text=True) for answer in answers) + caplog.text
    assert [answer.status_code for answer in answers] == [405, 401, 404]
    assert SECRET not in said


def test_a_body_of_another_type_does_not_tell_the_secret() -> None:
    part = Blueprint("part", __name__)
    part.add_url_rule(
        "/webhook/<secret>", "webhook", lambda secret: {"read": json_body(), "by": secret}, methods=["POST"]
    )
    app = Flask("test")
    app.register_blueprint(create_routes([part], Metrics(), Credentials(LOGIN, SECRET)))
    answer = app.test_client().post(f"/webhook/{SECRET}", data=b"{}", content_type="text/plain")
    assert answer.status_code == 415
    assert SECRET not in answer.get_data(as_text=True)


def test_after_ten_wrong_guesses_an_address_waits() -> None:
    client = client_of(Credentials(LOGIN))
    found = [client.get("/versions", headers=basic("ada", f"guess {n}")).status_code for n in range(40)]
    assert found[:10] == [401] * 10
    # at one guess a second, the machine would have to be asleep to allow ten more
    assert found.count(401) < 20
    answer = client.get("/versions", headers=basic(*LOGIN))
    assert answer.status_code == 429
    assert int(answer.headers["Retry-After"]) >= 1
    other: Any = {"REMOTE_ADDR": "192.0.2.7"}
    assert client.get("/versions", headers=basic(*LOGIN), environ_base=other).status_code == 200
    assert client.get("/health").status_code == 200


def test_requests_without_any_password_are_no_guesses() -> None:
    client = client_of(Credentials(LOGIN))
    assert {client.get("/versions").status_code for _ in range(40)} == {401}
    assert client.get("/versions", headers=basic(*LOGIN)).status_code == 200


def test_guesses_come_back_with_time_and_old_addresses_are_forgotten() -> None:
    now_s = 100.0
    guesses = Guesses(lambda: now_s)
    for _ in range(10):
        assert guesses.wait_s("a") == 0
        guesses.note_wrong("a")
    assert guesses.wait_s("a") == pytest.approx(1.0)
    now_s += 0.5
    assert guesses.wait_s("a") == pytest.approx(0.5)
    now_s += 0.5
    assert guesses.wait_s("a") == 0
    guesses.note_wrong("a")
    assert guesses.wait_s("a") == pytest.approx(1.0)
    for number in range(10_000):
        guesses.note_wrong(str(number))
    assert guesses.wait_s("a") == 0
