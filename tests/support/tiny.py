"""Tiny random models of each published class, with real tokenizers over the words of a few lines written here."""

import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    EncoderDecoderConfig,
    EncoderDecoderModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from backend.engine.codec import Codec, Limits
from backend.engine.draft_head import DraftHead
from backend.engine.family import BertToBertFamily, CausalFamily, Family, T5Family
from backend.ner.prompt import CAUSAL_WRAPPER, PUBLISHED_TEMPLATE, PromptFormat

LINES = [
    "Marie Curie worked in Paris for the University of Paris .",
    "did(O) george(B-actor) clooney(I-actor) make(O) a(O) musical(B-genre) in(O) the(O) 1980s(B-year)",
    "0 1 2 3 4 5 6 7 8 9 00 11 22 33 44 55 66 77 88 99 01234567890 a b c d e f g h i j k l m n o p q r s t u v w x y z",
    "The person , organization and location : a work of art , a creative work ( 2024 ) !",
    "person(B-person) work(B-work) of(B-work of art) art(I-work of art) city(B-city) O(O) x(B-x) label(B-label)",
    PUBLISHED_TEMPLATE.format(labels="person", sentence="Marie"),
]
# Flan-T5's vocabulary has none of these; the tiny one is made without them too.
T5_GAPS = "{}~\\`^<"


def _pieces(at_start: str, inside: str) -> list[str]:
    """Runs of letters or digits and single signs of the lines' words, each marked by where in its word it stands.

    Vocabularies are put together from them by hand: trainers break ties another way in every process.
    """
    return [
        (at_start if match.start() == 0 else inside) + match[0]
        for line in LINES
        for word in line.split()
        for match in re.finditer(r"[^\W\d_]+|\d+|.", word)
    ]


@cache
def t5_tokenizer() -> PreTrainedTokenizerFast:
    """A unigram model with sentencepiece's word marks, as T5's."""
    signs = sorted(set("".join(LINES)) - {" ", *T5_GAPS})
    pieces = [piece for piece in _pieces("▁", "") if not set(piece) & set(T5_GAPS)] + ["(B-", "(I-", "(O)"]
    longer = [piece for piece in dict.fromkeys(pieces) if len(piece) > 1]
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -9.0)]
    vocab += [(sign, -9.0) for sign in signs if sign != "\n"] + [(piece, -6.0) for piece in longer]
    tokenizer = Tokenizer(models.Unigram(vocab, unk_id=2))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", tokenizer.token_to_id("</s>"))]
    )
    return _fast_tokenizer(tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


@cache
def llama_tokenizer() -> PreTrainedTokenizerFast:
    """A BPE model with sentencepiece's word marks and byte fallback, as LLaMA's."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=special, show_progress=False)
    # without a pre-tokenizer BPE would merge whole lines: give it words, and `](` often enough to become a token
    tokenizer.train_from_iterator(
        [w for line in LINES * 4 for w in line.split()] + ["](O)", "](B-person)"] * 50, trainer
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    return _fast_tokenizer(tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@cache
def bert_tokenizer() -> PreTrainedTokenizerFast:
    """An uncased WordPiece model, as MiniLM's."""
    signs = sorted(set("".join(LINES).lower()) - set(" \n"))
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *signs, *(f"##{sign}" for sign in signs)]
    pieces += [piece.lower() for piece in _pieces("", "")]
    vocab = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ids = {token: tokenizer.token_to_id(token) for token in ("[CLS]", "[SEP]")}
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=list(ids.items()))
    return _fast_tokenizer(tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]")


def _fast_tokenizer(tokenizer: Tokenizer, **special_tokens: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special_tokens)  # type: ignore[no-untyped-call]


def t5_model(seed: int = 0, *, scaled: bool = False) -> T5ForConditionalGeneration:
    """Flan-T5's shape in small: gated FFN, head apart from the embedding unless `scaled`."""
    torch.manual_seed(seed)
    config = T5Config(
        vocab_size=len(t5_tokenizer()),
        d_model=32,
        d_kv=8,
        d_ff=48,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        pad_token_id=0,
        eos_token_id=1,
        # what every config takes, and T5Config's own signature does not list
        **{"tie_word_embeddings": scaled, "decoder_start_token_id": 0},  # type: ignore[arg-type]
    )
    return _wide(T5ForConditionalGeneration(config))


def llama_model(seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(llama_tokenizer()),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        bos_token_id=1,
        eos_token_id=2,
    )
    return _wide(LlamaForCausalLM(config))


def bert_model(seed: int = 0) -> EncoderDecoderModel:
    torch.manual_seed(seed)
    shape: dict[str, Any] = {
        "vocab_size": len(bert_tokenizer()),
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "max_position_embeddings": 1024,
    }
    config = EncoderDecoderConfig.from_encoder_decoder_configs(BertConfig(**shape), BertConfig(**shape))
    config.decoder_start_token_id, config.pad_token_id, config.eos_token_id = 2, 0, 3
    model = EncoderDecoderModel(config)
    model.generation_config.decoder_start_token_id = 2
    # BERT's residuals carry mostly the token itself, which is forced: what stands before must weigh more
    return _wide(model, attention=50, rest=0.6)


Model = TypeVar("Model", bound=PreTrainedModel)


def _wide(model: Model, *, attention: float = 2.5, rest: float = 2.5) -> Model:
    """Random weights as they are initialised make every logit alike; scaled up, decisions depend on the prefix."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2 and "position" not in name:
                parameter.mul_(attention if "attention" in name else rest)
    model.eval()  # type: ignore[no-untyped-call]
    return model


def t5(seed: int = 0, *, scaled: bool = False) -> tuple[Family, Codec]:
    codec = Codec(t5_tokenizer(), PromptFormat(), Limits(1000, 1000), source_ends_with_eos=True)
    return T5Family(t5_model(seed, scaled=scaled)), codec


def llama(seed: int = 0) -> tuple[Family, Codec]:
    prompt_format = PromptFormat(wrapper=CAUSAL_WRAPPER)
    codec = Codec(llama_tokenizer(), prompt_format, Limits(1500, 500), source_ends_with_eos=False)
    return CausalFamily(llama_model(seed)), codec


def bert(seed: int = 0) -> tuple[Family, Codec]:
    prompt_format = PromptFormat("{labels} : {sentence}")
    codec = Codec(bert_tokenizer(), prompt_format, Limits(1000, 1000), source_ends_with_eos=True)
    return BertToBertFamily(bert_model(seed)), codec


def bert_with_draft_head(seed: int = 0, *, limit: int = 1000) -> tuple[Family, Codec]:
    """The bundled checkpoint's kind: its encoder drafts. `limit` is its context in tokens."""
    prompt_format = PromptFormat("{labels} : {sentence}")
    codec = Codec(bert_tokenizer(), prompt_format, Limits(limit, limit), source_ends_with_eos=True, locates_words=True)
    # the head's random weights follow those of the model, which are drawn from `seed`
    return BertToBertFamily(bert_model(seed), DraftHead(32, 8).eval()), codec


FAMILIES = {"t5": t5, "llama": llama, "bert": bert}


_MODELS: dict[str, tuple[Callable[[int], PreTrainedModel], Callable[[], PreTrainedTokenizerFast]]] = {
    "t5": (t5_model, t5_tokenizer),
    "llama": (llama_model, llama_tokenizer),
    "bert": (bert_model, bert_tokenizer),
}


def save(family: str, folder: Path, seed: int = 0) -> Path:
    """Write a checkpoint folder as transformers does: config, safetensors, tokenizer."""
    model, tokenizer = _MODELS[family]
    model(seed).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder
