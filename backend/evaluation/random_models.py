"""Models with the shapes of published checkpoints and random weights, to time them without a download."""

from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, T5Config, T5ForConditionalGeneration

from backend.engine.checkpoint import LoadedModel
from backend.engine.codec import Codec, Limits
from backend.engine.family import CausalFamily, Family, T5Family
from backend.ner.prompt import CAUSAL_WRAPPER, PromptFormat

# Flan-T5 has the architecture of T5 1.1: gated feed-forward layers, and an output layer that is not tied.
T5_SHAPES: dict[str, dict[str, int]] = {
    "t5-base": {"d_model": 768, "d_ff": 2048, "num_layers": 12, "num_heads": 12, "d_kv": 64},
    "t5-large": {"d_model": 1024, "d_ff": 2816, "num_layers": 24, "num_heads": 16, "d_kv": 64},
}


LLAMA_SHAPES: dict[str, dict[str, int]] = {
    "llama-7b": {
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
    },
}


_VOCABULARY = 32_128


def _with_random_weights(shape: str, eos_token_id: Any) -> Any:
    if shape in LLAMA_SHAPES:
        llama: dict[str, Any] = {"vocab_size": _VOCABULARY, **LLAMA_SHAPES[shape]}
        return LlamaForCausalLM(LlamaConfig(**llama))
    t5: dict[str, Any] = {"vocab_size": _VOCABULARY, **T5_SHAPES[shape]}
    t5 |= {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
    t5 |= {"pad_token_id": 0, "eos_token_id": eos_token_id, "decoder_start_token_id": 0}
    return T5ForConditionalGeneration(T5Config(**t5))


def random_model(shape: str, like: LoadedModel) -> LoadedModel:
    """A model of a published shape with random weights, and the published prompt.

    It takes device, dtype and tokenizer from `like`, because the published tokenizers need a download.
    """
    default = torch.get_default_dtype()
    torch.set_default_dtype(like.dtype)
    try:
        with torch.device(like.device):
            model = _with_random_weights(shape, like.codec.tokenizer.sep_token_id)
    finally:
        torch.set_default_dtype(default)
    causal = shape in LLAMA_SHAPES
    codec = Codec(
        like.codec.tokenizer,
        PromptFormat(wrapper=CAUSAL_WRAPPER) if causal else PromptFormat(),
        Limits(1_000, 1_000),
        source_ends_with_eos=not causal,
    )
    family: Family = CausalFamily(model.eval()) if causal else T5Family(model.eval())
    return LoadedModel(like.checkpoint, family, codec, like.device, like.dtype)
