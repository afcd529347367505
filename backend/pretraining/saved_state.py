"""The state of a run on disk, in `state/`. A run that dies while it saves resumes from the state before.

`current` names the folder of the last complete state, `step-N`. It has `progress.json`, and for each process the
optimiser's state and the position of its stream.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run has come. `trained_s` leaves out pauses between runs."""

    step: int
    trained_s: float
    processes: int


@dataclass(frozen=True, slots=True)
class SavedState:
    """A state as it was read: the optimiser's state by weight name, and each process's (pool, taken) in its stream."""

    progress: Progress
    weights: dict[str, dict[str, Tensor]]
    streams: list[tuple[int, int]]

    def stream_position(self, rank: int, processes: int) -> tuple[int, int]:
        """Where a stream continues. With another number of processes, all begin pools that nobody has used."""
        if self.progress.processes == processes:
            return self.streams[rank]
        return max(pool for pool, _ in self.streams) + 1, 0


def write_state(
    folder: Path,
    rank: int,
    progress: Progress,
    weights: dict[str, dict[str, Tensor]],
    position: tuple[int, int],
    wait: Callable[[], None],
) -> None:
    """Write one process's part of a state. All processes must call it; `wait` waits for all of them."""
    new = folder / f"step-{progress.step}"
    if rank == 0:
        new.mkdir(parents=True, exist_ok=True)
    wait()
    torch.save(weights, new / f"weights-{rank}.pt")
    (new / f"stream-{rank}.json").write_text(json.dumps(position))
    wait()
    if rank == 0:
        (new / "progress.json").write_text(json.dumps(asdict(progress)))
        _make_current(new)
    wait()


def _make_current(new: Path) -> None:
    folder = new.parent
    temporary = folder / "current.new"
    temporary.write_text(new.name)
    temporary.replace(folder / "current")
    for old in folder.glob("step-*"):
        if old != new:
            shutil.rmtree(old)


def read_state(folder: Path, device: torch.device) -> SavedState | None:
    """The last complete state, with its tensors on `device`; None if there is none."""
    if not (folder / "current").exists():
        return None
    current = folder / (folder / "current").read_text().strip()
    weights: dict[str, dict[str, Tensor]] = {}
    for path in sorted(current.glob("weights-*.pt")):
        weights.update(torch.load(path, map_location=device, weights_only=True))
    return SavedState(
        Progress(**json.loads((current / "progress.json").read_text())),
        weights,
        [tuple(json.loads(path.read_text())) for path in sorted(current.glob("stream-*.json"))],
    )
