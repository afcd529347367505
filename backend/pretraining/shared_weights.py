"""The weights of a run, shared by its processes, and the optimiser whose work they divide.

Each process has all gradients of its own batch, but updates only its part of the weights (as ZeRO does,
arXiv:1910.02054). The shared weights are bf16 where the processor computes in it; the optimiser's copies are float32.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.multiprocessing as mp
from torch import Tensor, nn

from backend.pretraining.recipe import Schedule

_AVERAGE_EVERY_STEPS = 4
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # what AdamW keeps for each weight


@dataclass(frozen=True, slots=True)
class SharedBuffers:
    """The memory that all processes of a run share. `barrier` is None if there is only one process."""

    weights: Tensor  # (weights,), for the forward and backward passes
    average: Tensor  # (weights,), filled on request
    gradients: Tensor  # (processes, weights)
    norms: Tensor  # (processes,), the squared gradient norm of each process's part
    stop: Tensor  # (1,), set by the first process
    barrier: Any

    @classmethod
    def allocate(cls, num_weights: int, processes: int, device: torch.device, dtype: torch.dtype) -> "SharedBuffers":
        """Buffers filled with zeros; in shared memory if there are several processes."""
        buffers = cls(
            weights=torch.zeros(num_weights, dtype=dtype, device=device),
            average=torch.zeros(num_weights, dtype=dtype, device=device),
            gradients=torch.zeros(processes, num_weights, dtype=dtype, device=device),
            norms=torch.zeros(processes),
            stop=torch.zeros(1, dtype=torch.int32),
            barrier=mp.get_context("spawn").Barrier(processes) if processes > 1 else None,
        )
        if processes > 1:
            for tensor in (buffers.weights, buffers.average, buffers.gradients, buffers.norms, buffers.stop):
                tensor.share_memory_()  # type: ignore[no-untyped-call]
        return buffers

    @property
    def processes(self) -> int:
        """The number of processes."""
        return len(self.norms)

    def wait(self) -> None:
        """Wait until every process has come to this point."""
        if self.barrier is not None:
            self.barrier.wait()


class _Part:
    """A weight tensor that this process updates: its float32 copies, and its place in the shared buffers."""

    def __init__(self, name: str, parameter: nn.Parameter, place: slice, device: torch.device) -> None:
        self.name, self.place = name, place
        self.master = nn.Parameter(parameter.detach().clone().float().to(device))
        self.average = self.master.detach().clone()


@dataclass(frozen=True, slots=True)
class _Place:
    """A weight tensor of the model, and where it lies in the shared buffers."""

    name: str
    parameter: nn.Parameter
    place: slice


class SharedOptimizer:
    """The optimiser of one process. Creating it moves the model's weights into the shared buffers."""

    def __init__(self, model: nn.Module, shared: SharedBuffers, rank: int, schedule: Schedule) -> None:
        self._shared, self._rank, self._schedule = shared, rank, schedule
        self._places = _places(model)
        self._parts = [
            _Part(place.name, place.parameter, place.place, shared.weights.device)
            for place in self._own_places(shared.processes)
        ]
        for part in self._parts:
            self._publish(part)
        for place in self._places:
            shape = place.parameter.shape
            place.parameter.data = shared.weights[place.place].view(shape)
            place.parameter.grad = shared.gradients[rank][place.place].view(shape)
        self._adam = self._adam_with_groups()

    def _own_places(self, processes: int) -> list[_Place]:
        """The tensors that this process updates. Each goes to the process with the least work, the largest first."""
        load = [0] * processes
        own = []
        for place in sorted(self._places, key=lambda place: -place.parameter.numel()):
            owner = load.index(min(load))
            load[owner] += place.parameter.numel()
            if owner == self._rank:
                own.append(place)
        return own

    def _adam_with_groups(self) -> torch.optim.AdamW:
        schedule = self._schedule
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        for part in self._parts:
            rate = schedule.pretrained_rate if part.name.startswith("model.encoder.") else schedule.new_rate
            decay = schedule.weight_decay if part.master.dim() > 1 else 0.0
            groups.setdefault((rate, decay), []).append(part.master)
        return torch.optim.AdamW(
            [
                {"params": params, "lr": rate, "peak": rate, "weight_decay": decay}
                for (rate, decay), params in groups.items()
            ],
            betas=(0.9, 0.98),
            fused=True,
        )

    def zero_gradients(self) -> None:
        """Forget the gradients of this process."""
        self._shared.gradients[self._rank].zero_()

    def step(self, step: int) -> None:
        """Update this process's part with the mean gradient of all processes. Steps count from 0.

        All processes must call it. On return, the weights of all parts are new.
        """
        self._shared.wait()
        self._take_mean_gradients()
        self._clip_gradients()
        rate = self._schedule.rate(step)
        for group in self._adam.param_groups:
            group["lr"] = group["peak"] * rate
        self._adam.step()
        for part in self._parts:
            self._publish(part)
        if (step + 1) % _AVERAGE_EVERY_STEPS == 0:
            self._update_average(step + 1)
        self._shared.wait()

    def _take_mean_gradients(self) -> None:
        for part in self._parts:
            gradient = self._shared.gradients[:, part.place].float().mean(0)
            part.master.grad = gradient.view(part.master.shape)

    def _clip_gradients(self) -> None:
        """Scale the gradients if their norm over all processes is too large."""
        gradients = [part.master.grad for part in self._parts if part.master.grad is not None]
        self._shared.norms[self._rank] = float(sum(gradient.square().sum() for gradient in gradients))
        self._shared.wait()
        norm = math.sqrt(float(self._shared.norms.sum()))
        if norm > self._schedule.clip_norm:
            for gradient in gradients:
                gradient.mul_(self._schedule.clip_norm / norm)

    def _update_average(self, steps_done: int) -> None:
        # at first a plain average over all steps so far
        decay = min(self._schedule.average_decay, (1 + steps_done) / (10 + steps_done)) ** _AVERAGE_EVERY_STEPS
        for part in self._parts:
            part.average.lerp_(part.master.detach(), 1 - decay)

    def _publish(self, part: _Part) -> None:
        """Copy a part to the shared weights."""
        self._shared.weights[part.place] = part.master.detach().flatten().to(self._shared.weights.dtype)

    def load_average(self, model: nn.Module) -> None:
        """Let a model of the same shape use the moving average as its weights. All processes must call it."""
        for part in self._parts:
            self._shared.average[part.place] = part.average.flatten().to(self._shared.average.dtype)
        self._shared.wait()
        for place, parameter in zip(self._places, model.parameters(), strict=True):
            parameter.data = self._shared.average[place.place].view(parameter.shape)

    def state(self) -> dict[str, dict[str, Tensor]]:
        """The state of this process's part, from which a run can resume; by weight name."""
        return {
            part.name: {
                "master": part.master.detach(),
                "average": part.average,
                **{key: self._adam.state[part.master][key] for key in _MOMENTS},
            }
            for part in self._parts
        }

    def load_state(self, state: dict[str, dict[str, Tensor]]) -> None:
        """Continue from the states of all processes, whatever their number was."""
        for part in self._parts:
            saved = state[part.name]
            part.master.data, part.average = saved["master"], saved["average"]
            self._adam.state[part.master] = {key: saved[key] for key in _MOMENTS}
            self._publish(part)


def _places(model: nn.Module) -> list[_Place]:
    """All weights of a model, one behind the other."""
    places, begin = [], 0
    for name, parameter in model.named_parameters():
        places.append(_Place(name, parameter, slice(begin, begin + parameter.numel())))
        begin += parameter.numel()
    return places
