"""Sizes for each kind of device: how much one decoder pass verifies, and how much one batch holds."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class DeviceProfile:
    """Sizes that suit a device. The time of a pass grows with its tokens on a CPU, but hardly on a GPU.

    The measurements are in docs/lab-notes.md. `draft_threshold` is a probability, 0..1: a draft below it ends the
    window of a text that is decoded alone. `batch_tokens` counts source and target, with padding.
    """

    window_tokens: int
    draft_threshold: float
    batch_tokens: int
    batch_rows: int
    personal_rows: int  # of a batch that a person waits for


_BY_DEVICE = {
    "cpu": DeviceProfile(window_tokens=64, draft_threshold=0.6, batch_tokens=6_000, batch_rows=32, personal_rows=4),
    "cuda": DeviceProfile(
        window_tokens=1_024, draft_threshold=0.0, batch_tokens=100_000, batch_rows=256, personal_rows=256
    ),
}


def profile_of(device: torch.device) -> DeviceProfile:
    """The sizes for a device of type cpu or cuda."""
    return _BY_DEVICE[device.type]
