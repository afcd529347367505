"""Examples -> token ids, held against the serving side's codec."""

from collections import Counter
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from backend.engine.codec import Codec, Limits
from backend.engine.draft_head import locate
from backend.ner.bio import tag_names
from backend.ner.prompt import PromptFormat
from backend.pretraining.checkpoint import Built, build
from backend.pretraining.mixture import Example
from backend.pretraining.tokenizer import prune, read_tokenizer
from tests.support import small_recipe as small

EXAMPLES = [
    Example(("person", "place"), ("Ada", "Byron", "left", "Rome", "."), ("B-person", "I-person", "O", "B-place", "O")),
    Example(("sad disease", "disease"), ("heart", "pain"), ("B-sad disease", "B-disease")),
    Example(("place",), ("Paris-based", "firms", "U.S.", "@ada"), ("B-place", "O", "B-place", "O")),
    Example(("chemical",), ("no", "(O)", "pain", "("), ("O", "O", "B-chemical", "I-chemical")),
]


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


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: " ".join(example.words))
def test_training_and_serving_spell_the_same(built: Built, example: Example) -> None:
    prompt_format = PromptFormat("{labels} : {sentence}")
    codec = Codec(built.tokenizer, prompt_format, Limits(64, 64), source_ends_with_eos=True)
    prompt = codec.encode(example.labels, example.words, example.tags)
    encoded = built.speller.encode(example)
    assert encoded.source == prompt.source_ids
    assert prompt.draft is not None
    answer = [
        token
        for code, tag in zip(prompt.codes, prompt.draft, strict=True)
        for token in code.forced + code.grammar.paths[tag]
    ]
    assert encoded.target == (*answer, built.tokenizer.eos_token_id)
    rendered = prompt_format.render(example.labels, example.words)
    offsets = built.tokenizer(rendered, return_offsets_mapping=True)["offset_mapping"]
    places = locate("{labels} : {sentence}", example.labels, example.words, offsets)
    assert (places.word_positions, places.label_spans) == (encoded.word_positions, encoded.label_spans)


def test_choices_and_pointers(built: Built) -> None:
    encoded = built.speller.encode(EXAMPLES[0])
    tokens = built.tokenizer.convert_ids_to_tokens(list(encoded.target))
    source = built.tokenizer.convert_ids_to_tokens(list(encoded.source))
    decided = [
        (choice.position, sorted(built.tokenizer.convert_ids_to_tokens(list(choice.options))), choice.right)
        for choice in encoded.choices
    ]
    # ada (B- person ) byron (I- person ) left (O) rome (B- place ) . (O) [SEP]
    assert decided[0][:2] == (1, ["(B-", "(O)"])
    assert decided[1][:2] == (2, ["person", "place"])
    assert decided[2][:2] == (5, ["(B-", "(I-", "(O)"])
    assert [position for position, _, _ in decided] == [1, 2, 5, 9, 11, 12, 15]  # the label of an I- is not free
    for choice in encoded.choices:
        assert choice.options[choice.right] == encoded.target[choice.position]
    for position, (start, end) in enumerate(encoded.label_pointers):
        assert source[start:end] == ([tokens[position]] if end else [])
    pointed = [" ".join(source[start:end]) for start, end in encoded.word_pointers]
    assert pointed[:8] == ["ada"] * 4 + ["byron"] * 4
    assert encoded.tags == tuple(tag_names(EXAMPLES[0].labels).index(tag) for tag in EXAMPLES[0].tags)
