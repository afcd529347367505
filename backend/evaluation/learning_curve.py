"""`gner-backend learning-curve`: measures how much a model learns from accepted annotations.

The first sentences of a corpus are trained on like the accepted annotations of a project. The result is scored on the
test split of that corpus, and on the test split of another corpus, which the base model knows and should not forget.
"""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from backend.engine import checkpoint as checkpoints
from backend.engine.adapters import Adapters
from backend.engine.checkpoint import LoadedModel
from backend.engine.tagger import Tagger
from backend.errors import CorpusError, InvalidSettings
from backend.evaluation.accuracy import evaluate
from backend.evaluation.charts import Line, draw_scores
from backend.evaluation.corpora import Corpus, read_corpora
from backend.learning.conll_snapshot import snapshot_of
from backend.learning.finetune import fine_tune

# Any project key would do, but the hash that holds out tasks depends on it.
_PROJECT = "1"
_TAUGHT = "taught"


@dataclass(frozen=True, slots=True)
class Point:
    """The result after `sentences`, some of which are held out for the gate. F1 are strict span F1, 0..1."""

    sentences: int
    trained_on: int
    f1: float
    low: float  # 95 % interval of f1
    high: float
    kept_f1: float  # on the corpus that the base model knows
    published: bool
    reason: str  # why the gate published or rejected it
    seconds: float  # for training and gate


def learning_curve(
    *, model: str, data: Path, corpus: str, kept: str, sizes: Sequence[int], device: str, out: Path | None
) -> list[Point]:
    """Measure at 0 and at each of `sizes`. Prints each result at once, and writes `out`.json and `out`.svg.

    Raises CorpusError, CheckpointError and InvalidSettings.
    """
    corpora = {found.name: found for found in read_corpora(data)}
    learnt, known = _corpus(corpora, corpus), _corpus(corpora, kept)
    if not sizes or min(sizes) < 1 or max(sizes) > len(learnt.train):
        raise InvalidSettings(f"sizes {list(sizes)}: {corpus!r} has 1 to {len(learnt.train)} sentences to train on")
    where = checkpoints.pick_device(device)
    loaded = checkpoints.load(checkpoints.resolve(model), where, checkpoints.pick_dtype("auto", where))
    adapters = Adapters(loaded.family)
    points = [_scored(loaded, learnt, known, 0, 0, True, "the base model", 0.0)]
    for size in sizes:
        points.append(_point(loaded, adapters, learnt, known, size))
        print(_row(points[-1]), flush=True)
    print("\n" + table(points, corpus, kept))
    if out is not None:
        out.with_suffix(".json").write_text(json.dumps([asdict(p) for p in points], indent=1) + "\n", encoding="utf-8")
        out.with_suffix(".svg").write_text(_picture(points, corpus, kept), encoding="utf-8")
    return points


def _corpus(corpora: dict[str, Corpus], name: str) -> Corpus:
    if name not in corpora or not corpora[name].test:
        raise CorpusError(f"no corpus {name!r} with a test split; there are {sorted(corpora)}")
    return corpora[name]


def _point(loaded: LoadedModel, adapters: Adapters, learnt: Corpus, known: Corpus, size: int) -> Point:
    snapshot = snapshot_of(learnt.train[:size], learnt.labels, _PROJECT, learnt.name)
    with tempfile.TemporaryDirectory() as folder:
        outcome = fine_tune(loaded, adapters, snapshot, Path(folder))
        adapters.activate(_TAUGHT, Path(folder))
        try:
            verdict = outcome.verdict
            return _scored(
                loaded, learnt, known, size, len(outcome.examples), verdict.publish, verdict.reason, outcome.seconds
            )
        finally:
            adapters.activate(None)
            adapters.drop(_TAUGHT)


def _scored(
    loaded: LoadedModel,
    learnt: Corpus,
    known: Corpus,
    size: int,
    trained_on: int,
    published: bool,
    reason: str,
    seconds: float,
) -> Point:
    """Scores with the active adapter, or of the base model if none is active."""
    found = {e.name: e.score for e in evaluate(Tagger.of(loaded), [learnt, known], "test", quiet=True)}
    own, kept = found[learnt.collection], found[known.collection]
    return Point(size, trained_on, own.f1, own.low, own.high, kept.f1, published, reason, seconds)


def _row(point: Point) -> str:
    return (
        f"{point.sentences} sentences: F1 {point.f1:.3f}, kept {point.kept_f1:.3f}, "
        f"{point.seconds:.0f} s; {point.reason}"
    )


def table(points: Sequence[Point], corpus: str, kept: str) -> str:
    """Markdown, as in docs/learning.md."""
    rows = [
        f"| accepted sentences | trained on | {corpus} F1 | 95 % interval | {kept} F1 | the gate | seconds |",
        "|---:|---:|---:|---|---:|---|---:|",
    ]
    rows += [
        f"| {p.sentences} | {p.trained_on} | **{p.f1:.3f}** | {p.low:.3f}-{p.high:.3f} | {p.kept_f1:.3f} "
        f"| {_gate(p)} | {p.seconds:.0f} |"
        for p in points
    ]
    return "\n".join(rows)


def _gate(point: Point) -> str:
    if not point.sentences:
        return "-"
    return "published" if point.published else "rejected"


def _picture(points: Sequence[Point], corpus: str, kept: str) -> str:
    lines = [
        Line(f"{corpus}, learnt", [(p.sentences, p.f1) for p in points]),
        Line(f"{kept}, to be kept", [(p.sentences, p.kept_f1) for p in points]),
    ]
    return draw_scores("span F1 on the test split", lines, "{:.0f} accepted sentences")
