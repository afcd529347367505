"""Decoders whose answers are known beforehand, to time models with random weights.

Each decoder runs the model as usual, but then takes the known tags instead of the model's choice. So a realistic share
of drafts is accepted, and the cost is that of the real decoder.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from backend.engine.codec import EncodedPrompt
from backend.engine.decode import Check, ExactDecoder
from backend.engine.generate import GenerateDecoder
from backend.engine.sequential import SequentialDecoder

# larger than any logit of a model
_OVERRULED = 1e4


Answers: TypeAlias = dict[int, tuple[int, ...]]  # id of a prompt -> its expected tags, as indices


class OverruledExactDecoder(ExactDecoder):
    """The exact decoder, with the tags of `answers` instead of the model's."""

    answers: Answers

    def overrule(
        self, logits: NDArray[np.float32], asked: Sequence[tuple[EncodedPrompt, Check]], column: Mapping[int, int]
    ) -> NDArray[np.float32]:
        """Make the expected token the most probable one in each row."""
        for row, (prompt, check) in enumerate(asked):
            path = prompt.codes[check.word].grammar.paths[self.answers[id(prompt)][check.word]]
            if check.decision.offset < len(path) and path[check.decision.offset] in column:
                logits[row, column[path[check.decision.offset]]] = _OVERRULED
        return logits


class OverruledSequentialDecoder(SequentialDecoder):
    """The sequential decoder, with the tags of `answers` instead of the model's."""

    answers: Answers

    def choose(self, logits: Tensor, prompt: EncodedPrompt, word: int, offset: int, options: tuple[int, ...]) -> int:
        """The expected option. The model's choice is computed too, for its cost."""
        super().choose(logits, prompt, word, offset, options)
        return _expected_option(self.answers[id(prompt)], prompt, word, offset, options)


def _expected_option(
    tags: tuple[int, ...], prompt: EncodedPrompt, word: int, offset: int, options: tuple[int, ...]
) -> int:
    """The next token of the expected tag, as an index into `options`; 0 if a wrong draft has left its path."""
    path = prompt.codes[word].grammar.paths[tags[word]]
    return options.index(path[offset]) if offset < len(path) and path[offset] in options else 0


class ForcedGenerateDecoder(GenerateDecoder):
    """`generate`, with the tokens of the expected answer instead of the model's."""

    answers: Answers
    eos_token_id: int

    def options(self, prompts: Sequence[EncodedPrompt]) -> dict[str, Any]:
        """Force each row to its expected answer."""
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
    """`generate` constrained by `prefix_allowed_tokens_fn`, which transformers offers for this purpose."""

    eos_token_id: int

    def options(self, prompts: Sequence[EncodedPrompt]) -> dict[str, Any]:
        """Allow each row only what the grammar allows."""
        walks = [_GrammarWalk(prompt, self.eos_token_id) for prompt in prompts]
        return {"prefix_allowed_tokens_fn": lambda row, ids: walks[row].allowed_after(ids)}


class ForcedPrefixGenerateDecoder(ForcedGenerateDecoder, PrefixGenerateDecoder):
    """Constrained to the grammar, and forced to the expected answer within it."""

    def options(self, prompts: Sequence[EncodedPrompt]) -> dict[str, Any]:
        """The options of both."""
        return PrefixGenerateDecoder.options(self, prompts) | ForcedGenerateDecoder.options(self, prompts)


class _GrammarWalk:
    """Follows one row token by token, and knows which tokens are legal next."""

    def __init__(self, prompt: EncodedPrompt, eos_token_id: int) -> None:
        self._codes = prompt.codes
        self._eos_token_id = eos_token_id
        self._started = False
        self._word = 0
        self._pending = list(prompt.codes[0].forced)
        self._node = prompt.codes[0].grammar.root
        self._previous = 0

    def allowed_after(self, ids: Tensor) -> list[int]:
        """Call it once per step. `ids` ends with the token chosen in the previous step."""
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
