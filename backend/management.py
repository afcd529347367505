"""What people do by hand, over HTTP or on the command line: list, promote and roll back versions, and forget."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from backend.errors import NothingToForget, UnknownProject
from backend.learning.annotations import AnnotatedText
from backend.learning.example_store import ExampleStore
from backend.learning.registry import Registry, VersionInfo
from backend.serving.cache import PredictionCache, cache_key

_SHOWN_PROJECTS = 10
_SHOWN_CHARS = 40
_DECODINGS = ("exact", "sequential", "generate")


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to forget: all annotations of a task, or one annotation. Exactly one of the two is given."""

    task_id: int | None
    annotation_id: int | None

    def __str__(self) -> str:
        return f"task {self.task_id}" if self.annotation_id is None else f"annotation {self.annotation_id}"


@dataclass(frozen=True, slots=True)
class Removed:
    """What was forgotten in a project."""

    project: str
    annotation_ids: tuple[int, ...]
    predictions: int  # removed from the cache
    # of a task or an annotation: those trained on it, themselves or through an ancestor, oldest first; of a project:
    # all of them, which are deleted
    versions: tuple[str, ...]


class Management:
    """Thread-safe."""

    def __init__(self, examples: ExampleStore, registry: Registry, cache: PredictionCache) -> None:
        self._examples = examples
        self._registry = registry
        self._cache = cache

    def project(self, name: str) -> str:
        """The key of the project that a person names by its key or by its id. Raises UnknownProject."""
        trained = self._registry.projects()
        if name in trained:  # the store need not be reachable
            return name
        known = {project.key: project.title for project in self._examples.projects()}
        known.update({key: "" for key in trained if key not in known})
        found = [key for key in known if name in (key, key.partition(".")[0])]
        if name in known or len(found) == 1:
            return name if name in known else found[0]
        there = _listed(known)
        if found:
            raise UnknownProject(f"project {name!r} is one of {', '.join(sorted(found))}: give its key")
        raise UnknownProject(f"project {name!r} is not known here; there are: {there}")

    def projects(self) -> list[str]:
        """The keys of all known projects."""
        return sorted({*self._registry.projects(), *(project.key for project in self._examples.projects())})

    def current(self, project: str) -> str:
        """The project's current version."""
        return self._registry.current(project) or self._registry.base_version

    def version_names(self) -> list[str]:
        """The base version, and those of all projects that passed the gate."""
        registry = self._registry
        return [
            registry.base_version,
            *(
                info.version
                for project in registry.projects()
                for info in registry.versions(project)
                if info.status == "published"
            ),
        ]

    def versions(self, project: str) -> tuple[VersionInfo, ...]:
        """All versions of a project, also rejected ones; oldest first."""
        return self._registry.versions(project)

    def promote(self, project: str, version: str) -> str:
        """Make a version the current one; returns it. Raises UnknownVersion, CorruptVersion."""
        self._registry.promote(project, version)
        return self.current(project)

    def rollback(self, project: str) -> str:
        """Make the previous version the current one; returns it. Raises NothingToRollBack."""
        return self._registry.rollback(project)

    def forget(self, wanted: Wanted, project: str | None = None) -> tuple[Removed, ...]:
        """Remove it from a project, or from all, with the cached predictions of its texts.

        Versions that were trained on it stay, and are listed in the result. Raises NothingToForget.
        """
        ids = {"task_id": wanted.task_id, "annotation_id": wanted.annotation_id}
        holders = self._examples.find(**ids)
        seen = {key: self._versions_that_saw(key, wanted) for key in {*holders, *self._registry.projects()}}
        projects = sorted({*holders, *(key for key, versions in seen.items() if versions)})
        if project is not None:
            projects = [key for key in projects if key == project]
        if not projects:
            where = "any project" if project is None else f"project {project}"
            raise NothingToForget(f"{where} has no example of {wanted}, and no version was trained on it")
        removed = []
        for key in projects:
            forgotten = self._examples.forget(key, **ids)
            count = self._forget_predictions(key, forgotten.texts)
            removed.append(Removed(key, forgotten.annotation_ids, count, seen[key]))
        self._examples.compact()
        return tuple(removed)

    def forget_project(self, project: str) -> Removed:
        """Delete all that is kept of a project: annotations, texts, params, their cached predictions, its versions."""
        texts = self._examples.texts(project)
        annotation_ids = tuple(annotation.id for annotation in self._examples.annotations(project))
        count = self._forget_predictions(project, texts)
        self._examples.delete_project(project)
        versions = self._registry.remove_project(project)
        self._examples.compact()
        return Removed(project, annotation_ids, count, versions)

    def remove_version(self, project: str, version: str) -> None:
        """Delete a version that is not the current one. Raises UnknownVersion, VersionInUse."""
        self._registry.remove_version(project, version)

    def _versions_that_saw(self, project: str, wanted: Wanted) -> tuple[str, ...]:
        seen: list[str] = []
        for info in self._registry.versions(project):  # parents come before their children
            trained_on = any(
                wanted.task_id == task_id or wanted.annotation_id == annotation_id
                for task_id, annotation_id in info.examples
            )
            if trained_on or info.parent in seen:
                seen.append(info.version)
        return tuple(seen)

    def _forget_predictions(self, project: str, texts: Sequence[AnnotatedText]) -> int:
        known = self._examples.project(project)
        words = {} if known is None else {control.control: control.labels.words for control in known.controls}
        versions = [self._registry.base_version, *(info.version for info in self._registry.versions(project))]
        keys = {
            cache_key(version, decoding, labels, text.passage.text, text.passage.breaks)
            for text in texts
            for labels in {words.get(text.control, ()), text.labels}
            for version in versions
            for decoding in _DECODINGS
        }
        return self._cache.remove_many(sorted(keys))


def _listed(titles: Mapping[str, str]) -> str:
    """Projects by key, for an error message: a few, with their titles quoted and cut."""
    shown = [f"{key} ({title[:_SHOWN_CHARS]!r})" if title else key for key, title in sorted(titles.items())]
    more = f" and {len(shown) - _SHOWN_PROJECTS} more" if len(shown) > _SHOWN_PROJECTS else ""
    return (", ".join(shown[:_SHOWN_PROJECTS]) or "none") + more
