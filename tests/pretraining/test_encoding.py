"""The encoding of samples, compared with the codec that serves."""

from pathlib import Path

import pytest

from backend.engine.codec import Codec, Limits
from backend.engine.draft_head import locate
from backend.ner.bio import tag_names
from backend.ner.prompt import PromptFormat
from backend.pretraining.checkpoint import Built, build
from backend.pretraining.mixture import Sample
from tests.support import small_recipe as small

SAMPLES = [
    Sample(("person", "place"), ("Ada", "Byron", "left", "Rome", "."), ("B-person", "I-person", "O", "B-place", "O")),
    Sample(("sad disease", "disease"), ("heart", "pain"), ("B-sad disease", "B-disease")),
    Sample(("place",), ("Paris-based", "firms", "U.S.", "@ada"), ("B-place", "O", "B-place", "O")),
    Sample(("chemical",), ("no", "(O)", "pain", "("), ("O", "O", "B-chemical", "I-chemical")),
]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.write_encoder(tmp_path_factory.mktemp("encoder") / "model")


@pytest.fixture(scope="module")
def built(encoder: Path) -> Built:
    return build(small.recipe(), [("Ada", "sang")], encoder)


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: " ".join(sample.words))
def test_training_and_serving_spell_the_same(built: Built, sample: Sample) -> None:
    prompt_format = PromptFormat("{labels} : {sentence}")
    codec = Codec(built.tokenizer, prompt_format, Limits(64, 64), source_ends_with_eos=True)
    prompt = codec.encode(sample.labels, sample.words, sample.tags)
    encoded = built.sample_encoder.encode(sample)
    assert encoded.source == prompt.source_ids
    assert prompt.draft is not None
    answer = [
        token
        for code, tag in zip(prompt.codes, prompt.draft, strict=True)
        for token in code.forced + code.grammar.paths[tag]
    ]
    assert encoded.target == (*answer, built.tokenizer.eos_token_id)
    rendered = prompt_format.render(sample.labels, sample.words)
    offsets = built.tokenizer(rendered, return_offsets_mapping=True)["offset_mapping"]
    places = locate("{labels} : {sentence}", sample.labels, sample.words, offsets)
    assert (places.word_positions, places.label_spans) == (encoded.word_positions, encoded.label_spans)


def test_choices_and_pointers(built: Built) -> None:
    encoded = built.sample_encoder.encode(SAMPLES[0])
    tokens = built.tokenizer.convert_ids_to_tokens(list(encoded.target))
    source = built.tokenizer.convert_ids_to_tokens(list(encoded.source))
    decided = [
        (choice.position, sorted(built.tokenizer.convert_ids_to_tokens(list(choice.options))), choice.correct)
        for choice in encoded.choices
    ]
    # ada (B- person ) byron (I- person ) left (O) rome (B- place ) . (O) [SEP]
    assert decided[0][:2] == (1, ["(B-", "(O)"])
    assert decided[1][:2] == (2, ["person", "place"])
    assert decided[2][:2] == (5, ["(B-", "(I-", "(O)"])
    assert [position for position, _, _ in decided] == [1, 2, 5, 9, 11, 12, 15]  # the label of an I- is not free
    for choice in encoded.choices:
        assert choice.options[choice.correct] == encoded.target[choice.position]
    for position, (start, end) in enumerate(encoded.label_pointers):
        assert source[start:end] == ([tokens[position]] if end else [])
    pointed = [" ".join(source[start:end]) for start, end in encoded.word_pointers]
    assert pointed[:8] == ["ada"] * 4 + ["byron"] * 4
    assert encoded.tags == tuple(tag_names(SAMPLES[0].labels).index(tag) for tag in SAMPLES[0].tags)
