"""An engine whose decoder does what a test tells it, with real prompts."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from backend.engine.codec import Codec, Decoded, EncodedPrompt
from backend.engine.decode import Work

from ..engine import tiny

TIMEOUT_S = 20.0  # of any wait: a test that hangs must fail


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

    def decode(self, prompts: Sequence[EncodedPrompt]) -> list[Decoded]:
        self.batches.append([prompt.words for prompt in prompts])
        self.entered.release()
        assert self.gate.wait(TIMEOUT_S), "nobody opened the gate"
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
    codec: Codec = field(default_factory=codec)
    decoder: FakeDecoder = field(default_factory=FakeDecoder)
