"""The pruned tokenizer."""

from collections import Counter
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from backend.pretraining.checkpoint import Built, build
from backend.pretraining.tokenizer import prune, read_tokenizer
from tests.support import small_recipe as small


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.write_encoder(tmp_path_factory.mktemp("encoder") / "model")


@pytest.fixture(scope="module")
def built(encoder: Path) -> Built:
    return build(small.recipe(), [("Ada", "sang")], encoder)


def test_pruning_keeps_what_is_needed(encoder: Path) -> None:
    old = read_tokenizer(encoder / "tokenizer.json")
    new, old_ids = prune(old, Counter({"москва": 5, "pain": 1}), 120, 2)
    kept = set(new.get_vocab())
    assert {"é", "##é", "中", "##中"} <= kept  # every single character, so nothing becomes unknown
    assert "москва" in kept  # not Latin, but frequent enough
    assert not kept & {"[unused0]", "[MASK]"}
    assert len(new.get_vocab()) == len(old_ids) == 120
    for piece, index in new.get_vocab().items():
        assert old_ids[index] == (-1 if piece in ("(O)", "(B-", "(I-") else old.get_vocab()[piece])


def _pieces(tokenizer: Tokenizer, text: str) -> list[str]:
    pieces: list[str] = tokenizer.encode(text, add_special_tokens=False).tokens
    return pieces


def test_a_dropped_piece_is_spelled_with_smaller_ones(encoder: Path) -> None:
    old = read_tokenizer(encoder / "tokenizer.json")
    new, _ = prune(old, Counter(), 110, 1)
    assert _pieces(old, "aspirin") == ["aspirin"]
    assert _pieces(new, "aspirin") == ["a", *(f"##{letter}" for letter in "spirin")]


def test_tags_are_few_tokens(built: Built) -> None:
    tokens = built.tokenizer.tokenize("ada(B-person) sang(O) no(I-sad disease)")
    assert tokens == ["ada", "(B-", "person", ")", "sang", "(O)", "no", "(I-", "sad", "disease", ")"]
