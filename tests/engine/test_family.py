"""A row's result does not depend on the other rows of its batch."""

import pytest
import torch

from backend.engine import family as family_module
from tests.support import tiny

LABELS = ("person", "work of art")
TEXTS = (
    "Marie Curie worked in Paris",
    "Paris",
    "the University of art in Paris for the work of Marie Curie",
    "in 2024",
)


@pytest.mark.parametrize("tokens", [1, 64, 10_000], ids=["one by one", "in groups", "all at once"])
@pytest.mark.parametrize("kind", ["t5", "bert"])
def test_rows_are_encoded_as_if_alone(kind: str, tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(family_module, "_CPU_ENCODER_TOKENS", tokens)
    family, codec = tiny.FAMILIES[kind]()
    prompts = [codec.encode(LABELS, text.split()) for text in TEXTS]
    with torch.inference_mode():
        together = family.begin(prompts).source_hidden
        assert together is not None
        for row, prompt in zip(together, prompts, strict=True):
            alone = family.begin([prompt]).source_hidden
            assert alone is not None
            torch.testing.assert_close(row[: len(prompt.source_ids)], alone[0])
