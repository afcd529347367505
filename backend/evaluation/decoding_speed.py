"""`gner-backend benchmark`: corpora -> prompts -> every way of decoding -> a table, JSON and a chart."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from backend.engine import checkpoint as checkpoints
from backend.engine.drafter import Drafter
from backend.errors import CorpusError, InvalidSettings
from backend.evaluation.compared_decoders import (
    LLAMA_SHAPES,
    T5_SHAPES,
    Case,
    Measurement,
    chart,
    random_model,
    run,
    table,
)
from backend.evaluation.corpora import Corpus, read_corpora
from backend.ner.bio import Sentence, tag_names

SHAPES = (*T5_SHAPES, *LLAMA_SHAPES)


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
    """Measure on the first test sentences of a corpus; prints rows as they come, writes `out`.json and `out`.svg.

    `models` are checkpoints, or names of SHAPES for random weights. Raises CorpusError and CheckpointError.
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
