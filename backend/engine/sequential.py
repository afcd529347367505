"""Greedy constrained decoding step by step: the reference for exact decoding.

It decodes one prompt at a time: it runs the forced tokens in one call, makes one decision, and repeats.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from backend.engine.codec import Decoded, EncodedPrompt
from backend.engine.decode import Work
from backend.engine.decoding_state import DecodingState, GiveWay, go_on
from backend.engine.family import Family
from backend.ner.bio import OUTSIDE_INDEX


class SequentialDecoder:
    """The simplest constrained decoder of a Family. Not thread-safe."""

    def __init__(self, family: Family) -> None:
        self.work = Work()
        self._family = family

    @torch.inference_mode()
    def decode(self, prompts: Sequence[EncodedPrompt], give_way: GiveWay = go_on) -> list[Decoded]:
        """Tag every word of each prompt; output order is input order. Gives way after each word."""
        return [self._decode_one(prompt, give_way) for prompt in prompts]

    def _decode_one(self, prompt: EncodedPrompt, give_way: GiveWay) -> Decoded:
        self.work.windows += 1
        if not prompt.words:
            return Decoded((), ())
        state = self._family.begin([prompt])
        pending = list(state.start_tokens)  # tokens that the model has not seen yet
        tags: list[int] = [OUTSIDE_INDEX]  # before the first word
        probabilities: list[float] = []
        for word, code in enumerate(prompt.codes):
            pending += code.forced
            node, allowed, probability = code.grammar.root, code.grammar.allowed(tags[-1]), 1.0
            offset = 0  # on the tag's path
            while node.tag is None:
                options = code.grammar.options(node, allowed)
                token = options[0]
                if len(options) > 1:
                    logits = self._run(state, pending, options)
                    chosen = self.choose(logits, prompt, word, offset, options)
                    probability *= float(logits.softmax(0)[chosen])
                    token, pending = options[chosen], []
                pending = [*pending, token]
                node = node.children[token]
                offset += 1
            tags.append(node.tag)
            probabilities.append(probability)
            self.work.output_tokens += len(code.forced) + len(code.grammar.paths[node.tag])
            give_way()
        return Decoded(
            tuple(code.grammar.tags[tag] for code, tag in zip(prompt.codes, tags[1:], strict=True)),
            tuple(probabilities),
        )

    def _run(self, state: DecodingState, pending: list[int], options: tuple[int, ...]) -> Tensor:
        """Logits (options,) of what may follow the pending tokens, which are then cached."""
        device = self._family.model.device
        hidden = self._family.forward(state, state.feed([pending], device))
        state.keep([len(pending)], [0])
        self.work.passes += 1
        self.work.decoder_tokens += len(pending)
        return self._family.logits(hidden[0, -1:], torch.tensor(options, device=device))[0]

    def choose(
        self,
        logits: Tensor,
        prompt: EncodedPrompt,  # noqa: ARG002  # for benchmarks that know the answers
        word: int,  # noqa: ARG002
        offset: int,  # noqa: ARG002
        options: tuple[int, ...],  # noqa: ARG002
    ) -> int:
        """The index of the chosen token among the legal ones, whose logits are given."""
        return int(logits.argmax())
