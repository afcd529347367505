"""Greedy constrained decoding step by step: the reference that exact decoding is held against.

One prompt at a time; forced tokens go through the model in one call, then one decision is taken, and so on.
"""

from collections.abc import Sequence

import torch

from backend.engine.codec import Decoded, EncodedPrompt, WordCode
from backend.engine.decode import Work
from backend.engine.family import Family
from backend.engine.memory import Memory


class SequentialDecoder:
    """The plainest constrained decoder over a Family. Not thread-safe."""

    def __init__(self, family: Family) -> None:
        self.work = Work()
        self._family = family

    @torch.inference_mode()
    def decode(self, prompts: Sequence[EncodedPrompt]) -> list[Decoded]:
        """Tag every word of each prompt; output order is input order."""
        return [self._decode_one(prompt) for prompt in prompts]

    def _decode_one(self, prompt: EncodedPrompt) -> Decoded:
        self.work.windows += 1
        tags: list[str] = []
        probabilities: list[float] = []
        if not prompt.words:
            return Decoded((), ())
        memory = self._family.begin([prompt])
        pending = list(memory.start_tokens)  # forced tokens that the model has not seen yet
        previous = 0
        for code in prompt.codes:
            pending += code.forced
            previous, probability, pending = self._choose_tag(memory, code, previous, pending)
            tags.append(code.grammar.tags[previous])
            probabilities.append(probability)
            self.work.output_tokens += len(code.forced) + len(code.grammar.paths[previous])
        return Decoded(tuple(tags), tuple(probabilities))

    def _choose_tag(
        self, memory: Memory, code: WordCode, previous: int, pending: list[int]
    ) -> tuple[int, float, list[int]]:
        """Walk the trie from its root to a leaf. Returns the tag, its probability, and the tokens still to be run."""
        node, allowed, probability = code.grammar.root, code.grammar.allowed(previous), 1.0
        while node.tag is None:
            options = code.grammar.options(node, allowed)
            token = options[0]
            if len(options) > 1:
                token, share = self._choose_token(memory, pending, options)
                probability *= share
                pending = []
            pending = [*pending, token]
            node = node.children[token]
        return node.tag, probability, pending

    def _choose_token(self, memory: Memory, pending: list[int], options: tuple[int, ...]) -> tuple[int, float]:
        device = self._family.model.device
        hidden = self._family.forward(memory, memory.feed([pending], device))
        memory.keep([len(pending)], [0])
        self.work.passes += 1
        self.work.decoder_tokens += len(pending)
        logits = self._family.logits(hidden[0, -1:], torch.tensor(options, device=device))[0]
        best = int(logits.argmax())
        return options[best], float(logits.softmax(0)[best])
