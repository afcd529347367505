"""Progress as a line of text, and as JSON."""

import pytest

from backend.learning.progress import Progress


@pytest.mark.parametrize(
    ("progress", "line"),
    [
        (Progress("preparing"), "preparing"),
        (Progress("training", 3, 60), "training, 3/60"),
        (Progress("training", 3, 60, 0.25, 12.4), "training, 3/60, loss 0.2500, 12 s left"),
    ],
)
def test_a_line_of_text(progress: Progress, line: str) -> None:
    assert str(progress) == line
    assert Progress.from_json(progress.to_json()) == progress


def test_fields_of_a_later_release_are_left_out() -> None:
    assert Progress.from_json({"stage": "judging", "weather": "fine"}) == Progress("judging")
