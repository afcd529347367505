"""Label Studio as its own web page talks to it: a session login and the REST API."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import requests

Json = Any


@dataclass(frozen=True, slots=True)
class Account:
    """A user of Label Studio."""

    email: str
    password: str


class LabelStudio:
    """A logged-in session. Raises AssertionError with Label Studio's message when it refuses a request."""

    def __init__(self, url: str, account: Account) -> None:
        self.url = url
        self.account = account
        self._token: str | None = None
        self._session = requests.Session()
        self._session.get(f"{url}/user/login/", timeout=30)
        answer = self._session.post(
            f"{url}/user/login/",
            data={
                "email": account.email,
                "password": account.password,
                "csrfmiddlewaretoken": self._session.cookies["csrftoken"],
            },
            allow_redirects=False,
            timeout=30,
        )
        assert answer.status_code == 302, f"login answered {answer.status_code}"
        self._session.headers["X-CSRFToken"] = self._session.cookies["csrftoken"]

    def close(self) -> None:
        """End the session."""
        self._session.close()

    def call(self, method: str, path: str, body: Json = None, timeout_s: float = 150) -> Json:
        """The answer of an API call."""
        answer = self._session.request(method, self.url + path, json=body, timeout=timeout_s)
        assert answer.ok, f"{method} {path} answered {answer.status_code}: {answer.text[:1000]}"
        return answer.json() if answer.content else None

    def personal_access_token(self) -> str:
        """A personal access token, created once: Label Studio refuses a second while the first is valid."""
        if self._token is None:
            self._token = str(self.call("POST", "/api/token/", {})["token"])
        return self._token

    def legacy_token(self) -> str:
        """A legacy token, after allowing such tokens: a new Label Studio refuses them."""
        self.call("POST", "/api/jwt/settings", {"api_tokens_enabled": True, "legacy_api_tokens_enabled": True})
        return str(self.call("GET", "/api/current-user/token")["token"])

    def project_key(self, project: int) -> str:
        """The project's key in ML calls: "<id>.<created timestamp>"."""
        created_at = str(self.call("GET", f"/api/projects/{project}")["created_at"])
        created = datetime.fromisoformat(created_at.replace("Z", "+00:00"))  # Python 3.10 does not read the Z
        return f"{project}.{int(created.timestamp())}"

    def create_project(self, title: str, label_config: str, **settings: Json) -> int:
        """The id of a new project."""
        project = self.call("POST", "/api/projects", {"title": title, "label_config": label_config, **settings})
        return int(project["id"])

    def connect(self, project: int, backend_url: str, *, interactive: bool = False) -> Json:
        """Do what "Connect Model" in the project's settings does. Label Studio's description of the backend."""
        backend = {"project": project, "url": backend_url, "title": "GNER", "is_interactive": interactive}
        return self.call("POST", "/api/ml", backend)

    def backend(self, project: int) -> Json:
        """Label Studio's description of the project's backend."""
        (backend,) = self.call("GET", f"/api/ml?project={project}")
        return backend

    def start_training(self, project: int) -> None:
        """Do what the button "Start Training" does."""
        self.call("POST", f"/api/ml/{self.backend(project)['id']}/train", {})

    def import_tasks(self, project: int, tasks: list[Json]) -> list[int]:
        """The ids of new tasks with this data, in the same order."""
        answer = self.call("POST", f"/api/projects/{project}/import?return_task_ids=true", tasks)
        assert answer["task_count"] == len(tasks), answer
        return [int(task_id) for task_id in answer["task_ids"]]

    def retrieve_predictions(self, project: int) -> Json:
        """Run the Data Manager's action "Retrieve Predictions" on all tasks."""
        selection = {"selectedItems": {"all": True, "excluded": []}, "project": str(project)}
        return self.call("POST", f"/api/dm/actions?id=retrieve_tasks_predictions&project={project}", selection)

    def tasks(self, project: int) -> list[Json]:
        """All tasks with their data and stored predictions, as the Data Manager lists them."""
        return list(self.call("GET", f"/api/tasks?project={project}&fields=all&page_size=1000")["tasks"])

    def annotate(self, task: int, result: list[Json]) -> Json:
        """Submit an annotation with these regions. Label Studio's description of it."""
        return self.call("POST", f"/api/tasks/{task}/annotations", {"result": result, "lead_time": 1.0})
