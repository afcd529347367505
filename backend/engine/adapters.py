"""LoRA adapters on a loaded model: small trained changes, of which at most one is active.

PEFT's layers replace the model's linear layers, so the families' code runs unchanged. Without an active adapter, every
layer runs its base layer only: outputs equal those of the plain model bit for bit.

A saved adapter is a folder in PEFT's format. `adapter_model.safetensors` holds `lora_A.weight` (rank, in) and
`lora_B.weight` (out, rank) of each adapted layer; `adapter_config.json` holds rank, alpha and the layers' names. Other
settings in the config are ignored.

Source: Hu et al. 2021, "LoRA" (arXiv:2106.09685).
"""

import json
import math
from collections import OrderedDict
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from backend.engine.adapter_files import CONFIG_FILE, WEIGHTS_FILE
from backend.engine.family import Family
from backend.errors import AdapterError

_KEY_PREFIX = "base_model.model."  # PEFT's prefix of layer names in the file
_MATRICES = ("lora_A", "lora_B")
# The head turns hidden states into token scores for every label set, so it is not adapted.
_HEADS = ("lm_head", "cls")


@dataclass(frozen=True, slots=True)
class AdapterSettings:
    """A new adapter: B @ A, of rank `rank`, is scaled by alpha / rank and added to each adapted layer."""

    rank: int = 16
    alpha: int = 32
    seed: int = 0


@dataclass(frozen=True, slots=True)
class _Saved:
    """An adapter's files in memory. Tensors are by layer name and matrix name."""

    rank: int
    alpha: int
    tensors: dict[str, dict[str, Tensor]]


class Adapters:
    """The adapters of one model. Not thread-safe: they belong to the model's thread, as the model does."""

    def __init__(self, family: Family, max_loaded: int = 16) -> None:
        """At most `max_loaded` adapters stay in memory; the least recently active one is dropped first."""
        self._model = family.model
        self._max_loaded = max_loaded
        self._keys: OrderedDict[str, str] = OrderedDict()  # name -> PEFT's name for it, least recently used first
        self._settings: dict[str, AdapterSettings] = {}
        self._numbers = count()
        self._layers: dict[
            str, Any
        ] = {}  # PEFT's layers by the name of the layer that each wraps; empty until the first adapter
        self._active: str | None = None
        self._targets = tuple(
            name
            for name, module in self._model.named_modules()
            if isinstance(module, nn.Linear) and not set(name.split(".")) & set(_HEADS)
        )

    @property
    def active(self) -> str | None:
        """The name of the active adapter; None is the base model."""
        return self._active

    @property
    def loaded(self) -> tuple[str, ...]:
        """The names of the adapters in memory, the least recently active one first."""
        return tuple(self._keys)

    def activate(self, name: str | None, folder: Path | None = None) -> None:
        """Activate an adapter; None activates the base model. An adapter is read from `folder` on first use.

        Raises AdapterError if the folder's files are missing, damaged or of another model, or if no folder is given for
        an adapter that is not in memory. The adapter before then stays active.
        """
        if name is not None and name not in self._keys:
            if folder is None:
                raise AdapterError(f"adapter {name!r} is not loaded, and no folder was given to read it from")
            self._load(name, _read(folder, self._shapes()), self._model.dtype)
        self._switch(name)

    def new(self, name: str, settings: AdapterSettings, parent: Path | None = None) -> list[nn.Parameter]:
        """Create an adapter for training and activate it. Returns its parameters, in float32.

        It starts as a copy of the adapter in `parent`, with its rank and alpha, or as no change at all.
        Raises AdapterError for a name that is loaded already, and for a `parent` that `activate` could not read.
        """
        if name in self._keys:
            raise AdapterError(f"an adapter {name!r} is loaded already")
        self._load(name, self._blank(settings) if parent is None else _read(parent, self._shapes()), torch.float32)
        self._switch(name)
        parameters = [
            getattr(layer, matrix)[self._keys[name]].weight for layer in self._layers.values() for matrix in _MATRICES
        ]
        for parameter in parameters:
            parameter.requires_grad_(True)
        return parameters

    def scale(self, name: str, part: float) -> None:
        """Reduce an adapter's change to the part `part`, 0..1: weights between those of the base and the trained ones.

        Raises AdapterError for a name that is not loaded.
        """
        key = self._known(name)
        for layer in self._layers.values():
            layer.lora_B[key].weight.data.mul_(part)

    def save(self, name: str, folder: Path) -> None:
        """Write an adapter's two files into an existing folder. The same weights give the same bytes.

        Raises AdapterError for a name that is not loaded.
        """
        key = self._known(name)
        tensors = {
            f"{_KEY_PREFIX}{layer_name}.{matrix}.weight": getattr(layer, matrix)[key]
            .weight.detach()
            .float()
            .cpu()
            .contiguous()
            for layer_name, layer in self._layers.items()
            for matrix in _MATRICES
        }
        settings = self._settings[name]
        config = {
            "peft_type": "LORA",
            "r": settings.rank,
            "lora_alpha": settings.alpha,
            "target_modules": sorted(self._targets),
            "bias": "none",
            "lora_dropout": 0.0,
            "inference_mode": True,
        }
        save_file(tensors, folder / WEIGHTS_FILE)
        (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")

    def drop(self, name: str) -> None:
        """Remove an adapter from memory. If it was active, the base model becomes active.

        Raises AdapterError for a name that is not loaded.
        """
        key = self._known(name)
        if self._active == name:
            self._switch(None)
        for layer in self._layers.values():
            layer.delete_adapter(key)
        del self._keys[name], self._settings[name]

    def _known(self, name: str) -> str:
        if name not in self._keys:
            raise AdapterError(f"adapter {name!r} is not loaded; loaded are {list(self._keys)}")
        return self._keys[name]

    def _shapes(self) -> dict[str, tuple[int, int]]:
        """(in, out) of each adapted layer."""
        modules = {name: self._model.get_submodule(name) for name in self._targets}
        return {name: (module.in_features, module.out_features) for name, module in modules.items()}

    def _blank(self, settings: AdapterSettings) -> _Saved:
        """An adapter that changes nothing yet: B is zero, A is random as in PEFT, but from a generator of its own."""
        generator = torch.Generator().manual_seed(settings.seed)
        tensors = {}
        for name, (size_in, size_out) in self._shapes().items():
            first = nn.init.kaiming_uniform_(torch.empty(settings.rank, size_in), a=math.sqrt(5), generator=generator)
            tensors[name] = {"lora_A": first, "lora_B": torch.zeros(size_out, settings.rank)}
        return _Saved(settings.rank, settings.alpha, tensors)

    def _load(self, name: str, saved: _Saved, dtype: torch.dtype) -> None:
        while len(self._keys) >= self._max_loaded:
            self.drop(next(iter(self._keys)))
        from peft import LoraConfig, inject_adapter_in_model  # takes seconds, and the base model does not need it

        key = f"adapter{next(self._numbers)}"  # a version's name may contain dots, a module's may not
        config = LoraConfig(r=saved.rank, lora_alpha=saved.alpha, target_modules=list(self._targets))
        if self._layers:
            for layer in self._layers.values():
                layer.update_layer(key, saved.rank, saved.alpha, config=config)
        else:
            inject_adapter_in_model(config, self._model, key)
            self._layers = {name: self._model.get_submodule(name) for name in self._targets}
        self._keys[name] = key
        self._settings[name] = AdapterSettings(saved.rank, saved.alpha)
        for layer_name, layer in self._layers.items():
            for matrix in _MATRICES:
                weight = getattr(layer, matrix)[key].weight
                weight.data = saved.tensors[layer_name][matrix].to(weight.device, dtype)
        self._switch(self._active)  # PEFT activates what it injects

    def _switch(self, name: str | None) -> None:
        for layer in self._layers.values():
            layer.enable_adapters(name is not None)
            layer.set_adapter([] if name is None else [self._keys[name]], inference_mode=True)
        if name is not None:
            self._keys.move_to_end(name)
        self._active = name


def _read(folder: Path, shapes: dict[str, tuple[int, int]]) -> _Saved:
    """Read an adapter's files and check them against the (in, out) of every adapted layer."""
    try:
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        rank, alpha = config["r"], config["lora_alpha"]
        with safe_open(folder / WEIGHTS_FILE, "pt") as file:
            flat = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  # it is not a mapping
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise AdapterError(f"cannot read the adapter in {folder}: {type(error).__name__}: {error}") from error
    if not (isinstance(rank, int) and isinstance(alpha, int) and rank > 0):
        raise AdapterError(f"{folder / CONFIG_FILE}: r is {rank!r}, lora_alpha is {alpha!r}; expected two numbers")
    expected = {
        f"{_KEY_PREFIX}{name}.{matrix}.weight": shape
        for name, (size_in, size_out) in shapes.items()
        for matrix, shape in (("lora_A", (rank, size_in)), ("lora_B", (size_out, rank)))
    }
    found = {key: tuple(tensor.shape) for key, tensor in flat.items()}
    if found != expected:
        wrong = sorted(key for key in found.keys() | expected.keys() if found.get(key) != expected.get(key))
        raise AdapterError(
            f"the adapter in {folder} was not made for this model: {len(wrong)} of its tensors differ, the first is "
            f"{wrong[0]} of shape {found.get(wrong[0])}, expected {expected.get(wrong[0])}"
        )
    if not all(torch.isfinite(tensor).all() for tensor in flat.values()):
        raise AdapterError(f"the adapter in {folder} holds values that are not finite")
    tensors = {name: {matrix: flat[f"{_KEY_PREFIX}{name}.{matrix}.weight"] for matrix in _MATRICES} for name in shapes}
    return _Saved(rank, alpha, tensors)
