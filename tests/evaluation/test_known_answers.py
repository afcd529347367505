"""Decoders with known answers give these answers, whatever the method."""

import random

import pytest

from backend.engine.decode import Decoder
from backend.engine.sequential import SequentialDecoder
from backend.evaluation.known_answers import (
    ForcedPrefixGenerateDecoder,
    OverruledExactDecoder,
    OverruledSequentialDecoder,
    PrefixGenerateDecoder,
)
from backend.ner.bio import tag_names
from tests.support import tiny

LABELS = ("work", "work of art", "city")
VOCABULARY = ["Marie", "Curie", "worked", "in", "Paris", "for", "the", "University", "of", "art", "(", "2024", ")"]


def _random_answer(seed: int, num_words: int) -> tuple[list[str], tuple[int, ...]]:
    """Random words with random legal tags."""
    rng = random.Random(seed)
    tags: list[int] = []
    for _ in range(num_words):
        legal = [0, 0, 0, 1, 3, 5] + ([tags[-1] + tags[-1] % 2] * 3 if tags and tags[-1] else [])
        tags.append(rng.choice(legal))
    return [rng.choice(VOCABULARY) for _ in range(num_words)], tuple(tags)


@pytest.mark.parametrize("kind", ["exact", "exact, short windows", "sequential", "generate"])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_overruled_decoders_give_the_known_answers(family: str, kind: str) -> None:
    loaded, codec = tiny.FAMILIES[family]()
    known = [_random_answer(seed, num_words) for seed, num_words in enumerate((9, 1, 14))]
    prompts = [codec.encode(LABELS, words) for words, _ in known]
    answers = {id(prompt): tags for prompt, (_, tags) in zip(prompts, known, strict=True)}
    decoder: Decoder
    if kind == "generate":
        generate = ForcedPrefixGenerateDecoder(loaded.model, codec.tokenizer, num_beams=1, max_new_tokens=200)
        generate.eos_token_id = loaded.model.generation_config.eos_token_id
        generate.answers, decoder = answers, generate
    elif kind == "sequential":
        decoder = OverruledSequentialDecoder(loaded)
        decoder.answers = answers
    else:
        decoder = OverruledExactDecoder(loaded, 1_000 if kind == "exact" else 8)
        decoder.answers = answers
    names = tag_names(LABELS)
    expected = [tuple(names[tag] for tag in tags) for _, tags in known]
    decoded = [answer.tags for answer in decoder.decode(prompts)]
    assert decoded == expected


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_corrected_label_also_corrects_the_next_words_of_the_entity(family: str) -> None:
    loaded, codec = tiny.FAMILIES[family]()
    names = tag_names(LABELS)
    draft = ["O", "B-work", "I-work", "I-work", "I-work", "I-work", "O"]
    expected = tuple(names.index(tag.replace("work", "city")) for tag in draft)
    prompt = codec.encode(LABELS, VOCABULARY[: len(draft)], draft)
    decoder = OverruledExactDecoder(loaded, 1_000)
    decoder.answers = {id(prompt): expected}
    [answer] = decoder.decode([prompt])
    assert answer.tags == tuple(names[tag] for tag in expected)
    assert decoder.work.passes == 2  # one that corrects the first word, one that verifies all others


@pytest.mark.parametrize("family", ["t5", "bert"])
def test_constrained_generation_agrees_with_sequential_decoding(family: str) -> None:
    loaded, codec = tiny.FAMILIES[family]()
    prompts = [codec.encode(LABELS, _random_answer(seed, 6)[0]) for seed in range(4)]
    decoder = PrefixGenerateDecoder(loaded.model, codec.tokenizer, num_beams=1, max_new_tokens=200)
    decoder.eos_token_id = loaded.model.generation_config.eos_token_id
    reference = SequentialDecoder(loaded).decode(prompts)
    assert [a.tags for a in decoder.decode(prompts)] == [b.tags for b in reference]
