"""Calls to Label Studio's API, for which a key is needed. Both kinds of token work: legacy and personal (JWT)."""

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import httpx
from label_studio_sdk import LabelStudio
from label_studio_sdk.core.api_error import ApiError
from label_studio_sdk.core.parse_error import ParsingError

from backend.errors import LabelStudioUnavailable, UnknownProject
from backend.labelstudio import wire

_TIMEOUT_S = 60.0
_TASKS_PER_PAGE = 100
# tasks with annotations, also skipped ones; other tasks are left out, since each brings its predictions along
_ANNOTATED = {
    "filters": {
        "conjunction": "or",
        "items": [
            {"filter": f"filter:tasks:{count}", "operator": "greater", "type": "Number", "value": 0}
            for count in ("total_annotations", "cancelled_annotations")
        ],
    },
    "ordering": ["tasks:id"],  # a task created meanwhile then moves none of the others to another page
}


class LabelStudioClient:
    """One Label Studio. Close it, or use it in a `with`.

    Every method raises LabelStudioUnavailable, with the URL and Label Studio's own words, if it does not answer or
    refuses; InvalidRequest if its answer does not have the shape that 1.23 gives it.
    """

    def __init__(self, url: str, api_key: str) -> None:
        """Nothing is sent yet. Raises LabelStudioUnavailable for a personal token that has expired."""
        self.url = url.rstrip("/")
        self._http = httpx.Client(timeout=_TIMEOUT_S, follow_redirects=True)
        with self._asking():
            # with the slash, or the SDK forgets a path prefix when it refreshes a token
            self._api = LabelStudio(base_url=f"{self.url}/", api_key=api_key, httpx_client=self._http)  # type: ignore[no-untyped-call]

    def __enter__(self) -> "LabelStudioClient":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def project(self, project_id: int) -> wire.ProjectPayload:
        """Raises UnknownProject."""
        with self._asking():
            try:
                found = self._api.projects.get(project_id)
            except ApiError as error:
                if error.status_code == 404:
                    raise UnknownProject(
                        f"Label Studio at {self.url} shows no project {project_id} to this key"
                    ) from error
                raise
        return wire.parse_project(_json_of(found))

    def annotated_tasks(self, project_id: int) -> Iterator[wire.AnnotatedTask]:
        """All annotations of a project, skipped tasks' too, page by page. Raises UnknownProject before the first."""
        self.project(project_id)  # the SDK's pager takes a missing project for one without tasks
        with self._asking():
            tasks: Iterable[Any] = self._api.tasks.list(
                project=project_id,
                fields="all",
                page_size=_TASKS_PER_PAGE,
                query=json.dumps(_ANNOTATED),
                resolve_uri=False,  # the texts as webhooks send them
            )
            for task in tasks:
                yield from wire.parse_annotated_task(_json_of(task))

    def has_annotation(self, annotation_id: int) -> bool:
        """Whether it still exists."""
        with self._asking():
            try:
                self._api.annotations.get(annotation_id)
            except ApiError as error:
                if error.status_code == 404:
                    return False
                raise
        return True

    @contextmanager
    def _asking(self) -> Iterator[None]:
        try:
            yield
        except (ApiError, ParsingError) as error:
            if error.status_code is not None and error.status_code < 400:
                raise LabelStudioUnavailable(
                    f"what answers at {self.url} is not Label Studio: {_detail(error)}"
                ) from error
            raise LabelStudioUnavailable(
                f"Label Studio at {self.url} refuses with {error.status_code}: {_detail(error)}"
            ) from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise LabelStudioUnavailable(f"Label Studio at {self.url} does not answer: {error}") from error
        except ValueError as error:  # not JSON, or not a token's JSON
            raise LabelStudioUnavailable(f"what answers at {self.url} is not Label Studio: {error}") from error


def _json_of(model: Any) -> Any:
    """The JSON of an answer, from what the SDK made of it."""
    return model.model_dump(mode="json")


def _detail(error: ApiError | ParsingError) -> str:
    # not str(error): that holds all headers of the answer
    detail = error.body.get("detail", error.body) if isinstance(error.body, dict) else error.body
    return str(detail)[:300]
