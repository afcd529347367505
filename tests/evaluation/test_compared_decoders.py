"""The benchmark compares like with like: overruled models answer what they are told, in every way of decoding."""

import random

import pytest
import torch

from backend.engine.decode import Decoder, ExactDecoder
from backend.engine.sequential import SequentialDecoder
from backend.evaluation.compared_decoders import (
    ForcedPrefixGenerateDecoder,
    Measurement,
    OverruledExactDecoder,
    OverruledSequentialDecoder,
    PrefixGenerateDecoder,
    chart,
    measure,
    table,
)
from backend.ner.bio import tag_names
from tests.support import tiny

LABELS = ("work", "work of art", "city")
VOCABULARY = ["Marie", "Curie", "worked", "in", "Paris", "for", "the", "University", "of", "art", "(", "2024", ")"]


def _told(seed: int, num_words: int) -> tuple[list[str], tuple[int, ...]]:
    """Random words with random legal tags."""
    rng = random.Random(seed)
    tags: list[int] = []
    for _ in range(num_words):
        legal = [0, 0, 0, 1, 3, 5] + ([tags[-1] + tags[-1] % 2] * 3 if tags and tags[-1] else [])
        tags.append(rng.choice(legal))
    return [rng.choice(VOCABULARY) for _ in range(num_words)], tuple(tags)


@pytest.mark.parametrize("kind", ["exact", "exact, short windows", "sequential", "generate"])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_overruled_decoders_answer_what_they_are_told(family: str, kind: str) -> None:
    loaded, codec = tiny.FAMILIES[family]()
    told = [_told(seed, num_words) for seed, num_words in enumerate((9, 1, 14))]
    prompts = [codec.encode(LABELS, words) for words, _ in told]
    answers = {id(prompt): tags for prompt, (_, tags) in zip(prompts, told, strict=True)}
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
    expected = [tuple(names[tag] for tag in tags) for _, tags in told]
    decoded = [answer.tags for answer in decoder.decode(prompts)]
    assert decoded == expected


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_corrected_label_takes_the_words_behind_along(family: str) -> None:
    loaded, codec = tiny.FAMILIES[family]()
    names = tag_names(LABELS)
    draft = ["O", "B-work", "I-work", "I-work", "I-work", "I-work", "O"]
    right = tuple(names.index(tag.replace("work", "city")) for tag in draft)
    prompt = codec.encode(LABELS, VOCABULARY[: len(draft)], draft)
    decoder = OverruledExactDecoder(loaded, 1_000)
    decoder.answers = {id(prompt): right}
    [answer] = decoder.decode([prompt])
    assert answer.tags == tuple(names[tag] for tag in right)
    assert decoder.work.passes == 2  # one that corrects the first word, one that verifies all others


@pytest.mark.parametrize("family", ["t5", "bert"])
def test_generation_held_to_the_grammar_decides_as_constrained_decoding_does(family: str) -> None:
    loaded, codec = tiny.FAMILIES[family]()
    prompts = [codec.encode(LABELS, _told(seed, 6)[0]) for seed in range(4)]
    decoder = PrefixGenerateDecoder(loaded.model, codec.tokenizer, num_beams=1, max_new_tokens=200)
    decoder.eos_token_id = loaded.model.generation_config.eos_token_id
    reference = SequentialDecoder(loaded).decode(prompts)
    assert [a.tags for a in decoder.decode(prompts)] == [b.tags for b in reference]


def test_a_measurement_counts_what_was_done() -> None:
    loaded, codec = tiny.bert()
    prompts = [codec.encode(LABELS, _told(seed, 5)[0]) for seed in range(5)]
    reference = [answer.tags for answer in SequentialDecoder(loaded).decode(prompts)]
    decoders = {"sequential": SequentialDecoder(loaded), "exact": ExactDecoder(loaded, 16)}
    one, other = measure("tiny", decoders, prompts, 2, reference, torch.device("cpu"))
    assert (one.decoding, one.sentences, one.equal_words) == ("sequential", 5, 1.0)
    assert (other.decoding, other.sentences, other.equal_words) == ("exact", 5, 1.0)
    assert one.tau == pytest.approx(1.0, abs=0.1)
    assert other.passes_per_call < one.passes_per_call
    wrong = [("B-city",) * len(tags) for tags in reference]
    one, _ = measure("tiny", decoders, prompts, 2, wrong, torch.device("cpu"))
    assert one.equal_words < 1.0


def test_table_and_chart_show_the_speed_up_over_generate() -> None:
    common = {"sentences": 4, "p50_ms": 1.0, "p95_ms": 2.0, "passes_per_call": 3.0, "tau": 1.1, "equal_words": 1.0}
    rows = [
        Measurement("m", "generate", 1, sentences_per_s=2.0, peak_mib=10.0, **common),  # type: ignore[arg-type]
        Measurement("m", "exact", 1, sentences_per_s=17.0, peak_mib=10.0, **common),  # type: ignore[arg-type]
    ]
    assert "| 17.00 | 8.5 |" in table(rows)
    assert "8.5×" in chart(rows)
