"""A recipe, corpora and an encoder that are small enough to train in seconds."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import BertConfig, BertModel

from backend.pretraining.mixture import MixtureRecipe
from backend.pretraining.recipe import Architecture, LossWeights, Recipe, Schedule

NEWS = """Ada\tB-person
Byron\tI-person
left\tO
Rome\tB-place
.\tO

Oslo\tB-place
is\tO
cold\tO

Grace\tB-person
sang\tO
in\tO
New\tB-place
Lima\tI-place

it\tO
rained\tO
in\tO
Paris-based\tB-place
firms\tO
"""
DRUGS = """aspirin\tB-chemical
cures\tO
heart\tB-sad disease
pain\tI-sad disease

no\tO
pain\tB-sad disease
today\tO
"""
_WORDS = "ada byron left rome oslo is cold grace sang in new lima it rained paris based firms aspirin cures heart pain"
_MORE = "no today person place chemical sad disease human clooney"


def recipe(steps: int = 6, processes: int = 1, **schedule: float) -> Recipe:
    """A recipe of a few steps, with one report at the end."""
    mixture = MixtureRecipe(
        shares={"news": 2.0, "drugs": 1.0},
        foreign={"news": ["chemical"]},
        synonyms={"person": ["human"]},
        shuffle_labels=0.5,
        rename_label=0.2,
        drop_labels=0.2,
        add_foreign=0.2,
        split_words=0.5,
        join_sentences=0.3,
        max_joined=3,
        swap_mentions=0.3,
        drop_final_stop=0.2,
    )
    settings = {
        "steps": steps,
        "warmup_steps": 1,
        "decay_steps": 2,
        "batch_tokens": 120,
        "pool_examples": 16,
        "processes": processes,
        "pretrained_rate": 1e-3,
        "new_rate": 1e-3,
        "weight_decay": 0.01,
        "clip_norm": 1.0,
        "average_decay": 0.9,
        "report_every_steps": steps,
        **schedule,
    }
    return Recipe(
        name="small",
        template="{labels} : {sentence}",
        seed=3,
        held_out=0.5,
        held_out_max=2,
        architecture=Architecture(
            vocabulary_size=200,
            vocabulary_min_count=1,
            decoder_layers=2,
            decoder_hidden=16,
            decoder_heads=2,
            decoder_ffn=32,
            draft_size=8,
            max_tokens=64,
        ),
        schedule=Schedule(**settings),  # type: ignore[arg-type]
        losses=LossWeights(copy=0.3, draft=1.0, pointer=0.2),
        mixture=mixture,
    )


def write_corpora(folder: Path) -> Path:
    """`news` and `drugs`, with a train split each; `news` has a test split too."""
    for name, text in (("news", NEWS), ("drugs", DRUGS)):
        (folder / name).mkdir(parents=True)
        (folder / name / "train.conll").write_text(text, encoding="utf-8")
    (folder / "news" / "test.conll").write_text("Ada\tB-person\nsang\tO\n", encoding="utf-8")
    return folder


def write_encoder(folder: Path) -> Path:
    """A BERT encoder of two layers with random weights, and a WordPiece tokenizer, laid out as MiniLM's folder is."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)] + list("0123456789.,:;-()'@#é中")
    pieces = ["[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters]
    pieces += [f"##{letter}" for letter in letters] + f"{_WORDS} {_MORE}".split() + ["##ain", "##ed", "москва"]
    tokenizer = Tokenizer(models.WordPiece({piece: index for index, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    torch.manual_seed(1)
    config = BertConfig(
        vocab_size=len(pieces),
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
    )
    BertModel(config).save_pretrained(folder)
    return folder
