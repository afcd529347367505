"""Scores prediction files of the GNER paper as the paper does, with its alignment and its normalised entities."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import AutoTokenizer

from backend.engine.generate import respelling
from backend.errors import CorpusError
from backend.ner.scores import Counts
from backend.ner.structure import Respell, entities, structure


@dataclass(frozen=True, slots=True)
class Prediction:
    """One line of a prediction file: a sentence with its expected tags, and the answer of a model."""

    dataset: str
    labels: tuple[str, ...]
    words: tuple[str, ...]
    tags: tuple[str, ...]
    output: str


def read_predictions(path: Path) -> list[Prediction]:
    """Read the JSON lines of the paper's evaluation: dataset, label_list, instance {words, labels}, prediction.

    Raises CorpusError naming file and line.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise CorpusError(f"cannot read {path}: {error}") from error
    return [_prediction(line, f"{path}, line {number}") for number, line in enumerate(lines, start=1) if line.strip()]


def _prediction(line: str, place: str) -> Prediction:
    try:
        raw = json.loads(line)
        words, tags = tuple(raw["instance"]["words"]), tuple(raw["instance"]["labels"])
        prediction = Prediction(raw["dataset"], tuple(raw["label_list"]), words, tags, raw["prediction"])
    except (ValueError, KeyError, TypeError) as error:
        raise CorpusError(f"{place}: not a prediction in the paper's format: {error!r}") from error
    if len(words) != len(tags):
        raise CorpusError(f"{place}: {len(words)} words but {len(tags)} labels")
    return prediction


def score_predictions(predictions: Sequence[Prediction], respell: Respell | None = None) -> dict[str, Counts]:
    """The paper's counts by dataset, in order of appearance. Equal normalised entities of a sentence count once."""
    totals: dict[str, Counts] = {}
    for prediction in predictions:
        tags = structure(prediction.output, prediction.words, prediction.labels, respell)
        expected = entities(prediction.words, prediction.tags)
        predicted = entities(prediction.words, tags)
        counts = Counts(sum(entity in expected for entity in predicted), len(predicted), len(expected))
        totals[prediction.dataset] = totals.get(prediction.dataset, Counts(0, 0, 0)) + counts
    return totals


def average_f1(scores: dict[str, Counts]) -> float:
    """The paper's average, in which every dataset has the same weight."""
    return sum(counts.f1 for counts in scores.values()) / len(scores)


def evaluate_predictions(path: Path, tokenizer: str | None) -> str:
    """A table with the paper's scores of a prediction file. `tokenizer` is a folder or hub id, see `respelling`."""
    respell = None if tokenizer is None else respelling(AutoTokenizer.from_pretrained(tokenizer))
    scores = score_predictions(read_predictions(path), respell)
    rows = ["| dataset | F1 | precision | recall |", "|---|---|---|---|"]
    rows += [f"| {name} | {c.f1:.4f} | {c.precision:.4f} | {c.recall:.4f} |" for name, c in scores.items()]
    rows.append(f"| average | {average_f1(scores):.4f} | | |")
    return "\n".join(rows)
