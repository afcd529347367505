"""Measures how near type names are in meaning, with the sentence encoder that the bundled checkpoint starts from."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import BertModel

from backend.pretraining.schemas import EntityTypes
from backend.pretraining.tokenizer import read_tokenizer

_BATCH = 256


def entity_types(
    names: Iterable[str],
    encoder_folder: Path,
    never_asked: frozenset[str] = frozenset(),
    synonyms: Mapping[str, Sequence[str]] | None = None,
) -> EntityTypes:
    """The distinct names, sorted, with their vectors. `never_asked` holds names in lower case."""
    distinct = sorted({*names})
    return EntityTypes(distinct, vectors(distinct, encoder_folder), never_asked, synonyms)


@torch.inference_mode()
def vectors(texts: list[str], encoder_folder: Path) -> NDArray[np.float32]:
    """(texts, hidden): the mean state of each text's tokens, scaled to length 1."""
    tokenizer = read_tokenizer(encoder_folder / "tokenizer.json")
    tokenizer.enable_padding()
    encoder: Any = BertModel.from_pretrained(encoder_folder, dtype=torch.float32)
    encoder.eval()
    found = np.zeros((len(texts), encoder.config.hidden_size), dtype=np.float32)
    order = sorted(range(len(texts)), key=lambda index: len(texts[index]))  # little padding
    for begin in range(0, len(texts), _BATCH):
        chosen = order[begin : begin + _BATCH]
        encoded = tokenizer.encode_batch([texts[index].lower() for index in chosen])
        ids = torch.tensor([row.ids for row in encoded])
        mask = torch.tensor([row.attention_mask for row in encoded])
        states = encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        means = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        found[chosen] = torch.nn.functional.normalize(means, dim=-1).numpy()
    return found
