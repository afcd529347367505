"""`gner-backend benchmark`: times every decoding method on the same sentences and the same model."""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from backend.engine import checkpoint as checkpoints
from backend.engine.checkpoint import LoadedModel
from backend.engine.codec import EncodedPrompt
from backend.engine.decode import Decoder, ExactDecoder, Work
from backend.engine.drafter import Drafter
from backend.engine.generate import GenerateDecoder
from backend.engine.sequential import SequentialDecoder
from backend.errors import CorpusError, InvalidSettings
from backend.evaluation.charts import Bar, draw_bars
from backend.evaluation.corpora import Corpus, read_corpora
from backend.evaluation.known_answers import (
    Answers,
    ForcedGenerateDecoder,
    ForcedPrefixGenerateDecoder,
    OverruledExactDecoder,
    OverruledSequentialDecoder,
    PrefixGenerateDecoder,
)
from backend.evaluation.random_models import LLAMA_SHAPES, T5_SHAPES, random_model
from backend.ner.bio import Sentence, tag_names

SHAPES = (*T5_SHAPES, *LLAMA_SHAPES)


@dataclass(frozen=True, slots=True)
class Measurement:
    """One decoding method at one batch size.

    `tau` is the number of tokens that the decoder computes for each token of output. `peak_mib` is the peak memory of
    the GPU, or of the process on a CPU.
    """

    model: str
    decoding: str  # the method
    batch_size: int
    sentences: int
    sentences_per_s: float
    p50_ms: float
    p95_ms: float
    passes_per_call: float
    tau: float
    equal_words: float  # fraction of words with the same tag as the reference, 0..1
    peak_mib: float


@dataclass(slots=True)
class _Tally:
    """The measurements of one decoding method so far."""

    decoder: Decoder
    latencies_s: list[float] = field(default_factory=list)
    tags: list[tuple[str, ...]] = field(default_factory=list)
    peak_mib: float = 0.0

    def decode(self, batch: Sequence[EncodedPrompt], device: torch.device) -> None:
        """Decode one batch and measure it."""
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
    """Decode all prompts in batches, in the given order. `reference` has the tags to compare with.

    The decoders take turns at each batch, so other load on the machine affects all of them alike.
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
    """Start measuring. The returned function gives the peak in MiB, or 0 if the system does not report it."""
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


@dataclass(frozen=True, slots=True)
class Case:
    """A model to measure. With `answers`, the decoders take these tags instead of the model's own."""

    name: str
    loaded: LoadedModel
    prompts: Sequence[EncodedPrompt]
    drafter: Drafter | None
    answers: Sequence[tuple[int, ...]] | None


def run(case: Case, batch_sizes: Sequence[int], window: int, draft_threshold: float) -> Iterator[Measurement]:
    """Measure every decoding method at every batch size. Tags are compared with those of sequential decoding."""
    prompts = [replace(prompt) for prompt in case.prompts]  # copies, so that every prompt has its own id
    answers = None if case.answers is None else dict(zip(map(id, prompts), case.answers, strict=True))
    decoders = _decoders(case, answers, window, draft_threshold)
    reference = [one.tags for one in decoders["sequential"].decode(prompts)]
    for batch_size in batch_sizes:
        # sequential decodes one prompt at a time, whatever the batch
        timed = {name: decoder for name, decoder in decoders.items() if batch_size == 1 or name != "sequential"}
        yield from measure(case.name, timed, prompts, batch_size, reference, case.loaded.device)


def _decoders(case: Case, answers: Answers | None, window: int, draft_threshold: float) -> dict[str, Decoder]:
    """All decoders, by the names that the tables have."""
    if answers is None:
        return _plain_decoders(case, window, draft_threshold)
    return _decoders_with_answers(case, answers, window, draft_threshold)


def _plain_decoders(case: Case, window: int, draft_threshold: float) -> dict[str, Decoder]:
    family, tokenizer = case.loaded.family, case.loaded.codec.tokenizer
    limits = _generation_limits(case)
    prefix = PrefixGenerateDecoder(family.model, tokenizer, **limits)
    prefix.eos_token_id = family.model.generation_config.eos_token_id
    return {
        "generate": GenerateDecoder(family.model, tokenizer, **limits),
        "generate + prefix_allowed_tokens_fn": prefix,
        "sequential": SequentialDecoder(family),
        "exact": ExactDecoder(family, window, case.drafter, draft_threshold=draft_threshold),
    }


def _decoders_with_answers(case: Case, answers: Answers, window: int, draft_threshold: float) -> dict[str, Decoder]:
    family, tokenizer = case.loaded.family, case.loaded.codec.tokenizer
    limits = _generation_limits(case)
    generate = ForcedGenerateDecoder(family.model, tokenizer, **limits)
    prefix = ForcedPrefixGenerateDecoder(family.model, tokenizer, **limits)
    generate.eos_token_id = prefix.eos_token_id = family.model.generation_config.eos_token_id
    sequential = OverruledSequentialDecoder(family)
    exact = OverruledExactDecoder(family, window, case.drafter, draft_threshold=draft_threshold)
    generate.answers = prefix.answers = sequential.answers = exact.answers = answers
    return {
        "generate": generate,
        "generate + prefix_allowed_tokens_fn": prefix,
        "sequential": sequential,
        "exact": exact,
    }


def _generation_limits(case: Case) -> dict[str, int]:
    return {"num_beams": 1, "max_new_tokens": max(map(_longest_answer, case.prompts)) + 1}


def _longest_answer(prompt: EncodedPrompt) -> int:
    return sum(len(code.forced) + code.grammar.longest_path for code in prompt.codes)


def table(measurements: Sequence[Measurement]) -> str:
    """A Markdown table. `speed-up` compares with batched `generate` for the same model and batch size."""
    base = _generate_speed(measurements)
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
    """An SVG chart of the speed-ups over batched `generate`."""
    base = _generate_speed(measurements)
    bars = [
        Bar(
            f"{m.model}, batch {m.batch_size}: {m.decoding}",
            m.sentences_per_s / base[m.model, m.batch_size],
            m.decoding == "exact",
        )
        for m in measurements
    ]
    return draw_bars("sentences per second, as a multiple of batched generate", bars, "\u00d7")


def _generate_speed(measurements: Sequence[Measurement]) -> dict[tuple[str, int], float]:
    """Sentences per second of batched `generate`, by model and batch size."""
    return {(m.model, m.batch_size): m.sentences_per_s for m in measurements if m.decoding == "generate"}


# -- the command


def benchmark(
    *,
    data: Path,
    corpus: str,
    models: Sequence[str],
    batch_sizes: Sequence[int],
    sentences: int,
    device: str,
    dtype: str,
    window: int,
    draft_threshold: float,
    out: Path | None,
) -> list[Measurement]:
    """Measure on the first test sentences of a corpus. Prints each result at once, and writes `out`.json and `out`.svg.

    `models` are checkpoints, or names in SHAPES for random weights. Raises CorpusError, CheckpointError and
    InvalidSettings.
    """
    if not models or not batch_sizes or sentences < 1:
        raise InvalidSettings("benchmark needs at least one model, one batch size and one sentence")
    chosen = _corpus(data, corpus)
    where = checkpoints.pick_device(device)
    mini = checkpoints.load(checkpoints.resolve(checkpoints.DEFAULT_MODEL), where, checkpoints.pick_dtype(dtype, where))
    measurements: list[Measurement] = []
    for model in models:
        case = _case(model, mini, chosen.labels, chosen.test[:sentences])
        for measurement in run(case, batch_sizes, window, draft_threshold):
            measurements.append(measurement)
            print(_line(measurement), flush=True)
    print("\n" + table(measurements))
    if out is not None:
        rows = [asdict(measurement) for measurement in measurements]
        out.with_suffix(".json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
        out.with_suffix(".svg").write_text(chart(measurements), encoding="utf-8")
    return measurements


def _corpus(data: Path, name: str) -> Corpus:
    corpora = {corpus.name: corpus for corpus in read_corpora(data)}
    if name not in corpora or not corpora[name].test:
        raise CorpusError(f"{data} has no corpus {name!r} with a test split; it has {sorted(corpora)}")
    return corpora[name]


def _case(model: str, mini: checkpoints.LoadedModel, labels: tuple[str, ...], test: Sequence[Sentence]) -> Case:
    drafter = Drafter(mini.family, mini.codec)
    if model in SHAPES:
        loaded = random_model(model, mini)
        index = {tag: position for position, tag in enumerate(tag_names(labels))}
        answers = [tuple(index[tag] for tag in sentence.tags) for sentence in test]
    elif model == mini.checkpoint.name:
        loaded, answers = mini, None
    else:
        loaded, answers = checkpoints.load(checkpoints.resolve(model), mini.device, mini.dtype), None
    prompts = [loaded.codec.encode(labels, sentence.words) for sentence in test]
    return Case(model, loaded, prompts, drafter, answers)


def _line(measurement: Measurement) -> str:
    m = measurement
    return f"{m.model} batch {m.batch_size} {m.decoding}: {m.sentences_per_s:.2f} sentences/s, p50 {m.p50_ms:.0f} ms"
