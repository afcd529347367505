"""Scores a checkpoint on corpora by strict span F1.

An entity is correct if both its words and its label are exactly those in the corpus. F1 is micro-averaged over all
entities, 0..1, and the totals are nervaluate's. Confidence intervals are percentile bootstrap over sentences.
"""

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from nervaluate.evaluator import Evaluator
from tqdm import tqdm  # type: ignore[import-untyped]

from backend.engine.tagger import TaggedSentence, Tagger, WordsQuestion
from backend.errors import CorpusError
from backend.evaluation.corpora import SPLITS, Corpus
from backend.ner.bio import OUTSIDE, Sentence, label_of, mentions
from backend.ner.scores import Counts

_BOOTSTRAP_SAMPLES = 2000
_BOOTSTRAP_SEED = 13


@dataclass(frozen=True, slots=True)
class Score:
    """The score on one corpus. `low` and `high` are the 95 % confidence interval of the F1."""

    total: Counts
    by_label: dict[str, Counts]
    low: float
    high: float

    @property
    def f1(self) -> float:
        """Strict span micro-F1, 0..1."""
        return self.total.f1


def score(expected: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> Score:
    """Compare the BIO tags of each sentence."""
    labels = sorted({label for tags in (*expected, *predicted) for tag in tags if (label := label_of(tag)) is not None})
    if not labels:
        return Score(Counts(0, 0, 0), {}, 0.0, 0.0)
    evaluator = Evaluator([list(tags) for tags in expected], [list(tags) for tags in predicted], labels, loader="list")
    result = evaluator.evaluate()
    low, high = bootstrap(expected, predicted)
    by_label = {label: _counts(result["entities"][label]["strict"]) for label in labels}
    return Score(_counts(result["overall"]["strict"]), by_label, low, high)


def _counts(result: Any) -> Counts:
    """Nervaluate's counts in our terms."""
    return Counts(correct=result.correct, predicted=result.actual, expected=result.possible)


def bootstrap(expected: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> tuple[float, float]:
    """The 95 % interval of the F1 over corpora of the same size, drawn from these sentences with replacement."""
    counts = np.array([_sentence_counts(a, b) for a, b in zip(expected, predicted, strict=True)])
    rng = np.random.default_rng(_BOOTSTRAP_SEED)
    picks = rng.multinomial(len(counts), np.full(len(counts), 1 / len(counts)), size=_BOOTSTRAP_SAMPLES)
    correct, num_predicted, num_expected = (picks @ counts).T
    f1 = 2 * correct / np.maximum(1, num_predicted + num_expected)
    low, high = np.percentile(f1, [2.5, 97.5])
    return float(low), float(high)


def _sentence_counts(expected: Sequence[str], predicted: Sequence[str]) -> tuple[int, int, int]:
    """Correct, predicted and expected entities."""
    there, found = set(mentions(expected)), set(mentions(predicted))
    return len(there & found), len(found), len(there)


# -- a checkpoint on corpora


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The result on one collection.

    `draft` is the score of the draft head, and `agreement` the fraction of words whose tag it guesses as the decoder
    decides. Both are None for a model without a draft head.
    """

    name: str
    split: str
    num_sentences: int
    words_per_s: float
    score: Score
    draft: Score | None
    agreement: float | None


def evaluate(tagger: Tagger, corpora: Sequence[Corpus], split: str, *, quiet: bool = False) -> Iterator[Evaluation]:
    """Tag and score each collection. Each of its corpora is asked with its own labels; all are scored together.

    Raises CorpusError if no corpus has sentences in the split.
    """
    rows_of: dict[str, list[tuple[Corpus, Sentence]]] = defaultdict(list)
    for corpus in corpora:
        for sentence in sentences_of(corpus, split):
            rows_of[corpus.collection].append((corpus, sentence))
    if not rows_of:
        raise CorpusError(f"no sentences in the {split} split of {sorted(corpus.name for corpus in corpora)}")
    for name, rows in rows_of.items():
        questions = [WordsQuestion(sentence.words, sentence.labels or corpus.labels) for corpus, sentence in rows]
        begun = time.monotonic()
        with tqdm(total=len(questions), desc=name, unit="sentence", disable=quiet, leave=False) as bar:
            tagged = tagger.tag_words(questions, bar.update)
        yield _evaluation(name, split, rows, tagged, time.monotonic() - begun)


def _evaluation(
    name: str,
    split: str,
    rows: Sequence[tuple[Corpus, Sentence]],
    tagged: Sequence[TaggedSentence],
    elapsed_s: float,
) -> Evaluation:
    expected = [scored_tags(sentence.tags, corpus) for corpus, sentence in rows]
    predicted = [scored_tags(row.tags, corpus) for (corpus, _), row in zip(rows, tagged, strict=True)]
    pairs = [(corpus, row.draft) for (corpus, _), row in zip(rows, tagged, strict=True)]
    drafts = [scored_tags(draft, corpus) for corpus, draft in pairs if draft is not None]
    has_drafts = len(drafts) == len(tagged)
    num_words = sum(map(len, expected))
    agreeing = sum(a == b for row in tagged if row.draft for a, b in zip(row.tags, row.draft, strict=True))
    return Evaluation(
        name,
        split,
        len(rows),
        num_words / elapsed_s,
        score(expected, predicted),
        score(expected, drafts) if has_drafts else None,
        agreeing / num_words if has_drafts else None,
    )


def scored_tags(tags: Sequence[str], corpus: Corpus) -> tuple[str, ...]:
    """The tags without the entities that the corpus does not score."""
    return tuple(tag if not corpus.scored or label_of(tag) in corpus.scored else OUTSIDE for tag in tags)


def sentences_of(corpus: Corpus, split: str) -> tuple[Sentence, ...]:
    """The sentences of a split. Raises CorpusError for an unknown split."""
    if split not in SPLITS:
        raise CorpusError(f"no split {split!r}; expected one of {list(SPLITS)}")
    sentences: tuple[Sentence, ...] = getattr(corpus, split)
    return sentences


# -- tables


def table(evaluations: Sequence[Evaluation], *, by_label: bool = True) -> str:
    """Markdown, as in the model card."""
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
