"""Decoders whose answers are known beforehand, to time a model that has random weights.

Each does all the work that the model takes, and then replaces what the model would choose by the known tags. So what
is accepted and refused is realistic, at equal cost in every way of decoding.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from backend.engine.codec import EncodedPrompt
from backend.engine.decode import Check, ExactDecoder
from backend.engine.generate import GenerateDecoder
from backend.engine.sequential import SequentialDecoder

# A logit that no model's own comes near.
_OVERRULED = 1e4


Answers = dict[int, tuple[int, ...]]  # id of a prompt -> the tags that are right


class OverruledExactDecoder(ExactDecoder):
    """Takes the tags of `answers` for the model's own; computes all that the model would."""

    answers: Answers

    def overrule(
        self, logits: NDArray[np.float32], asked: Sequence[tuple[EncodedPrompt, Check]], column: Mapping[int, int]
    ) -> NDArray[np.float32]:
        for row, (prompt, check) in enumerate(asked):
            path = prompt.codes[check.word].grammar.paths[self.answers[id(prompt)][check.word]]
            if check.decision.offset < len(path) and path[check.decision.offset] in column:
                logits[row, column[path[check.decision.offset]]] = _OVERRULED
        return logits


class OverruledSequentialDecoder(SequentialDecoder):
    """As OverruledExactDecoder."""

    answers: Answers

    def choose(self, logits: Tensor, prompt: EncodedPrompt, word: int, offset: int, options: tuple[int, ...]) -> int:
        super().choose(logits, prompt, word, offset, options)
        return _right_option(self.answers[id(prompt)], prompt, word, offset, options)


def _right_option(
    tags: tuple[int, ...], prompt: EncodedPrompt, word: int, offset: int, options: tuple[int, ...]
) -> int:
    """The option that the right tag's path takes; any, where an earlier wrong draft has left that path."""
    path = prompt.codes[word].grammar.paths[tags[word]]
    return options.index(path[offset]) if offset < len(path) and path[offset] in options else 0


class ForcedGenerateDecoder(GenerateDecoder):
    """`generate` whose every token is overruled by the right answer's."""

    answers: Answers
    eos_token_id: int

    def options(self, prompts: Sequence[EncodedPrompt]) -> dict[str, Any]:
        targets = [[*_target(prompt, self.answers[id(prompt)]), self.eos_token_id] for prompt in prompts]
        return {"logits_processor": LogitsProcessorList([_Force(targets)])}


class _Force(LogitsProcessor):
    def __init__(self, targets: Sequence[Sequence[int]]) -> None:
        self._targets = targets
        self._step = 0

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:  # noqa: ARG002
        forced = [target[min(self._step, len(target) - 1)] for target in self._targets]
        rows = torch.arange(len(forced))
        scores[rows, torch.tensor(forced)] = _OVERRULED
        self._step += 1
        return scores


def _target(prompt: EncodedPrompt, tags: Sequence[int]) -> list[int]:
    return [
        token for code, tag in zip(prompt.codes, tags, strict=True) for token in code.forced + code.grammar.paths[tag]
    ]


class PrefixGenerateDecoder(GenerateDecoder):
    """`generate` held to the grammar by `prefix_allowed_tokens_fn`: what transformers offers for constraints."""

    eos_token_id: int

    def options(self, prompts: Sequence[EncodedPrompt]) -> dict[str, Any]:
        walks = [_GrammarWalk(prompt, self.eos_token_id) for prompt in prompts]
        return {"prefix_allowed_tokens_fn": lambda row, ids: walks[row].allowed_after(ids)}


class ForcedPrefixGenerateDecoder(ForcedGenerateDecoder, PrefixGenerateDecoder):
    """Both: held to the grammar, and overruled within it."""

    def options(self, prompts: Sequence[EncodedPrompt]) -> dict[str, Any]:
        return PrefixGenerateDecoder.options(self, prompts) | ForcedGenerateDecoder.options(self, prompts)


class _GrammarWalk:
    """The legal next tokens of one row, followed token by token."""

    def __init__(self, prompt: EncodedPrompt, eos_token_id: int) -> None:
        self._codes = prompt.codes
        self._eos_token_id = eos_token_id
        self._started = False
        self._word = 0
        self._pending = list(prompt.codes[0].forced)
        self._node = prompt.codes[0].grammar.root
        self._previous = 0

    def allowed_after(self, ids: Tensor) -> list[int]:
        """Called once a step; `ids` ends with the token that the step before chose."""
        if self._started:
            self._take(int(ids[-1]))
        self._started = True
        if self._word == len(self._codes):
            return [self._eos_token_id]
        if self._pending:
            return [self._pending[0]]
        grammar = self._codes[self._word].grammar
        return list(grammar.options(self._node, grammar.allowed(self._previous)))

    def _take(self, token: int) -> None:
        if self._word == len(self._codes):
            return
        if self._pending:
            self._pending.pop(0)
            return
        self._node = self._node.children[token]
        if self._node.tag is not None:
            self._previous = self._node.tag
            self._word += 1
            if self._word < len(self._codes):
                self._pending = list(self._codes[self._word].forced)
                self._node = self._codes[self._word].grammar.root
