"""`gner-backend evaluate --checkpoint`: score a checkpoint on corpora, and print tables."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from backend.engine import checkpoint as checkpoints
from backend.engine.tagger import Tagger
from backend.errors import CorpusError
from backend.evaluation.accuracy import Evaluation, evaluate, table
from backend.evaluation.corpora import Corpus


def evaluate_checkpoint(
    model: str,
    corpora: Sequence[Corpus],
    *,
    only: Sequence[str] | None,
    split: str,
    limit: int | None,
    device: str,
    dtype: str,
    save_scores: bool,
) -> None:
    """Score a checkpoint on a split of the corpora, and print tables. The command's help describes the options.

    `save_scores` writes the F1 to the checkpoint's gner.json. Raises CorpusError, CheckpointError or InvalidSettings,
    each naming the value.
    """
    checkpoint = checkpoints.resolve(model)
    chosen_device = checkpoints.pick_device(device)
    loaded = checkpoints.load(checkpoint, chosen_device, checkpoints.pick_dtype(dtype, chosen_device))
    chosen = [_first(corpus, limit) for corpus in _chosen(corpora, only)]
    done = []
    for entry in evaluate(Tagger.of(loaded), chosen, split):
        print(f"{entry.name}: F1 {entry.score.f1:.4f} ({entry.words_per_s:,.0f} words/s)", flush=True)
        done.append(entry)
    threads = f"{torch.get_num_threads()} threads" if chosen_device.type == "cpu" else ""
    print(f"\n{checkpoint.version} on {chosen_device} in {loaded.dtype} {threads}\n\n{table(done)}")
    if save_scores:
        _save_scores(checkpoint.path / "gner.json", done)


def _save_scores(path: Path, evaluations: Sequence[Evaluation]) -> None:
    """Add F1 scores to a gner.json, by corpus."""
    described = json.loads(path.read_text(encoding="utf-8"))
    described["scores"] |= {entry.name: round(entry.score.f1, 4) for entry in evaluations}
    path.write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")


def _chosen(corpora: Sequence[Corpus], only: Sequence[str] | None) -> list[Corpus]:
    if only is None:
        return list(corpora)
    unknown = {*only} - {name for corpus in corpora for name in (corpus.name, corpus.collection)}
    if unknown:
        known = sorted({corpus.collection for corpus in corpora})
        raise CorpusError(f"no corpus {sorted(unknown)}; there are {known}")
    return [corpus for corpus in corpora if corpus.name in only or corpus.collection in only]


def _first(corpus: Corpus, limit: int | None) -> Corpus:
    """The corpus with at most `limit` sentences in each split."""
    return replace(corpus, train=corpus.train[:limit], dev=corpus.dev[:limit], test=corpus.test[:limit])
