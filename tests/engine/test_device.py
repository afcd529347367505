"""What suits each kind of device."""

import torch

from backend.engine.device import profile_of


def test_a_gpu_verifies_and_batches_more_than_a_cpu() -> None:
    cpu, gpu = profile_of(torch.device("cpu")), profile_of(torch.device("cuda", 1))
    assert cpu.window_tokens < gpu.window_tokens
    assert (cpu.batch_tokens, cpu.batch_rows) < (gpu.batch_tokens, gpu.batch_rows)
    assert gpu.draft_threshold == 0.0, "a GPU's time does not grow with the tokens of a pass"
