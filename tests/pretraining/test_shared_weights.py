"""The optimiser of a run with one process. tests/pretraining/test_trainer.py runs two."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from backend.pretraining.shared_weights import SharedBuffers, SharedOptimizer
from tests.support import small_recipe as small

SCHEDULE = replace(small.recipe().schedule, new_rate=0.1, weight_decay=0.0, warmup_steps=1, steps=100)


def shared_model() -> tuple[nn.Linear, SharedBuffers, SharedOptimizer]:
    """A model of three weights with random values, and its optimiser."""
    torch.manual_seed(1)
    model = nn.Linear(2, 1)
    shared = SharedBuffers.allocate(3, 1, torch.device("cpu"), torch.float32)
    return model, shared, SharedOptimizer(model, shared, 0, SCHEDULE)


def do_steps(model: nn.Linear, optimizer: SharedOptimizer, first: int, number: int) -> None:
    for step in range(first, first + number):
        optimizer.zero_gradients()
        model(torch.tensor([[1.0, 2.0]])).sum().backward()
        optimizer.step(step)


def test_the_model_lives_in_the_shared_weights_and_descends() -> None:
    model, shared, optimizer = shared_model()
    before = shared.weights.clone()
    assert torch.equal(before, torch.cat([model.weight.flatten(), model.bias]).detach())
    do_steps(model, optimizer, 0, 1)
    assert torch.allclose(shared.weights, before - SCHEDULE.new_rate, atol=1e-4)  # Adam's first step is one rate
    assert torch.equal(model.bias.detach(), shared.weights[2:])


def test_gradients_are_clipped_to_the_norm_of_all_parts() -> None:
    model, shared, optimizer = shared_model()
    do_steps(model, optimizer, 0, 1)
    assert float(shared.norms.sum()) == pytest.approx(1.0 + 4.0 + 1.0)  # gradients 1, 2 and 1, before they are clipped
    first_moment = optimizer.state()["weight"]["exp_avg"]
    assert first_moment.flatten().tolist() == pytest.approx([0.1 / 6**0.5, 0.2 / 6**0.5], rel=1e-4)


def test_a_loaded_state_continues_as_the_run_would_have() -> None:
    model, shared, optimizer = shared_model()
    do_steps(model, optimizer, 0, 5)
    saved = {
        name: {key: value.clone() for key, value in tensors.items()} for name, tensors in optimizer.state().items()
    }
    do_steps(model, optimizer, 5, 4)
    other, other_shared, other_optimizer = shared_model()
    other_optimizer.load_state(saved)
    do_steps(other, other_optimizer, 5, 4)
    assert torch.equal(other_shared.weights, shared.weights)


def test_the_average_follows_the_weights() -> None:
    model, shared, optimizer = shared_model()
    begun = shared.weights.clone()
    do_steps(model, optimizer, 0, 8)
    averaged = nn.Linear(2, 1)
    optimizer.load_average(averaged)
    average = torch.cat([averaged.weight.flatten(), averaged.bias]).detach()
    assert ((average < begun) & (average > shared.weights)).all()
