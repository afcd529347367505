"""The trained versions of every project on disk, and a pointer to the current one. A version is published atomically.

    MODEL_DIR/versions/<base version>/<project>/current.json
    MODEL_DIR/versions/<base version>/<project>/<version>/{adapter_model.safetensors, adapter_config.json, version.json}

Processes on several machines may share the folder. Names that begin with a dot are unfinished, and never read.
"""

import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import MISSING, Field, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from backend.engine.adapter_files import CONFIG_FILE, WEIGHTS_FILE
from backend.errors import CorruptVersion, NothingToRollBack, UnknownVersion, VersionInUse

log = logging.getLogger(__name__)

PUBLISHED = "published"
REJECTED = "rejected"

_VERSION_FILE = "version.json"
_POINTER_FILE = "current.json"
_LOCK_FILE = ".lock"
_INCOMING = ".incoming-"
# A killed training leaves its folder behind. No training takes this long.
_INCOMING_KEPT_S = 7 * 86_400
_VERSION_HEX_DIGITS = 10
_MAX_FILE_NAME = 200  # bytes; file systems allow 255
# A file that is younger than this could change again without a new modification time.
_TIMESTAMP_GRAIN_S = 2.0


@dataclass(frozen=True, slots=True)
class VersionInfo:
    """A trained version: what it is, its training data and its scores.

    `created_at` is ISO 8601 in UTC. `examples` and `held_out` are (task id, annotation id). `scores` are F1 and
    probabilities, 0..1. `adapter_sha256` is filled in by `Registry.publish`.
    """

    version: str
    project: str
    base: str
    parent: str  # a version of this project, or the base version
    created_at: str
    status: str  # PUBLISHED or REJECTED
    reason: str  # the gate's sentence
    examples: tuple[tuple[int, int], ...] = ()
    held_out: tuple[tuple[int, int], ...] = ()
    scores: dict[str, float] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    adapter_sha256: str = ""


@dataclass(frozen=True, slots=True)
class ParentVersion:
    """The version that a training continues from, and the folder with its adapter."""

    info: VersionInfo
    folder: Path


@dataclass(frozen=True, slots=True)
class _Pointer:
    """The current version and those before it, the latest last. The base version is ""."""

    current: str = ""
    history: tuple[str, ...] = ()


def version_name(base_name: str, project: str, content_digest: str) -> str:
    """`gner-mini-p2-0123456789`: the name differs if the project or the content does.

    `content_digest` is a digest of the weights (`sha256_of`), or of all that they depend on.
    """
    digest = hashlib.sha256("\n".join([base_name, project, content_digest]).encode("utf-8", "surrogatepass"))
    readable = re.sub(r"[^\w.-]+", "-", base_name).lstrip(".")
    project_id = re.sub(r"[^\w-]+", "-", project.split(".")[0])
    return f"{readable}-p{project_id}-{digest.hexdigest()[:_VERSION_HEX_DIGITS]}"


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


class Registry:
    """All versions that were trained from one base version. Thread-safe, and safe between processes."""

    def __init__(self, model_dir: Path, base_version: str) -> None:
        self.base_version = base_version
        self._root = model_dir.resolve() / "versions" / _file_name(base_version)
        self._project_of: dict[str, str] = {}
        # adapter files whose digest was correct: path -> (size, modification time)
        self._verified: dict[Path, tuple[int, int]] = {}

    # --- reading

    def projects(self) -> tuple[str, ...]:
        """The keys of all projects with a folder here, sorted."""
        return tuple(sorted(unquote(path.name, errors="surrogateescape") for path in _folders(self._root)))

    def of_other_bases(self) -> dict[str, int]:
        """How many versions were trained from each other base version. They cannot be used with this one."""
        others = [folder for folder in _folders(self._root.parent) if folder != self._root]
        counted = {unquote(base.name): sum(len(_folders(project)) for project in _folders(base)) for base in others}
        return {base: number for base, number in sorted(counted.items()) if number}

    def versions(self, project: str) -> tuple[VersionInfo, ...]:
        """Oldest first, rejected ones too. A folder that cannot be read is skipped with a log line."""
        found = []
        for path in _folders(self._project_folder(project)):
            try:
                found.append(_read_info(path))
            except CorruptVersion as error:
                log.warning("skipped: %s", error)
        return tuple(sorted(found, key=lambda info: (info.created_at, info.version)))

    def info(self, project: str, version: str) -> VersionInfo:
        """Raises UnknownVersion, and CorruptVersion if its description cannot be read."""
        return _read_info(self._known_folder(project, version))

    def folder(self, project: str, version: str) -> Path:
        """The folder of an intact version's adapter.

        Raises UnknownVersion, and CorruptVersion if a file is missing or the adapter is not the published one. After a
        successful check, the file is read again only when it has changed.
        """
        folder = self._known_folder(project, version)
        expected = _read_info(folder).adapter_sha256
        adapter = folder / WEIGHTS_FILE
        try:
            before = adapter.stat()
            (folder / CONFIG_FILE).stat()
            stamp = (before.st_size, before.st_mtime_ns)
            if self._verified.get(adapter) == stamp:
                return folder
            read_at_s = time.time()
            actual = sha256_of(adapter)
        except OSError as error:
            raise CorruptVersion(f"version {version!r} of project {project!r} is incomplete: {error}") from error
        if actual != expected:
            raise CorruptVersion(
                f"version {version!r} of project {project!r} is corrupt: the SHA-256 of {adapter} is {actual}, "
                f"expected {expected}"
            )
        if read_at_s - before.st_mtime > _TIMESTAMP_GRAIN_S:
            self._verified[adapter] = stamp
        return folder

    def project_of(self, version: str) -> str | None:
        """The key of the project that has this version; None for the base and for an unknown version."""
        known = self._project_of.get(version)
        if known is None or not self._version_folder(known, version).is_dir():
            known = next((key for key in self.projects() if self._version_folder(key, version).is_dir()), None)
            if known is not None:
                self._project_of[version] = known
        return known

    # --- the current version

    def current(self, project: str) -> str | None:
        """The current version; None: the base. Raises CorruptVersion if the pointer cannot be read."""
        return self._pointer(project).current or None

    def parent_of_next(self, project: str) -> ParentVersion | None:
        """The current version as a training continues from it; None: it starts from the base. Raises CorruptVersion."""
        current = self.current(project)
        if current is None:
            return None
        return ParentVersion(self.info(project, current), self.folder(project, current))

    def promote(self, project: str, version: str) -> None:
        """Make a version current; the name of the base version means the base.

        Raises UnknownVersion and CorruptVersion, and then leaves the pointer as it was.
        """
        if version == self.base_version:
            if self._project_folder(project).is_dir():
                self._point_to(project, "")
        else:
            self.folder(project, version)
            self._point_to(project, version)

    def rollback(self, project: str) -> str:
        """Make the version before the current one current again, and return its name. Damaged versions are skipped.

        Raises NothingToRollBack.
        """
        if self._pointer(project).history:
            with self._locked(project):
                pointer = self._pointer(project)
                history = list(pointer.history)
                while history:
                    earlier = history.pop()
                    if earlier != pointer.current and self._is_intact(project, earlier):
                        self._write_pointer(project, _Pointer(earlier, tuple(history)))
                        return earlier or self.base_version
        raise NothingToRollBack(
            f"project {project!r} has no earlier version to go back to; its version is "
            f"{self._pointer(project).current or self.base_version!r}"
        )

    # --- publishing

    @contextmanager
    def new_folder(self, project: str) -> Iterator[Path]:
        """An empty folder to train into, on the disk where it is published. It is removed if it was not published."""
        parent = self._project_folder(project)
        parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(parent)
        folder = parent / f"{_INCOMING}{uuid.uuid4().hex}"
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def publish(self, folder: Path, info: VersionInfo, *, promote: bool) -> None:
        """Move a folder of `new_folder`, with the adapter in it, to its place, then point to it if `promote`.

        A reader sees all of it or nothing, even after a loss of power. A name always means the same weights:
        publishing it again only changes its description, or repairs it. Raises CorruptVersion if the adapter is
        incomplete, or if the name exists with other weights.
        """
        assert info.base == self.base_version, f"{info.version} was trained from {info.base}, not {self.base_version}"
        for name in (WEIGHTS_FILE, CONFIG_FILE):
            if not (folder / name).is_file():
                raise CorruptVersion(f"version {info.version!r} cannot be published: {folder / name} is missing")
        info = replace(info, adapter_sha256=sha256_of(folder / WEIGHTS_FILE))
        _write_durably(folder / _VERSION_FILE, asdict(info))
        for path in folder.iterdir():
            _sync(path)
        _sync(folder)
        with self._locked(info.project):
            self._move_in(folder, info)
            _sync(self._project_folder(info.project))
        for parent in (self._root, *self._root.parents[:2]):
            _sync(parent)
        log.info("version %s of project %s is %s: %s", info.version, info.project, info.status, info.reason)
        if promote:
            self._point_to(info.project, info.version)

    def _move_in(self, folder: Path, info: VersionInfo) -> None:
        target = self._version_folder(info.project, info.version)
        if target.is_dir():
            if self._is_intact(info.project, info.version):
                published = _read_info(target).adapter_sha256
                if published != info.adapter_sha256:
                    raise CorruptVersion(
                        f"version {info.version!r} of project {info.project!r} exists already with other weights "
                        f"(SHA-256 {published}, not {info.adapter_sha256})"
                    )
                _write_durably(target / _VERSION_FILE, asdict(info))
                return
            # moved aside first: a reader must never see half of it under its name
            damaged = target.with_name(f"{_INCOMING}{uuid.uuid4().hex}")
            target.replace(damaged)
            folder.replace(target)
            shutil.rmtree(damaged, ignore_errors=True)
            return
        folder.replace(target)

    # --- removing

    def remove_version(self, project: str, version: str) -> None:
        """Delete a version that is not the current one. Raises UnknownVersion, VersionInUse."""
        folder = self._known_folder(project, version)
        with self._locked(project):
            pointer = self._pointer(project)
            if version == pointer.current:
                raise VersionInUse(
                    f"version {version!r} is the current one of project {project!r}; promote another first"
                )
            if version in pointer.history:
                history = tuple(earlier for earlier in pointer.history if earlier != version)
                self._write_pointer(project, _Pointer(pointer.current, history))
            _remove(folder)
        log.info("version %s of project %s is deleted", version, project)

    def remove_project(self, project: str) -> tuple[str, ...]:
        """Delete all versions of a project, of every base; returns their names. The project is served the base then."""
        removed: list[str] = []
        for base in _folders(self._root.parent):
            folder = base / _file_name(project)
            if folder.is_dir():
                removed += [unquote(version.name) for version in _folders(folder)]
                _remove(folder)
        log.info("%d versions of project %s are deleted", len(removed), project)
        return tuple(sorted(removed))

    # --- files

    def _project_folder(self, project: str) -> Path:
        return self._root / _file_name(project)

    def _version_folder(self, project: str, version: str) -> Path:
        return self._project_folder(project) / _file_name(version)

    def _known_folder(self, project: str, version: str) -> Path:
        folder = self._version_folder(project, version)
        if not folder.is_dir():
            known = [info.version for info in self.versions(project)]
            raise UnknownVersion(f"project {project!r} has no version {version!r}; it has {known}")
        return folder

    def _is_intact(self, project: str, version: str) -> bool:
        """Whether a version can be used; logs why not. The base, "", always can."""
        try:
            if version:
                self.folder(project, version)
        except (UnknownVersion, CorruptVersion) as error:
            log.warning("skipped: %s", error)
            return False
        return True

    def _pointer(self, project: str) -> _Pointer:
        path = self._project_folder(project) / _POINTER_FILE
        try:
            written = json.loads(path.read_text(encoding="utf-8"))
            current, history = written["current"], tuple(written["history"])
        except FileNotFoundError:
            return _Pointer()
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise CorruptVersion(
                f"the current version of project {project!r} cannot be read from {path}: {error}"
            ) from error
        if not all(isinstance(version, str) for version in (current, *history)):
            raise CorruptVersion(f"the current version of project {project!r} cannot be read from {path}: {written}")
        return _Pointer(current, history)

    def _point_to(self, project: str, version: str) -> None:
        with self._locked(project):
            try:
                pointer = self._pointer(project)
            except CorruptVersion as error:
                log.error("%s; the pointer is written anew, without its history", error)
                pointer = _Pointer()
            if version != pointer.current:
                self._write_pointer(project, _Pointer(version, (*pointer.history, pointer.current)))

    def _write_pointer(self, project: str, pointer: _Pointer) -> None:
        _write_durably(self._project_folder(project) / _POINTER_FILE, asdict(pointer))
        log.info("project %s uses version %s", project, pointer.current or self.base_version)

    @contextmanager
    def _locked(self, project: str) -> Iterator[None]:
        """Lock this project's versions against changes by other threads and processes."""
        with (self._project_folder(project) / _LOCK_FILE).open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _file_name(name: str) -> str:
    """Any text as a file name that does not begin with a dot. Project keys and versions stay as they are."""
    quoted = quote(name, safe="", errors="surrogatepass")
    if len(quoted) > _MAX_FILE_NAME:
        return hashlib.sha256(quoted.encode()).hexdigest()
    return "%2E" + quoted[1:] if quoted.startswith(".") else quoted or "%00"


def _folders(parent: Path) -> list[Path]:
    try:
        return [path for path in parent.iterdir() if path.is_dir() and not path.name.startswith(".")]
    except FileNotFoundError:
        return []


def _read_info(folder: Path) -> VersionInfo:
    path = folder / _VERSION_FILE
    try:
        written = json.loads(path.read_text(encoding="utf-8"))
        # a later release may have written more fields, an earlier one fewer
        known = {each.name: written[each.name] for each in fields(VersionInfo) if not _may_be_missing(each, written)}
        for name in known.keys() & {"examples", "held_out"}:
            known[name] = tuple((task, annotation) for task, annotation in known[name])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CorruptVersion(f"{path} does not describe a version: {type(error).__name__}: {error}") from error
    return VersionInfo(**known)


def _may_be_missing(described: "Field[Any]", written: Mapping[str, Any]) -> bool:
    has_default = described.default is not MISSING or described.default_factory is not MISSING
    return has_default and described.name not in written


def _write_durably(path: Path, content: dict[str, Any]) -> None:
    """Replace a JSON file so that a loss of power leaves the old file or the new one."""
    incoming = path.with_name(f"{_INCOMING}{uuid.uuid4().hex}.json")
    with incoming.open("w", encoding="utf-8") as file:
        json.dump(content, file, indent=2, ensure_ascii=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    incoming.replace(path)
    _sync(path.parent)


def _remove(folder: Path) -> None:
    """Delete a folder. A reader sees all of it or nothing."""
    doomed = folder.with_name(f"{_INCOMING}{uuid.uuid4().hex}")
    folder.replace(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def _sync(path: Path) -> None:
    """Flush a file's content, or a folder's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_abandoned(parent: Path) -> None:
    for path in parent.glob(f"{_INCOMING}*"):
        with suppress(FileNotFoundError):  # another process removed it first
            if time.time() - path.stat().st_mtime > _INCOMING_KEPT_S:
                log.info("removing %s, which a killed training left behind", path.name)
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink()
