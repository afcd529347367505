"""A GNER checkpoint: its files, what they describe, and the loaded model.

`resolve` reads the small files only (and downloads everything for a hub id), so the web process knows a checkpoint's
name and version before the model is loaded. `load` loads the model.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal

import torch
from httpx2 import HTTPError  # huggingface_hub passes it on
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    BitsAndBytesConfig,
)
from transformers.utils import logging as transformers_logging

from backend.engine.codec import Codec, Limits
from backend.engine.draft_head import DraftHead
from backend.engine.family import BertToBertFamily, CausalFamily, Family, T5Family
from backend.errors import CheckpointError, InvalidSettings
from backend.ner.prompt import CAUSAL_WRAPPER, PUBLISHED_TEMPLATE, PromptFormat

BUNDLED = Path(__file__).parent.parent / "models"
DEFAULT_MODEL = "gner-mini"

# Increase this when segmentation, prompts or decoding change a checkpoint's predictions. It is part of every version
# and of every cache key.
_PREDICTION_CODE = "1"
# Training and evaluation of the published checkpoints cut source and target at these lengths.
_PUBLISHED_LIMITS = Limits(source_tokens=640, target_tokens=640)
_WEIGHTS = ("*.safetensors", "*.bin")
_OTHER_FILES = ("*.json", "*.model", "*.txt")
# Without one of these, transformers silently makes a tokenizer with an empty vocabulary.
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt")
# The digest covers files up to this size completely, and of larger files the size, the beginning and the end.
_WHOLE_DIGEST_BYTES = 64 * 2**20
_SAMPLE_BYTES = 2**20

Kind = Literal["seq2seq", "causal"]
Quantization = Literal["off", "int8", "int4"]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint whose model is not loaded yet. `scores` are its measured span F1 by test set, 0..1."""

    name: str
    path: Path
    kind: Kind
    prompt_format: PromptFormat
    limits: Limits
    digest: str
    draft_head: Path | None = None
    marks_case: bool = False
    scores: dict[str, float] = field(default_factory=dict)

    @property
    def version(self) -> str:
        """The model version that Label Studio shows. It changes exactly when predictions may change."""
        return f"{self.name}-{self.digest[:10]}"


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A checkpoint in memory."""

    checkpoint: Checkpoint
    family: Family
    codec: Codec
    device: torch.device
    dtype: torch.dtype


def resolve(model: str) -> Checkpoint:
    """Find a checkpoint by the name of a bundled one, a folder or a hub id.

    Raises CheckpointError, which names the value, if anything is missing.
    """
    path = BUNDLED / model if (BUNDLED / model / "config.json").is_file() else Path(model)
    if not path.is_dir():
        path = _download(model)
    config = _read_json(path / "config.json")
    own = _read_json(path / "gner.json") if (path / "gner.json").is_file() else {}
    if not _weight_files(path):
        raise CheckpointError(f"checkpoint {model!r}: {path} holds no weights (*.safetensors or *.bin)")
    if not any((path / name).is_file() for name in _TOKENIZER_FILES):
        raise CheckpointError(f"checkpoint {model!r}: {path} holds no tokenizer ({', '.join(_TOKENIZER_FILES)})")
    kind = _kind(model, path)
    wrapper = CAUSAL_WRAPPER if kind == "causal" else "{instruction}"
    return Checkpoint(
        name=own.get("name") or model.rstrip("/").rsplit("/", 1)[-1],
        path=path,
        kind=kind,
        prompt_format=PromptFormat(
            _text(own, "template", PUBLISHED_TEMPLATE, ("{labels}", "{sentence}")),
            _text(own, "wrapper", wrapper, ("{instruction}",)),
        ),
        limits=_limits(own, config),
        digest=_digest(path),
        draft_head=_draft_head(own, path),
        marks_case=_flag(own, "marks_case"),
        scores=own.get("scores", {}),
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path.parent} is not a checkpoint: it has no {path.name}") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} must hold a JSON object, not {type(content).__name__}")
    return content


def _weight_files(path: Path) -> list[Path]:
    return [file for pattern in _WEIGHTS for file in path.glob(pattern) if file.name != "draft_head.safetensors"]


def _kind(model: str, path: Path) -> Kind:
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"checkpoint {model!r}: its config.json is not understood: {error}") from error
    return "seq2seq" if config.is_encoder_decoder else "causal"


def _limits(own: dict[str, Any], config: dict[str, Any]) -> Limits:
    limits = Limits(
        _length(own, "max_source_tokens", _PUBLISHED_LIMITS.source_tokens),
        _length(own, "max_target_tokens", _PUBLISHED_LIMITS.target_tokens),
    )
    positions = [config.get(part, {}).get("max_position_embeddings") for part in ("encoder", "decoder")]
    return Limits(
        min(limits.source_tokens, positions[0] or limits.source_tokens),
        min(limits.target_tokens, positions[1] or limits.target_tokens),
    )


def _text(own: dict[str, Any], key: str, default: str, fields: Sequence[str]) -> str:
    value = own.get(key, default)
    if not isinstance(value, str) or any(value.count(name) != 1 for name in fields):
        raise CheckpointError(f"gner.json: {key} is {value!r}; expected a text that holds {' and '.join(fields)} once")
    return value


def _length(own: dict[str, Any], key: str, default: int) -> int:
    value = own.get(key, default)
    if not isinstance(value, int) or value < 1:
        raise CheckpointError(f"gner.json: {key} is {value!r}; expected a number of tokens")
    return value


def _flag(own: dict[str, Any], key: str) -> bool:
    value = own.get(key, False)
    if not isinstance(value, bool):
        raise CheckpointError(f"gner.json: {key} is {value!r}; expected true or false")
    return value


def _draft_head(own: dict[str, Any], path: Path) -> Path | None:
    if "draft_head" not in own:
        return None
    if not isinstance(own["draft_head"], str) or not (path / own["draft_head"]).is_file():
        raise CheckpointError(f"gner.json: draft_head is {own['draft_head']!r}; there is no such file in {path}")
    return path / own["draft_head"]


def _digest(path: Path) -> str:
    digest = hashlib.sha256(_PREDICTION_CODE.encode())
    for file in sorted(path.iterdir()):
        if file.name == "gner.json":  # without its scores: measuring a checkpoint does not change it
            own = {key: value for key, value in _read_json(file).items() if key != "scores"}
            digest.update(f"\0{file.name}\0{json.dumps(own, sort_keys=True)}\0".encode())
            continue
        if file.is_file() and any(file.match(pattern) for pattern in (*_WEIGHTS, *_OTHER_FILES)):
            size = file.stat().st_size
            digest.update(f"\0{file.name}\0{size}\0".encode())
            with file.open("rb") as content:
                if size <= _WHOLE_DIGEST_BYTES:
                    digest.update(content.read())
                else:
                    digest.update(content.read(_SAMPLE_BYTES))
                    content.seek(-_SAMPLE_BYTES, 2)
                    digest.update(content.read())
    return digest.hexdigest()


def _download(model: str) -> Path:
    if model.count("/") != 1 or model.startswith((".", "/", "~")):
        names = ", ".join(sorted(folder.name for folder in BUNDLED.iterdir() if folder.is_dir()))
        raise CheckpointError(
            f"checkpoint {model!r} is neither a bundled one ({names}) nor a folder nor a hub id (owner/name)"
        )
    try:
        files = {sibling.rfilename for sibling in HfApi().model_info(model, timeout=20).siblings or ()}
        weights = "*.safetensors" if any(name.endswith(".safetensors") for name in files) else "*.bin"
        return Path(snapshot_download(model, allow_patterns=[weights, *_OTHER_FILES]))
    except HFValidationError as error:
        raise CheckpointError(f"checkpoint {model!r} is not a valid hub id: {error}") from error
    except (HTTPError, OfflineModeIsEnabled, OSError) as error:
        return _downloaded_before(model, error)


def _downloaded_before(model: str, error: Exception) -> Path:
    try:
        return Path(snapshot_download(model, local_files_only=True))
    except LocalEntryNotFoundError:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"checkpoint {model!r} is not on this machine and cannot be downloaded ({reason}); copy it into a "
            "folder and name that folder, or use the bundled gner-mini"
        ) from error


def pick_device(setting: str) -> torch.device:
    """`auto`, `cpu`, `cuda` or `cuda:N` -> a device of this machine. Raises InvalidSettings if there is none."""
    if setting == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(setting)
    except RuntimeError:
        raise InvalidSettings(f"GNER_DEVICE={setting!r} is not a device: use auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise InvalidSettings(f"GNER_DEVICE={setting!r} is not supported: use auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InvalidSettings(f"GNER_DEVICE={setting!r}: this machine has {torch.cuda.device_count()} CUDA devices")
    return device


def pick_dtype(setting: str, device: torch.device) -> torch.dtype:
    """`auto`, `float32` or `bfloat16` -> a dtype. float16 is not offered: it overflows in T5's feed-forward layers."""
    if setting == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[setting]


def load(
    checkpoint: Checkpoint,
    device: torch.device,
    dtype: torch.dtype,
    *,
    all_gpus: bool = False,
    quantization: Quantization = "off",
) -> LoadedModel:
    """Load tokenizer and model. Never runs code from a checkpoint; `.bin` files are read weights-only.

    `all_gpus` spreads the layers over all GPUs; inputs go to `device`. `quantization` needs bitsandbytes.
    Raises CheckpointError if the files are not a model, or do not fit into the device's memory, and InvalidSettings.
    """
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # not into a server's log
    placement = _placement(device, dtype, all_gpus=all_gpus, quantization=quantization)
    try:
        tokenizer = AutoTokenizer.from_pretrained(checkpoint.path, trust_remote_code=False)
        model = _load_weights(checkpoint, device, dtype, placement)
    except torch.cuda.OutOfMemoryError as error:
        raise _does_not_fit(checkpoint, device) from error
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError, UnpicklingError) as error:
        raise CheckpointError(
            f"checkpoint {checkpoint.name!r} in {checkpoint.path} cannot be loaded: {error}"
        ) from error
    codec = Codec(
        tokenizer,
        checkpoint.prompt_format,
        checkpoint.limits,
        source_ends_with_eos=checkpoint.kind == "seq2seq",
        locates_words=checkpoint.draft_head is not None,
        marks_case=checkpoint.marks_case,
    )
    return LoadedModel(checkpoint, _family(checkpoint, model), codec, device, dtype)


def _load_weights(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype, placement: dict[str, Any]) -> Any:
    auto_class = AutoModelForSeq2SeqLM if checkpoint.kind == "seq2seq" else AutoModelForCausalLM
    loaded: Any = auto_class.from_pretrained(
        checkpoint.path,
        dtype=dtype,
        trust_remote_code=False,
        weights_only=True,
        attn_implementation="sdpa",
        output_loading_info=True,
        **placement,
    )
    model, report = loaded
    _require_all_weights(checkpoint, report)
    return (model if placement else model.to(device)).eval()


def _require_all_weights(checkpoint: Checkpoint, report: dict[str, Any]) -> None:
    """transformers fills missing weights with random numbers. Raises CheckpointError if there are any."""
    missing = sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]]))
    if missing:
        raise CheckpointError(
            f"checkpoint {checkpoint.name!r} in {checkpoint.path} lacks {len(missing)} of the model's weights: "
            f"{', '.join(missing[:3])} ..."
        )


def _does_not_fit(checkpoint: Checkpoint, device: torch.device) -> CheckpointError:
    free_bytes, total_bytes = torch.cuda.mem_get_info(device)
    return CheckpointError(
        f"checkpoint {checkpoint.name!r} does not fit on {device}: {free_bytes / 2**30:.1f} of "
        f"{total_bytes / 2**30:.1f} GiB are free; use a smaller checkpoint or another device"
    )


def _placement(
    device: torch.device, dtype: torch.dtype, *, all_gpus: bool, quantization: Quantization
) -> dict[str, Any]:
    """Arguments with which from_pretrained places the weights itself; none for one device without quantization."""
    if not all_gpus and quantization == "off":
        return {}
    if device.type != "cuda":
        raise InvalidSettings(
            f"GNER_GPUS=all and GNER_QUANTIZATION={quantization!r} need a GPU; the device is {device}"
        )
    placement: dict[str, Any] = {"device_map": "auto" if all_gpus else {"": device}}
    if quantization != "off":
        if find_spec("bitsandbytes") is None:
            raise InvalidSettings(
                f"GNER_QUANTIZATION={quantization!r} needs the package bitsandbytes: pip install bitsandbytes"
            )
        bits = {"load_in_8bit": True} if quantization == "int8" else {"load_in_4bit": True}
        placement["quantization_config"] = BitsAndBytesConfig(  # type: ignore[no-untyped-call]
            **bits, bnb_4bit_compute_dtype=dtype
        )
    return placement


def _family(checkpoint: Checkpoint, model: Any) -> Family:
    if checkpoint.kind == "causal":
        return CausalFamily(model)
    if model.config.model_type == "encoder-decoder":
        if model.config.decoder.model_type != "bert":
            raise CheckpointError(
                f"checkpoint {checkpoint.name!r} has a decoder of type {model.config.decoder.model_type!r}; "
                "only bert is supported"
            )
        head = DraftHead.load(checkpoint.draft_head) if checkpoint.draft_head is not None else None
        return BertToBertFamily(model, None if head is None else head.to(model.device, model.dtype))
    if model.config.model_type in ("t5", "mt5"):
        return T5Family(model)
    raise CheckpointError(
        f"checkpoint {checkpoint.name!r} is of type {model.config.model_type!r}; supported are t5, mt5, "
        "encoder-decoder (bert) and decoder-only models"
    )
