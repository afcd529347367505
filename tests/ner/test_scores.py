"""Counts, and what is computed from them."""

import pytest

from backend.ner.scores import Counts


@pytest.mark.parametrize(
    ("counts", "precision", "recall", "f1"),
    [
        (Counts(0, 0, 0), 0.0, 0.0, 0.0),
        (Counts(correct=1, predicted=2, expected=4), 1 / 2, 1 / 4, 1 / 3),
        (Counts(correct=0, predicted=3, expected=0), 0.0, 0.0, 0.0),
        (Counts(correct=2, predicted=2, expected=2), 1.0, 1.0, 1.0),
    ],
)
def test_scores(counts: Counts, precision: float, recall: float, f1: float) -> None:
    assert (counts.precision, counts.recall) == (precision, recall)
    assert counts.f1 == pytest.approx(f1)


def test_counts_add_up() -> None:
    assert Counts(1, 2, 3) + Counts(4, 5, 6) == Counts(5, 7, 9)
