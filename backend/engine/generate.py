"""Unconstrained generation, as in the paper, to reproduce its published scores.

It is slower than constrained decoding and may lose words. ner/structure.py aligns its output with the sentence.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from backend.engine.codec import Decoded, EncodedPrompt
from backend.engine.decode import Work
from backend.engine.decoding_state import GiveWay, go_on
from backend.engine.family import pad, source_kinds
from backend.ner.bio import tag_names
from backend.ner.structure import Respell, structure


def respelling(tokenizer: Any) -> Respell:
    """A function that tokenizes and decodes words, so that they look as the model would write them."""

    def respell(words: Sequence[str]) -> Sequence[str]:
        spelled: list[str] = tokenizer.batch_decode(tokenizer(list(words))["input_ids"], skip_special_tokens=True)
        return spelled

    return respell


class GenerateDecoder:
    """Decodes with transformers' `generate`, without constraints. Not thread-safe."""

    def __init__(self, model: Any, tokenizer: Any, *, num_beams: int, max_new_tokens: int) -> None:
        self.work = Work()
        self._model = model
        self._tokenizer = tokenizer
        self._num_beams = num_beams
        self._max_new_tokens = max_new_tokens

    @torch.inference_mode()
    def decode(self, prompts: Sequence[EncodedPrompt], give_way: GiveWay = go_on) -> list[Decoded]:  # noqa: ARG002
        """Tag every word of each prompt; output order is input order.

        There are no probabilities per word: each word gets the answer's, the exponent of the mean log-probability of
        its tokens.
        """
        if not prompts:
            return []
        output = self._generate(prompts)
        answers = output.sequences[:, -len(output.scores) :]
        self._count_work(output, answers)
        texts = self._tokenizer.batch_decode(answers, skip_special_tokens=True)
        scores = self._scores(output, answers)
        return [
            Decoded(self._tags(text, prompt), (score,) * len(prompt.words))
            for prompt, text, score in zip(prompts, texts, scores, strict=True)
        ]

    def _generate(self, prompts: Sequence[EncodedPrompt]) -> Any:
        is_causal = not self._model.config.is_encoder_decoder
        ids, mask = pad([prompt.source_ids for prompt in prompts], self._model.device, left=is_causal)
        return self._model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=self._max_new_tokens,
            max_length=None,  # transformers warns if a checkpoint sets it as well
            num_beams=self._num_beams,
            do_sample=False,
            pad_token_id=self._pad_token_id,
            return_dict_in_generate=True,
            output_scores=True,
            **self._kinds(prompts),
            **self.options(prompts),
        )

    def _count_work(self, output: Any, answers: Tensor) -> None:
        num_steps, num_prompts = len(output.scores), len(answers)
        self.work.passes += num_steps
        self.work.decoder_tokens += num_steps * num_prompts * self._num_beams
        self.work.output_tokens += int((answers != self._pad_token_id).sum())
        self.work.windows += num_prompts

    def _tags(self, text: str, prompt: EncodedPrompt) -> tuple[str, ...]:
        return structure(self._with_tags(text, prompt.labels), prompt.words, prompt.labels, self._respell)

    def options(self, prompts: Sequence[EncodedPrompt]) -> dict[str, Any]:  # noqa: ARG002  # for a benchmark
        """Further arguments of `generate`."""
        return {}

    def _kinds(self, prompts: Sequence[EncodedPrompt]) -> dict[str, Tensor]:
        kinds = source_kinds(prompts, self._model.device)
        return {} if kinds is None else {"token_type_ids": kinds}

    @property
    def _pad_token_id(self) -> int:
        pad_id = self._tokenizer.pad_token_id
        return int(self._tokenizer.eos_token_id if pad_id is None else pad_id)

    def _with_tags(self, text: str, labels: Sequence[str]) -> str:
        """Restore the tags in a text: an uncased tokenizer writes `(B-person)` as `( b - person )`."""
        tags = [f"({tag})" for tag in tag_names(labels)]
        for written, tag in zip(self._respell(tags), tags, strict=True):
            text = text.replace(written, tag)
        return text

    def _respell(self, words: Sequence[str]) -> list[str]:
        """Words as the model can write them, without the space that some tokenizers put before each."""
        return [word.strip() for word in respelling(self._tokenizer)(words)]

    def _scores(self, output: Any, answers: Tensor) -> list[float]:
        beams = output.beam_indices if self._num_beams > 1 else None
        steps = self._model.compute_transition_scores(output.sequences, output.scores, beams, normalize_logits=True)
        written = (answers != self._pad_token_id) & torch.isfinite(steps)
        means = (steps.where(written, 0.0).sum(1) / written.sum(1).clamp(min=1)).tolist()
        return [math.exp(min(mean, 0.0)) for mean in means]
