"""A loaded model with its adapters, as the batcher runs it."""

import logging
import time
from contextlib import suppress
from dataclasses import dataclass

from backend.engine.adapters import Adapters
from backend.engine.codec import Codec
from backend.engine.decode import Decoder
from backend.errors import AdapterError, UnknownVersion
from backend.learning.registry import Registry

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Engine:
    """A loaded model and its adapters, as the batcher needs it. Belongs to the model's thread."""

    codec: Codec
    decoder: Decoder
    adapters: Adapters
    registry: Registry

    def activate(self, version: str) -> None:
        """Have the decoder decode with this version: the base, or one whose adapter is in memory or on disk.

        Raises UnknownVersion, CorruptVersion and AdapterError; the version before stays in force.
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
        folder = self.registry.folder(project, version)
        started_s = time.perf_counter()
        try:
            self.adapters.activate(name, folder)
        except RuntimeError as error:  # no memory left, for one
            raise AdapterError(f"version {version!r} cannot be loaded: {error}") from error
        log.info("version %s of project %s is loaded (%.1f s)", version, project, time.perf_counter() - started_s)
