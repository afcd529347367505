"""Ways of decoding, timed on the same sentences and the same model.

Where a model has random weights, its free positions are overruled by known tags at equal cost, in every way of
decoding alike, so that what is accepted and refused is realistic.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LogitsProcessor,
    LogitsProcessorList,
    T5Config,
    T5ForConditionalGeneration,
)

from backend.engine.checkpoint import LoadedModel
from backend.engine.codec import Codec, EncodedPrompt, Limits
from backend.engine.decode import Check, Decoder, ExactDecoder, Work
from backend.engine.drafter import Drafter
from backend.engine.family import CausalFamily, Family, T5Family
from backend.engine.generate import GenerateDecoder
from backend.engine.sequential import SequentialDecoder
from backend.ner.prompt import CAUSAL_WRAPPER, PromptFormat

# A logit that no model's own comes near.
_OVERRULED = 1e4

Answers = dict[int, tuple[int, ...]]  # id of a prompt -> the tags that are right


@dataclass(frozen=True, slots=True)
class Measurement:
    """One way of decoding at one batch size. Memory is the peak of the device's allocations, or of the process."""

    model: str
    decoding: str
    batch_size: int
    sentences: int
    sentences_per_s: float
    p50_ms: float
    p95_ms: float
    passes_per_call: float
    tau: float
    equal_words: float  # part of the words whose tag is the reference's, 0..1
    peak_mib: float


@dataclass(slots=True)
class _Tally:
    """What one way of decoding has taken so far."""

    decoder: Decoder
    latencies_s: list[float] = field(default_factory=list)
    tags: list[tuple[str, ...]] = field(default_factory=list)
    peak_mib: float = 0.0

    def decode(self, batch: Sequence[EncodedPrompt], device: torch.device) -> None:
        peak_mib, started_s = _peak_memory(device), time.perf_counter()
        decoded = self.decoder.decode(batch)
        self.latencies_s.append(time.perf_counter() - started_s)
        self.peak_mib = max(self.peak_mib, peak_mib())
        self.tags += [one.tags for one in decoded]


def measure(
    model: str,
    decoders: Mapping[str, Decoder],
    prompts: Sequence[EncodedPrompt],
    batch_size: int,
    reference: Sequence[tuple[str, ...]],
    device: torch.device,
) -> list[Measurement]:
    """Decode all prompts in batches, in the order given. `reference` are the tags that are right.

    All ways take turns at each batch, so that whatever else the machine does meets them alike.
    """
    batches = [prompts[begin : begin + batch_size] for begin in range(0, len(prompts), batch_size)]
    for decoder in decoders.values():
        decoder.decode(batches[0])  # warm-up
        decoder.work = Work()
    tallies = {name: _Tally(decoder) for name, decoder in decoders.items()}
    for batch in batches:
        for tally in tallies.values():
            tally.decode(batch, device)
    return [_measurement(model, name, tally, batch_size, reference) for name, tally in tallies.items()]


def _measurement(
    model: str, decoding: str, tally: _Tally, batch_size: int, reference: Sequence[tuple[str, ...]]
) -> Measurement:
    work, latencies_s = tally.decoder.work, tally.latencies_s
    words = [(a, b) for x, y in zip(tally.tags, reference, strict=True) for a, b in zip(x, y, strict=True)]
    return Measurement(
        model=model,
        decoding=decoding,
        batch_size=batch_size,
        sentences=len(tally.tags),
        sentences_per_s=len(tally.tags) / sum(latencies_s),
        p50_ms=float(np.percentile(latencies_s, 50)) * 1e3,
        p95_ms=float(np.percentile(latencies_s, 95)) * 1e3,
        passes_per_call=work.passes / len(latencies_s),
        tau=work.decoder_tokens / work.output_tokens,
        equal_words=sum(a == b for a, b in words) / len(words),
        peak_mib=tally.peak_mib,
    )


def _peak_memory(device: torch.device) -> Callable[[], float]:
    """Start to watch; the function returned tells the peak in MiB since then (0 where the system does not say)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return lambda: torch.cuda.max_memory_allocated(device) / 2**20
    try:
        Path("/proc/self/clear_refs").write_text("5")  # Linux: resets VmHWM
    except OSError:
        return lambda: 0.0

    def high_water_mib() -> float:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))

    return high_water_mib


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


@dataclass(frozen=True, slots=True)
class Case:
    """A model to be measured. `answers` are known tags that overrule random weights; None: the model's own count."""

    name: str
    loaded: LoadedModel
    prompts: Sequence[EncodedPrompt]
    drafter: Drafter | None
    answers: Sequence[tuple[int, ...]] | None


# The shapes of published checkpoints, for random weights. Flan-T5 is T5 1.1: gated, with a head of its own.
T5_SHAPES: dict[str, dict[str, int]] = {
    "t5-base": {"d_model": 768, "d_ff": 2048, "num_layers": 12, "num_heads": 12, "d_kv": 64},
    "t5-large": {"d_model": 1024, "d_ff": 2816, "num_layers": 24, "num_heads": 16, "d_kv": 64},
}
LLAMA_SHAPES: dict[str, dict[str, int]] = {
    "llama-7b": {
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
    },
}
_VOCABULARY = 32_128


def random_model(shape: str, like: LoadedModel) -> LoadedModel:
    """A model of a published shape with random weights, and the published prompt.

    The vocabulary is that of `like`, whose tokenizer it takes: the published ones cannot be had without the hub.
    """
    special = {"pad_token_id": 0, "eos_token_id": like.codec.tokenizer.sep_token_id, "decoder_start_token_id": 0}
    model: Any
    with torch.device(like.device):
        default = torch.get_default_dtype()
        torch.set_default_dtype(like.dtype)
        try:
            if shape in T5_SHAPES:
                t5: dict[str, Any] = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
                t5 |= {"vocab_size": _VOCABULARY, **T5_SHAPES[shape], **special}
                model = T5ForConditionalGeneration(T5Config(**t5))
            else:
                llama: dict[str, Any] = {"vocab_size": _VOCABULARY, **LLAMA_SHAPES[shape]}
                model = LlamaForCausalLM(LlamaConfig(**llama))
        finally:
            torch.set_default_dtype(default)
    causal = shape in LLAMA_SHAPES
    codec = Codec(
        like.codec.tokenizer,
        PromptFormat(wrapper=CAUSAL_WRAPPER) if causal else PromptFormat(),
        Limits(1_000, 1_000),
        source_ends_with_eos=not causal,
    )
    family: Family = CausalFamily(model.eval()) if causal else T5Family(model.eval())
    return LoadedModel(like.checkpoint, family, codec, like.device, like.dtype)


def run(case: Case, batch_sizes: Sequence[int], window: int, draft_threshold: float) -> Iterator[Measurement]:
    """Every way of decoding at every batch size. Labels are compared with those of sequential decoding."""
    prompts = [replace(prompt) for prompt in case.prompts]  # copies, whose ids are our own
    answers = None if case.answers is None else dict(zip(map(id, prompts), case.answers, strict=True))
    decoders = _decoders(case, answers, window, draft_threshold)
    reference = [one.tags for one in decoders["sequential"].decode(prompts)]
    for batch_size in batch_sizes:
        # sequential decodes one prompt at a time, whatever the batch
        timed = {name: decoder for name, decoder in decoders.items() if batch_size == 1 or name != "sequential"}
        yield from measure(case.name, timed, prompts, batch_size, reference, case.loaded.device)


def _decoders(case: Case, answers: Answers | None, window: int, draft_threshold: float) -> dict[str, Decoder]:
    family, codec = case.loaded.family, case.loaded.codec
    tokenizer = codec.tokenizer
    limits = {"num_beams": 1, "max_new_tokens": max(map(_longest_answer, case.prompts)) + 1}
    eos_token_id = family.model.generation_config.eos_token_id
    if answers is None:
        prefix = PrefixGenerateDecoder(family.model, tokenizer, **limits)
        prefix.eos_token_id = eos_token_id
        return {
            "generate": GenerateDecoder(family.model, tokenizer, **limits),
            "generate + prefix_allowed_tokens_fn": prefix,
            "sequential": SequentialDecoder(family),
            "exact": ExactDecoder(family, window, case.drafter, draft_threshold=draft_threshold),
        }
    generate = ForcedGenerateDecoder(family.model, tokenizer, **limits)
    both = ForcedPrefixGenerateDecoder(family.model, tokenizer, **limits)
    generate.eos_token_id = both.eos_token_id = eos_token_id
    sequential = OverruledSequentialDecoder(family)
    exact = OverruledExactDecoder(family, window, case.drafter, draft_threshold=draft_threshold)
    generate.answers = both.answers = sequential.answers = exact.answers = answers
    return {
        "generate": generate,
        "generate + prefix_allowed_tokens_fn": both,
        "sequential": sequential,
        "exact": exact,
    }


def _longest_answer(prompt: EncodedPrompt) -> int:
    return sum(len(code.forced) + code.grammar.longest_path for code in prompt.codes)


def table(measurements: Sequence[Measurement]) -> str:
    """A Markdown table. `speed-up` is over batched `generate` of the same model and batch size."""
    base = {(m.model, m.batch_size): m.sentences_per_s for m in measurements if m.decoding == "generate"}
    header = [
        "model", "batch", "decoding", "sentences/s", "speed-up", "p50 ms", "p95 ms",
        "passes per call", "tau", "labels equal", "peak MiB",
    ]  # fmt: skip
    rows = [
        [
            m.model,
            str(m.batch_size),
            m.decoding,
            f"{m.sentences_per_s:.2f}",
            f"{m.sentences_per_s / base[m.model, m.batch_size]:.1f}",
            f"{m.p50_ms:.0f}",
            f"{m.p95_ms:.0f}",
            f"{m.passes_per_call:.1f}",
            f"{m.tau:.2f}",
            f"{m.equal_words:.1%}",
            f"{m.peak_mib:.0f}",
        ]
        for m in measurements
    ]
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def chart(measurements: Sequence[Measurement]) -> str:
    """Speed-ups over batched `generate` as horizontal bars: SVG."""
    base = {(m.model, m.batch_size): m.sentences_per_s for m in measurements if m.decoding == "generate"}
    bars = [
        (f"{m.model}, batch {m.batch_size}: {m.decoding}", m.sentences_per_s / base[m.model, m.batch_size])
        for m in measurements
    ]
    longest = max(value for _, value in bars)
    rows = []
    for index, (label, value) in enumerate(bars):
        y = 40 + 22 * index
        width = 360 * value / longest
        colour = "#2a9d8f" if label.endswith(": exact") else "#9aa5b1"
        rows.append(
            f'<text x="338" y="{y + 12}" text-anchor="end">{label}</text>'
            f'<rect x="346" y="{y}" width="{width:.1f}" height="16" fill="{colour}"/>'
            f'<text x="{352 + width:.1f}" y="{y + 12}">{value:.1f}×</text>'
        )
    height = 52 + 22 * len(bars)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="780" height="{height}" font-family="sans-serif" '
        'font-size="12">'
        f'<rect width="780" height="{height}" fill="white"/>'
        '<text x="346" y="24" font-size="14">sentences per second, as a multiple of batched generate</text>'
        f"{''.join(rows)}</svg>\n"
    )
