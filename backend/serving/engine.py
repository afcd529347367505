"""A loaded model as the batcher needs it: the protocol, and the engine that serves trained versions."""

import logging
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from backend.engine.adapters import Adapters
from backend.engine.codec import Codec
from backend.engine.decode import Decoder
from backend.errors import AdapterError, UnknownVersion

log = logging.getLogger(__name__)


class Engine(Protocol):
    """A loaded model as the batcher needs it. It belongs to the model's thread."""

    @property
    def codec(self) -> Codec:
        """Encodes prompts for this model. Any thread may use it."""
        ...

    @property
    def decoder(self) -> Decoder:
        """Decodes with the active version."""
        ...

    def activate(self, version: str) -> None:
        """Make the decoder use this version; costs nothing if it is active already.

        Raises a BackendError if the version cannot be loaded.
        """
        ...


class VersionFolders(Protocol):
    """The registry of trained versions, as far as an engine needs it."""

    @property
    def base_version(self) -> str:
        """The version without an adapter."""
        ...

    def project_of(self, version: str) -> str | None:
        """The project that a version belongs to; None for the base and for unknown versions."""
        ...

    def folder(self, project: str, version: str) -> Path:
        """The folder of a version's adapter. Raises UnknownVersion and CorruptVersion."""
        ...


@dataclass(frozen=True, slots=True)
class AdapterEngine:
    """A loaded model whose versions are adapters: an Engine."""

    codec: Codec
    decoder: Decoder
    adapters: Adapters
    registry: VersionFolders

    def activate(self, version: str) -> None:
        """Make the decoder use the base, or a version whose adapter is in memory or on disk.

        Raises UnknownVersion, CorruptVersion and AdapterError; the version before then stays active.
        """
        name = None if version == self.registry.base_version else version
        if name == self.adapters.active:
            return
        with suppress(AdapterError):  # raised if it is not in memory
            self.adapters.activate(name)
            return
        project = self.registry.project_of(version)
        if project is None:
            raise UnknownVersion(f"no project has a version {version!r}")
        self._load(project, version)

    def _load(self, project: str, version: str) -> None:
        folder = self.registry.folder(project, version)
        started_s = time.perf_counter()
        try:
            self.adapters.activate(version, folder)
        except RuntimeError as error:  # out of memory, for example
            raise AdapterError(f"version {version!r} cannot be loaded: {error}") from error
        log.info("loaded version %s of project %s in %.1f s", version, project, time.perf_counter() - started_s)
