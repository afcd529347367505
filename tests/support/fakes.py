"""An engine whose decoder does what a test tells it, with real prompts; and a registry without a disk."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from backend.engine.codec import Codec, Decoded, EncodedPrompt
from backend.engine.decode import Work
from backend.engine.decoding_state import GiveWay, go_on
from backend.errors import AdapterError, CorruptVersion, UnknownVersion
from tests.support import tiny

TIMEOUT_S = 20.0  # of any wait: a test that hangs must fail
BASE = "base-0"


def codec() -> Codec:
    return tiny.bert()[1]


@dataclass
class FakeDecoder:
    """Tags capitalised words as the first label. Waits for `gate` before each batch, and notes what it was given."""

    work: Work = field(default_factory=Work)
    gate: threading.Event = field(default_factory=threading.Event)
    entered: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    batches: list[list[tuple[str, ...]]] = field(default_factory=list)
    fails: Callable[[EncodedPrompt], bool] = lambda _: False

    def decode(self, prompts: Sequence[EncodedPrompt], give_way: GiveWay = go_on) -> list[Decoded]:
        self.batches.append([prompt.words for prompt in prompts])
        self.entered.release()
        assert self.gate.wait(TIMEOUT_S), "nobody opened the gate"
        give_way()
        for prompt in prompts:
            if self.fails(prompt):
                raise RuntimeError(f"poison: {prompt.words}")
        self.work.windows += len(prompts)
        return [answer(prompt.labels, prompt.words) for prompt in prompts]

    def wait_for_batch(self) -> None:
        """Until the decoder has been given one more batch."""
        assert self.entered.acquire(timeout=TIMEOUT_S), "no batch came"


def answer(labels: Sequence[str], words: Sequence[str]) -> Decoded:
    return Decoded(tuple(f"B-{labels[0]}" if word[0].isupper() else "O" for word in words), (0.5,) * len(words))


@dataclass
class FakeEngine:
    """`refuses` are versions that cannot be loaded. Notes what it was asked to activate, and what each batch met."""

    codec: Codec = field(default_factory=codec)
    decoder: FakeDecoder = field(default_factory=FakeDecoder)
    refuses: dict[str, Exception] = field(default_factory=dict)
    activated: list[str] = field(default_factory=list)

    def activate(self, version: str) -> None:
        if version in self.refuses:
            raise self.refuses[version]
        self.activated.append(version)


def refusal(version: str) -> AdapterError:
    return AdapterError(f"the adapter of {version} was not made for this model")


@dataclass(frozen=True)
class FakeInfo:
    parent: str


@dataclass
class FakeRegistry:
    """Projects, their versions' parents, and where each project's pointer points; "" is the base."""

    parents: dict[str, dict[str, str]] = field(default_factory=dict)
    pointers: dict[str, str] = field(default_factory=dict)
    damaged: set[str] = field(default_factory=set)
    unreadable: set[str] = field(default_factory=set)  # projects whose pointer cannot be read

    def publish(self, project: str, version: str, parent: str = BASE) -> None:
        self.parents.setdefault(project, {})[version] = parent
        self.pointers[project] = version

    def projects(self) -> Sequence[str]:
        return sorted(self.parents)

    def current(self, project: str) -> str | None:
        if project in self.unreadable:
            raise CorruptVersion(f"the pointer of {project} cannot be read")
        return self.pointers.get(project) or None

    def info(self, project: str, version: str) -> FakeInfo:
        if version not in self.parents.get(project, {}):
            raise UnknownVersion(f"project {project} has no version {version}")
        return FakeInfo(self.parents[project][version])

    def folder(self, project: str, version: str) -> Path:
        self.info(project, version)
        if version in self.damaged:
            raise CorruptVersion(f"version {version} is damaged")
        return Path("/nowhere") / version
