"""The state of a run on disk."""

from pathlib import Path

import torch

from backend.pretraining.saved_state import Progress, read_state, write_state

CPU = torch.device("cpu")


def save(folder: Path, step: int) -> None:
    """The first process last: it declares the state complete."""
    for rank in (1, 0):
        (folder / f"step-{step}").mkdir(parents=True, exist_ok=True)
        weights = {f"weight-{rank}": {"master": torch.full((2,), float(step))}}
        write_state(folder, rank, Progress(step, 1.5 * step, 2), weights, (step, rank), wait=lambda: None)


def test_the_last_complete_state_is_read(tmp_path: Path) -> None:
    assert read_state(tmp_path, CPU) is None
    save(tmp_path, 3)
    save(tmp_path, 6)
    saved = read_state(tmp_path, CPU)
    assert saved is not None
    assert saved.progress == Progress(6, 9.0, 2)
    assert saved.weights["weight-1"]["master"].tolist() == [6.0, 6.0]
    assert {*saved.weights} == {"weight-0", "weight-1"}
    assert not (tmp_path / "step-3").exists()


def test_a_state_that_was_not_completed_is_ignored(tmp_path: Path) -> None:
    save(tmp_path, 3)
    (tmp_path / "step-6").mkdir()
    saved = read_state(tmp_path, CPU)
    assert saved is not None
    assert saved.progress.step == 3


def test_another_number_of_processes_begins_new_pools(tmp_path: Path) -> None:
    save(tmp_path, 3)
    saved = read_state(tmp_path, CPU)
    assert saved is not None
    assert [saved.stream_position(rank, 2) for rank in (0, 1)] == [(3, 0), (3, 1)]
    assert [saved.stream_position(rank, 3) for rank in (0, 1, 2)] == [(4, 0)] * 3
