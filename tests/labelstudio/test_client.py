"""The API client against a server that answers as Label Studio 1.23.2 does; tests/e2e asks a real one."""

import base64
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from backend.errors import LabelStudioUnavailable, UnknownProject
from backend.labelstudio import wire
from backend.labelstudio.client import LabelStudioClient

LEGACY = "0123456789abcdef"
CONFIG = '<View><Labels name="label" toName="text"><Label value="X"/></Labels><Text name="text" value="$text"/></View>'
PROJECT = {"id": 2, "title": "News", "label_config": CONFIG, "created_at": "2026-11-22T07:43:57.008477Z", "token": "t"}


def jwt(kind: str, expires_s: float) -> str:
    """A token as Label Studio's personal ones; nobody checks its signature."""

    def part(value: dict[str, Any]) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")

    return ".".join([part({"alg": "HS256", "typ": "JWT"}), part({"token_type": kind, "exp": int(expires_s)}), "c2ln"])


REFRESH, ACCESS = jwt("refresh", time.time() + 10**7), jwt("access", time.time() + 300)


def task(task_id: int, *annotations: dict[str, Any], predictions: tuple[dict[str, Any], ...] = ()) -> dict[str, Any]:
    """As GET /api/tasks lists one with fields=all."""
    return {
        "id": task_id,
        "project": 2,
        "data": {"text": f"Text {task_id} 😀", "n": task_id},
        "created_at": "2026-11-22T13:01:09.833834Z",
        "annotations": list(annotations),
        "predictions": list(predictions),
        "drafts": [],
    }


def annotation(annotation_id: int, task_id: int, **fields: Any) -> dict[str, Any]:
    return {
        "id": annotation_id,
        "task": task_id,
        "project": 2,
        "completed_by": 1,
        "result": [{"id": "r1", "from_name": "label", "value": {"start": 0, "end": 1}, "origin": "manual"}],
        "was_cancelled": False,
        "ground_truth": False,
        "created_at": "2026-11-22T13:01:10.127643Z",
        "updated_at": "2026-11-22T13:01:10.127687Z",
        "parent_prediction": None,
        **fields,
    }


@dataclass
class FakeLabelStudio:
    """One project, the endpoints that we ask, and what was asked."""

    url: str = ""
    prefix: str = ""
    tasks: list[dict[str, Any]] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    queries: list[dict[str, str]] = field(default_factory=list)
    fails_with: tuple[int, bytes] | None = None

    def answer(self, method: str, target: str, authorization: str, body: bytes) -> tuple[int, Any]:
        parts = urlsplit(target)
        query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        path = parts.path.removeprefix(self.prefix) if parts.path.startswith(self.prefix) else ""
        self.requests.append(f"{method} {path}")
        self.queries.append(query)
        if self.fails_with is not None:
            return self.fails_with
        if path == "/api/token/refresh/":
            is_ours = json.loads(body) == {"refresh": REFRESH}
            return (200, {"access": ACCESS}) if is_ours else (401, {"detail": "Token is invalid or expired"})
        if authorization not in (f"Token {LEGACY}", f"Bearer {ACCESS}"):
            return 401, {"status_code": 401, "detail": "Invalid token."}
        if path == "/api/projects/2/":
            return 200, PROJECT
        if path == "/api/tasks/" and query["project"] == "2":
            size, page = int(query["page_size"]), int(query.get("page", 1))
            found = self.tasks[(page - 1) * size : page * size]
            if page == 1 or found:
                return 200, {"tasks": found, "total": len(self.tasks)}
            return 404, {"status_code": 404, "detail": "Invalid page."}
        known = {f"/api/annotations/{kept['id']}/": kept for listed in self.tasks for kept in listed["annotations"]}
        return (200, known[path]) if path in known else (404, {"status_code": 404, "detail": "Not found."})


@pytest.fixture
def label_studio() -> Iterator[FakeLabelStudio]:
    fake = FakeLabelStudio()

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, value = fake.answer(self.command, self.path, self.headers.get("Authorization", ""), body)
            content = value if isinstance(value, bytes) else json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = _answer  # noqa: N815

        def log_message(self, *_: Any) -> None:
            """Nothing on the terminal."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        fake.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield fake
        server.shutdown()
        thread.join()


# what the SDK does when it refreshes a token
refreshes = pytest.mark.filterwarnings("ignore:The `parse_obj` method is deprecated")


@refreshes
@pytest.mark.parametrize("api_key", [LEGACY, REFRESH], ids=["legacy", "personal"])
@pytest.mark.parametrize("prefix", ["", "/label/studio"])
@pytest.mark.parametrize("slash", ["", "/"])
def test_both_kinds_of_token_open_a_project(
    label_studio: FakeLabelStudio, api_key: str, prefix: str, slash: str
) -> None:
    label_studio.prefix = prefix
    with LabelStudioClient(label_studio.url + prefix + slash, api_key) as client:
        project = client.project(2)
    assert project == wire.ProjectPayload(id=2, key="2.1795333437", title="News", label_config=CONFIG, updated_at_us=0)


def test_annotations_with_their_tasks(label_studio: FakeLabelStudio) -> None:
    prediction = {"id": 5, "model_version": "v1", "result": [], "score": 0.5, "task": 11, "project": 2}
    label_studio.tasks = [
        task(10, annotation(1, 10), annotation(2, 10, was_cancelled=True)),
        task(11, annotation(3, 11, ground_truth=True, parent_prediction=5), predictions=(prediction,)),
    ]
    with LabelStudioClient(label_studio.url, LEGACY) as client:
        first, skipped, from_prediction = client.annotated_tasks(2)
    assert first == wire.AnnotatedTask(
        wire.AnnotationPayload(
            id=1,
            task_id=10,
            result=({"id": "r1", "from_name": "label", "value": {"start": 0, "end": 1}, "origin": "manual"},),
            was_cancelled=False,
            ground_truth=False,
            updated_at_us=1795352470127687,
            prediction={},
        ),
        wire.Task(10, {"text": "Text 10 😀", "n": 10}),
    )
    assert (skipped.annotation.id, skipped.annotation.was_cancelled) == (2, True)
    assert from_prediction.annotation.ground_truth
    assert from_prediction.annotation.prediction["model_version"] == "v1"
    asked = label_studio.queries[-1]
    assert asked["fields"] == "all"
    assert "cancelled_annotations" in asked["query"]


@pytest.mark.parametrize("num_tasks", [0, 1, 99, 100, 101, 200, 250])
def test_all_pages_are_read(label_studio: FakeLabelStudio, num_tasks: int) -> None:
    label_studio.tasks = [task(task_id, annotation(task_id, task_id)) for task_id in range(num_tasks)]
    with LabelStudioClient(label_studio.url, LEGACY) as client:
        assert [item.annotation.id for item in client.annotated_tasks(2)] == list(range(num_tasks))


def test_whether_an_annotation_still_exists(label_studio: FakeLabelStudio) -> None:
    label_studio.tasks = [task(10, annotation(1, 10))]
    with LabelStudioClient(label_studio.url, LEGACY) as client:
        assert client.has_annotation(1)
        assert not client.has_annotation(2)


def test_a_project_that_is_not_there(label_studio: FakeLabelStudio) -> None:
    with LabelStudioClient(label_studio.url, LEGACY) as client:
        for ask in (lambda: client.project(3), lambda: list(client.annotated_tasks(3))):
            with pytest.raises(UnknownProject, match=f"Label Studio at {label_studio.url} shows no project 3"):
                ask()


@refreshes
@pytest.mark.parametrize(
    ("api_key", "said"),
    [
        pytest.param("wrong", "refuses with 401: Invalid token.", id="unknown"),
        pytest.param(
            jwt("refresh", time.time() + 2 * 10**7),
            "refuses with 401: Token is invalid or expired",
            id="unknown personal",
        ),
        pytest.param(jwt("refresh", time.time() - 10), "refuses with 401: API key has expired", id="expired"),
    ],
)
def test_a_key_that_is_refused(label_studio: FakeLabelStudio, api_key: str, said: str) -> None:
    def ask() -> None:
        with LabelStudioClient(label_studio.url, api_key) as client:
            client.project(2)

    with pytest.raises(LabelStudioUnavailable) as refused:
        ask()
    assert str(refused.value).startswith(f"Label Studio at {label_studio.url} {said}")
    assert api_key not in str(refused.value)


@refreshes
@pytest.mark.parametrize("api_key", [LEGACY, REFRESH], ids=["legacy", "personal"])
@pytest.mark.parametrize(
    ("status", "content", "said"),
    [
        (200, b"<html>welcome</html>", "is not Label Studio"),
        (403, b'{"detail": "not for you"}', "refuses with 403: not for you"),
        (403, b"<html>not for you</html>", "<url>"),
        (400, b'["a list"]', "refuses with 400: ['a list']"),
    ],
)
def test_answers_of_something_else(
    label_studio: FakeLabelStudio, api_key: str, status: int, content: bytes, said: str
) -> None:
    label_studio.fails_with = (status, content)
    with LabelStudioClient(label_studio.url, api_key) as client, pytest.raises(LabelStudioUnavailable) as refused:
        client.project(2)
    assert said.replace("<url>", label_studio.url) in str(refused.value)


@pytest.mark.slow  # waits for the client's repeated tries
@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "localhost", "ftp://127.0.0.1"])
def test_nobody_there(url: str) -> None:
    with LabelStudioClient(url, LEGACY) as client, pytest.raises(LabelStudioUnavailable, match="does not answer"):
        client.project(2)


def test_an_error_in_the_middle_of_the_list(label_studio: FakeLabelStudio) -> None:
    label_studio.tasks = [task(task_id, annotation(task_id, task_id)) for task_id in range(150)]
    with LabelStudioClient(label_studio.url, LEGACY) as client:
        items = client.annotated_tasks(2)
        assert next(items).annotation.id == 0
        label_studio.fails_with = (403, b'{"detail": "no more"}')
        with pytest.raises(LabelStudioUnavailable, match="no more"):
            list(items)
