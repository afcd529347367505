"""Scores of a checkpoint, and of the prediction files of the GNER paper.

A corpus is scored by strict span F1: an entity counts if its words and its label are exactly those of the corpus;
micro-averaged over all entities, 0..1. The totals are nervaluate's. Confidence intervals are percentile bootstrap over
sentences. The paper's own scoring (its alignment, its normalised entities) is `score_predictions`.
"""

import json
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nervaluate.evaluator import Evaluator
from tqdm import tqdm  # type: ignore[import-untyped]
from transformers import AutoTokenizer

from backend.engine import checkpoint as checkpoints
from backend.engine.generate import respelling
from backend.engine.tagger import Tagger, WordsQuestion
from backend.errors import CorpusError
from backend.evaluation.corpora import SPLITS, Corpus
from backend.ner.bio import OUTSIDE, Sentence, mentions
from backend.ner.scores import Counts
from backend.ner.structure import Respell, entities, structure

_BOOTSTRAP_SAMPLES = 2000
_BOOTSTRAP_SEED = 13


@dataclass(frozen=True, slots=True)
class Score:
    """Of one corpus. `low` and `high` are the 95 % confidence interval of the F1."""

    total: Counts
    by_label: dict[str, Counts]
    low: float
    high: float

    @property
    def f1(self) -> float:
        """Strict span micro-F1, 0..1."""
        return self.total.f1


def score(gold: Sequence[Sequence[str]], found: Sequence[Sequence[str]]) -> Score:
    """Score BIO tags, sentence by sentence, against those of the corpus."""
    labels = sorted({tag[2:] for tags in (*gold, *found) for tag in tags if tag != OUTSIDE})
    if not labels:
        return Score(Counts(0, 0, 0), {}, 0.0, 0.0)
    result = Evaluator([list(t) for t in gold], [list(t) for t in found], tags=labels, loader="list").evaluate()
    low, high = bootstrap(gold, found)
    by_label = {label: _counts(result["entities"][label]["strict"]) for label in labels}
    return Score(_counts(result["overall"]["strict"]), by_label, low, high)


def _counts(result: Any) -> Counts:
    return Counts(result.correct, result.actual, result.possible)


def bootstrap(gold: Sequence[Sequence[str]], found: Sequence[Sequence[str]]) -> tuple[float, float]:
    """The 95 % interval of the F1 over corpora of as many sentences, drawn from these with replacement."""
    counts = np.array([_sentence_counts(a, b) for a, b in zip(gold, found, strict=True)])
    rng = np.random.default_rng(_BOOTSTRAP_SEED)
    picks = rng.multinomial(len(counts), np.full(len(counts), 1 / len(counts)), size=_BOOTSTRAP_SAMPLES)
    right, actual, possible = (picks @ counts).T
    f1 = 2 * right / np.maximum(1, actual + possible)
    low, high = np.percentile(f1, [2.5, 97.5])
    return float(low), float(high)


def _sentence_counts(gold: Sequence[str], found: Sequence[str]) -> tuple[int, int, int]:
    there, actual = set(mentions(gold)), set(mentions(found))
    return len(there & actual), len(actual), len(there)


# -- a checkpoint on corpora


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One corpus. `draft` is the draft head's score, `agreement` the part of words that it tags as the decoder does."""

    name: str
    split: str
    num_sentences: int
    words_per_s: float
    score: Score
    draft: Score | None
    agreement: float | None


def evaluate(tagger: Tagger, corpora: Sequence[Corpus], split: str, *, quiet: bool = False) -> Iterator[Evaluation]:
    """Tag and score each corpus. Its parts (the intents of snips) are asked with their own labels and scored as one.

    Raises CorpusError if none of the corpora has sentences in the split.
    """
    rows_of: dict[str, list[tuple[Corpus, Sentence]]] = defaultdict(list)
    for corpus in corpora:
        for sentence in sentences_of(corpus, split):
            rows_of[corpus.family].append((corpus, sentence))
    if not rows_of:
        raise CorpusError(f"no sentences in the {split} split of {sorted(corpus.name for corpus in corpora)}")
    for name, rows in rows_of.items():
        gold = [counted(sentence.tags, corpus) for corpus, sentence in rows]
        begun = time.monotonic()
        questions = [WordsQuestion(sentence.words, sentence.labels or corpus.labels) for corpus, sentence in rows]
        with tqdm(total=len(questions), desc=name, unit="sentence", disable=quiet, leave=False) as bar:
            tagged = tagger.tag_words(questions, bar.update)
        elapsed_s = time.monotonic() - begun
        num_words = sum(map(len, gold))
        drafts = [
            counted(row.draft, corpus) for (corpus, _), row in zip(rows, tagged, strict=True) if row.draft is not None
        ]
        has_drafts = len(drafts) == len(tagged)
        agreeing = sum(a == b for row in tagged if row.draft for a, b in zip(row.tags, row.draft, strict=True))
        yield Evaluation(
            name,
            split,
            len(rows),
            num_words / elapsed_s,
            score(gold, [counted(row.tags, corpus) for (corpus, _), row in zip(rows, tagged, strict=True)]),
            score(gold, drafts) if has_drafts else None,
            agreeing / num_words if has_drafts else None,
        )


def counted(tags: Sequence[str], corpus: Corpus) -> tuple[str, ...]:
    """The tags without the entities that the corpus does not score."""
    return tuple(tag if not corpus.scored or tag[2:] in corpus.scored else OUTSIDE for tag in tags)


def sentences_of(corpus: Corpus, split: str) -> tuple[Sentence, ...]:
    """Raises CorpusError for a split that there cannot be."""
    if split not in SPLITS:
        raise CorpusError(f"no split {split!r}; expected one of {list(SPLITS)}")
    sentences: tuple[Sentence, ...] = getattr(corpus, split)
    return sentences


# -- the paper's prediction files


@dataclass(frozen=True, slots=True)
class Prediction:
    """One line of a prediction file: a sentence with its entities, and what a model wrote."""

    dataset: str
    labels: tuple[str, ...]
    words: tuple[str, ...]
    tags: tuple[str, ...]
    output: str


def read_predictions(path: Path) -> list[Prediction]:
    """JSON lines as the paper's evaluation writes them: dataset, label_list, instance {words, labels}, prediction.

    Raises CorpusError naming file and line.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise CorpusError(f"cannot read {path}: {error}") from error
    found = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            raw = json.loads(line)
            words, tags = tuple(raw["instance"]["words"]), tuple(raw["instance"]["labels"])
            found.append(Prediction(raw["dataset"], tuple(raw["label_list"]), words, tags, raw["prediction"]))
        except (ValueError, KeyError, TypeError) as error:
            raise CorpusError(f"{path}, line {number}: not a prediction of the paper's format: {error!r}") from error
        if len(words) != len(tags):
            raise CorpusError(f"{path}, line {number}: {len(words)} words but {len(tags)} labels")
    return found


def score_predictions(predictions: Sequence[Prediction], respell: Respell | None = None) -> dict[str, Counts]:
    """The paper's counts by dataset, in order of appearance: distinct normalised entities of each sentence."""
    totals: dict[str, tuple[int, int, int]] = {}
    for prediction in predictions:
        tags = structure(prediction.output, prediction.words, prediction.labels, respell)
        there = entities(prediction.words, prediction.tags)
        found = entities(prediction.words, tags)
        right, actual, possible = totals.get(prediction.dataset, (0, 0, 0))
        totals[prediction.dataset] = (
            right + sum(entity in there for entity in found),
            actual + len(found),
            possible + len(there),
        )
    return {dataset: Counts(*total) for dataset, total in totals.items()}


def average_f1(scores: dict[str, Counts]) -> float:
    """The paper's average: every dataset counts the same."""
    return sum(counts.f1 for counts in scores.values()) / len(scores)


# -- the command


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
    """Load a checkpoint, score it on the corpora that have the split, print tables; see the command's help.

    Raises CorpusError, CheckpointError or InvalidSettings, each naming the value.
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
        path = checkpoint.path / "gner.json"
        described = json.loads(path.read_text(encoding="utf-8"))
        described["scores"] |= {entry.name: round(entry.score.f1, 4) for entry in done}
        path.write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")


def _chosen(corpora: Sequence[Corpus], only: Sequence[str] | None) -> list[Corpus]:
    if only is None:
        return list(corpora)
    unknown = {*only} - {name for corpus in corpora for name in (corpus.name, corpus.family)}
    if unknown:
        raise CorpusError(f"no corpus {sorted(unknown)}; there are {sorted({corpus.family for corpus in corpora})}")
    return [corpus for corpus in corpora if corpus.name in only or corpus.family in only]


def _first(corpus: Corpus, limit: int | None) -> Corpus:
    return replace(corpus, train=corpus.train[:limit], dev=corpus.dev[:limit], test=corpus.test[:limit])


def evaluate_predictions(path: Path, tokenizer: str | None) -> str:
    """A table of the paper's scores of a prediction file. `tokenizer` (folder or hub id): see `respelling`."""
    respell = None if tokenizer is None else respelling(AutoTokenizer.from_pretrained(tokenizer))
    scores = score_predictions(read_predictions(path), respell)
    rows = ["| dataset | F1 | precision | recall |", "|---|---|---|---|"]
    rows += [f"| {name} | {c.f1:.4f} | {c.precision:.4f} | {c.recall:.4f} |" for name, c in scores.items()]
    rows.append(f"| average | {average_f1(scores):.4f} | | |")
    return "\n".join(rows)


# -- tables


def table(evaluations: Sequence[Evaluation], *, by_label: bool = True) -> str:
    """Markdown, as the model card has it."""
    rows = [
        "| corpus | split | sentences | F1 | 95 % interval | precision | recall | draft head F1 | agreement |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for entry in evaluations:
        total = entry.score.total
        rows.append(
            f"| {entry.name} | {entry.split} | {entry.num_sentences} | **{entry.score.f1:.3f}** "
            f"| {entry.score.low:.3f}-{entry.score.high:.3f} | {total.precision:.3f} | {total.recall:.3f} "
            f"| {'-' if entry.draft is None else f'{entry.draft.f1:.3f}'} "
            f"| {'-' if entry.agreement is None else f'{100 * entry.agreement:.1f} %'} |"
        )
    if by_label:
        rows += ["", "| corpus | label | entities | F1 | precision | recall |", "|---|---|---|---|---|---|"]
        rows += [
            f"| {entry.name} | {label} | {counts.expected} | {counts.f1:.3f} | {counts.precision:.3f} "
            f"| {counts.recall:.3f} |"
            for entry in evaluations
            for label, counts in entry.score.by_label.items()
        ]
    return "\n".join(rows)
