"""The exact decoder equals the step-by-step reference, and that equals a naive decoder: always, in float32.

The naive reference shares nothing with the decoders: no cache, no grammar, no batch. It tokenizes whole answers and
runs the whole model for every token that is up for a decision.
"""

import itertools
import random
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import Phase, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from transformers import BertConfig, EncoderDecoderConfig, EncoderDecoderModel

from backend.engine.codec import Codec, Decoded, EncodedPrompt
from backend.engine.decode import ExactDecoder
from backend.engine.family import BertToBertFamily, Family
from backend.engine.sequential import SequentialDecoder
from backend.ner.bio import tag_names
from backend.ner.prompt import target
from tests.support import tiny

WINDOWS = (1, 7, 48, 10_000)
WORDS = ["Marie", "Curie", "worked", "in", "Paris", ",", "]", "(", "2024", "é", "👍🏽", "{", "x", "University", "..."]
LABEL_SETS: list[tuple[str, ...]] = [
    ("person",),
    ("person", "location", "city"),
    ("work", "work of art", "work of", "art"),
    ("a", "aa", "ab", "b"),
    tuple(f"type {number}" for number in range(50)),
]


def bert_of_two_sizes(seed: int = 0) -> tuple[Family, Codec]:
    """An encoder whose output is projected to the decoder's size."""
    torch.manual_seed(seed)
    shape: dict[str, Any] = {
        "vocab_size": len(tiny.bert_tokenizer()),
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "max_position_embeddings": 1024,
    }
    config = EncoderDecoderConfig.from_encoder_decoder_configs(
        BertConfig(hidden_size=48, **shape), BertConfig(hidden_size=32, **shape)
    )
    config.decoder_start_token_id, config.pad_token_id, config.eos_token_id = 2, 0, 3
    model: Any = EncoderDecoderModel(config)
    model.generation_config.decoder_start_token_id = 2
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2 and "position" not in name:
                parameter.mul_(2.5)
    return BertToBertFamily(model.eval()), tiny.bert()[1]


FAMILIES: dict[str, Callable[[int], tuple[Family, Codec]]] = {
    "t5": tiny.t5,
    "t5 with a tied and scaled head": lambda seed: tiny.t5(seed, scaled=True),
    "llama": tiny.llama,
    "bert": tiny.bert,
    "bert with a draft head": tiny.bert_with_draft_head,
    "bert of two sizes": bert_of_two_sizes,
}
TOKENIZERS = {"t5": tiny.t5_tokenizer, "llama": tiny.llama_tokenizer, "bert": tiny.bert_tokenizer}


@cache
def family_and_codec(name: str, seed: int = 0) -> tuple[Family, Codec]:
    return FAMILIES[name](seed)


@cache
def some_prompts(name: str, seed: int = 0) -> tuple[EncodedPrompt, ...]:
    """Prompts of several lengths and label sets."""
    codec = family_and_codec(name)[1]
    rng = random.Random(seed)
    return tuple(
        codec.encode(labels, rng.choices(WORDS, k=num_words))
        for labels, num_words in [*zip(LABEL_SETS, (9, 7, 8, 6, 5), strict=True), (LABEL_SETS[1], 1)]
    )


@cache
def reference(name: str, seed: int = 0) -> tuple[Decoded, ...]:
    return tuple(SequentialDecoder(family_and_codec(name)[0]).decode(some_prompts(name, seed)))


def with_draft(prompt: EncodedPrompt, tags: Sequence[int]) -> EncodedPrompt:
    return EncodedPrompt(prompt.labels, prompt.words, prompt.source_ids, prompt.codes, tuple(tags), prompt.places)


def tag_indices(prompt: EncodedPrompt, answer: Decoded) -> list[int]:
    return [code.grammar.tags.index(tag) for code, tag in zip(prompt.codes, answer.tags, strict=True)]


def num_decisions(prompt: EncodedPrompt, answer: Decoded) -> int:
    tags = tag_indices(prompt, answer)
    return sum(
        len(code.grammar.decisions(before, tag))
        for code, before, tag in zip(prompt.codes, [0, *tags], tags, strict=False)
    )


def assert_same(found: Sequence[Decoded], expected: Sequence[Decoded]) -> None:
    assert [answer.tags for answer in found] == [answer.tags for answer in expected]
    for answer, other in zip(found, expected, strict=True):
        assert answer.probabilities == pytest.approx(other.probabilities, rel=1e-3, abs=1e-6)


# --- the reference against a naive one


def next_logits(family: Family, prompt: EncodedPrompt, answer_ids: Sequence[int]) -> torch.Tensor:
    """Logits (vocabulary,) of the answer's next token, from one run of the whole model without a cache."""
    source = list(prompt.source_ids)
    if not family.model.config.is_encoder_decoder:
        logits = family.model(input_ids=torch.tensor([source + list(answer_ids)]), use_cache=False).logits
    else:
        start = family.model.config.decoder_start_token_id
        logits = family.model(
            input_ids=torch.tensor([source]),
            attention_mask=torch.ones(1, len(source), dtype=torch.long),
            decoder_input_ids=torch.tensor([[start, *answer_ids]]),
            use_cache=False,
        ).logits
    last: torch.Tensor = logits[0, -1]
    return last


def may_follow(before: str, tag: str) -> bool:
    return not tag.startswith("I-") or before[2:] == tag[2:]


@torch.inference_mode()
def naive(name: str, prompt: EncodedPrompt, prefix: Sequence[str] | None = None) -> Decoded:
    """Greedy decoding over the legal tokens, one at a time.

    With `prefix`, each word's tag is chosen behind those tags instead of behind the chosen ones.
    """
    family, _ = family_and_codec(name)
    tokenizer = TOKENIZERS[name.split()[0]]()
    tags: list[str] = []
    probabilities: list[float] = []
    for index in range(len(prompt.words)):
        before = list(prefix[:index]) if prefix is not None else tags
        legal = [tag for tag in tag_names(prompt.labels) if may_follow((["O", *before])[-1], tag)]
        texts = {tag: target(prompt.words[: index + 1], [*before, tag]) for tag in legal}
        paths = {tag: tokenizer(text, add_special_tokens=False)["input_ids"] for tag, text in texts.items()}
        probability = 1.0
        for position in itertools.count():
            options = sorted({path[position] for path in paths.values()})
            token = options[0]
            if len(options) > 1:
                [path, *_] = paths.values()
                shares = next_logits(family, prompt, path[:position])[options].softmax(0)
                token = options[int(shares.argmax())]
                probability *= float(shares.max())
            paths = {tag: path for tag, path in paths.items() if path[position] == token}
            if len(paths) == 1:
                break
        tags += paths
        probabilities.append(probability)
    return Decoded(tuple(tags), tuple(probabilities))


@pytest.mark.parametrize("name", FAMILIES)
def test_the_reference_says_what_the_whole_model_says_token_by_token(name: str) -> None:
    prompts = some_prompts(name)[:4]
    assert_same(reference(name)[:4], [naive(name, prompt) for prompt in prompts])


@pytest.mark.parametrize("name", FAMILIES)
def test_the_tiny_models_decide_by_the_tags_before(name: str) -> None:
    """Without this, every test here would pass with a decoder that sees only one word at a time."""
    for prompt, answer in zip(some_prompts(name), reference(name), strict=True):
        behind_outside = naive(name, prompt, prefix=["O"] * len(prompt.words)).tags
        for chosen, other in zip(answer.tags, behind_outside, strict=True):
            if chosen != other and not chosen.startswith("I-"):  # behind O there is no I-, in any model
                return
    pytest.fail("no tag depends on those before it")


@pytest.mark.parametrize("name", ["t5", "llama", "bert"])
def test_the_tiny_models_use_every_kind_of_tag(name: str) -> None:
    kinds = {tag[0] for seed in (0, 1) for answer in reference(name, seed) for tag in answer.tags}
    assert kinds == {"O", "B", "I"}
    assert len({tag for answer in reference(name) for tag in answer.tags}) >= 5


# --- the exact decoder against the reference


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("name", FAMILIES)
def test_exact_decoding_of_a_ragged_batch_says_what_the_reference_says(name: str, window: int) -> None:
    decoder = ExactDecoder(family_and_codec(name)[0], window)
    assert_same(decoder.decode(some_prompts(name)), reference(name))


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("name", ["t5", "llama", "bert", "bert with a draft head"])
def test_so_it_does_for_other_weights(name: str, seed: int) -> None:
    family, codec = family_and_codec(name, seed)
    rng = random.Random(seed)
    prompts = [codec.encode(rng.choice(LABEL_SETS), rng.choices(WORDS, k=rng.randint(1, 8))) for _ in range(5)]
    expected = SequentialDecoder(family).decode(prompts)
    for window in (7, 48):
        assert_same(ExactDecoder(family, window).decode(prompts), expected)


@st.composite
def batches(draw: st.DrawFn, name: str) -> list[EncodedPrompt]:
    """Ragged batches; about half of the prompts have a draft, which may be illegal: any tag at any place."""
    codec = family_and_codec(name)[1]
    found = []
    for _ in range(draw(st.integers(1, 4), label="rows")):
        prompt = codec.encode(
            draw(st.sampled_from(LABEL_SETS)), draw(st.lists(st.sampled_from(WORDS), max_size=6), label="words")
        )
        num_tags = 1 + 2 * len(prompt.labels)
        if draw(st.booleans()):
            length = len(prompt.words)
            prompt = with_draft(
                prompt, draw(st.lists(st.integers(0, num_tags - 1), min_size=length, max_size=length), label="draft")
            )
        found.append(prompt)
    return found


@pytest.mark.parametrize("name", ["t5", "llama", "bert", "bert with a draft head"])
@hypothesis_settings(max_examples=8, phases=[Phase.explicit, Phase.generate])  # shrinking takes minutes here
@given(data=st.data())
def test_no_draft_and_no_window_changes_a_tag(name: str, data: st.DataObject) -> None:
    family, _ = family_and_codec(name)
    prompts = data.draw(batches(name))
    expected = SequentialDecoder(family).decode(prompts)
    for window in WINDOWS:
        assert_same(ExactDecoder(family, window).decode(prompts), expected)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_draft_of_nothing_but_wrong_tags_changes_nothing(name: str) -> None:
    wrong = [
        with_draft(prompt, [(tag + 2) % len(prompt.codes[0].grammar.tags) for tag in tag_indices(prompt, answer)])
        for prompt, answer in zip(some_prompts(name), reference(name), strict=True)
    ]
    assert_same(ExactDecoder(family_and_codec(name)[0], 48).decode(wrong), reference(name))


@pytest.mark.parametrize("name", FAMILIES)
def test_batch_mates_and_their_order_change_nothing(name: str) -> None:
    decoder = ExactDecoder(family_and_codec(name)[0], 48)
    prompts = some_prompts(name)
    alone = [decoder.decode([prompt])[0] for prompt in prompts]
    assert_same(alone, reference(name))
    order = list(range(len(prompts)))
    random.Random(3).shuffle(order)
    assert order != sorted(order)
    assert_same(decoder.decode([prompts[index] for index in order]), [alone[index] for index in order])


@pytest.mark.parametrize("name", FAMILIES)
def test_prompts_without_words_have_empty_answers_wherever_they_stand(name: str) -> None:
    family, codec = family_and_codec(name)
    prompt = some_prompts(name)[1]
    empty = codec.encode(prompt.labels, [])
    for decoder in (ExactDecoder(family, 48), SequentialDecoder(family)):
        assert decoder.decode([]) == []
        assert decoder.decode([empty]) == [Decoded((), ())]
        assert_same(decoder.decode([empty, prompt, empty]), [Decoded((), ()), reference(name)[1], Decoded((), ())])


@pytest.mark.parametrize("name", FAMILIES)
def test_answers_keep_to_the_grammar_and_probabilities_to_0_1(name: str) -> None:
    for prompt, answer in zip(some_prompts(name), reference(name), strict=True):
        assert len(answer.tags) == len(answer.probabilities) == len(prompt.words)
        assert set(answer.tags) <= set(tag_names(prompt.labels))
        assert all(may_follow(a, b) for a, b in itertools.pairwise(["O", *answer.tags]))
        assert all(0 < probability <= 1 for probability in answer.probabilities)


# --- the work


@pytest.mark.parametrize("name", FAMILIES)
def test_a_right_draft_costs_its_tokens_once(name: str) -> None:
    prompt, answer = some_prompts(name)[0], reference(name)[0]
    drafted = with_draft(prompt, tag_indices(prompt, answer))
    for window in (1, 7, 10_000):
        decoder = ExactDecoder(family_and_codec(name)[0], window)
        assert_same(decoder.decode([drafted]), [answer])
        # behind the last decision nothing needs to be run
        assert decoder.work.decoder_tokens <= decoder.work.output_tokens
        # a draft that is nowhere unsure gets twice the window
        assert decoder.work.passes == -(-decoder.work.decoder_tokens // (2 * window))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_pass_settles_at_least_one_decision_and_runs_at_most_twice_a_window(name: str) -> None:
    for prompt, answer in zip(some_prompts(name), reference(name), strict=True):
        decoder = ExactDecoder(family_and_codec(name)[0], 10_000)
        decoder.decode([prompt])
        assert decoder.work.passes <= num_decisions(prompt, answer)
        short = ExactDecoder(family_and_codec(name)[0], 5)
        short.decode([prompt])
        assert short.work.decoder_tokens <= 2 * 5 * short.work.passes


def test_a_draft_that_is_unsure_everywhere_runs_at_most_a_window_and_less_in_vain() -> None:
    name = "bert with a draft head"
    unsure, bold = (ExactDecoder(family_and_codec(name)[0], 5, draft_threshold=threshold) for threshold in (1.1, 0.0))
    for prompt, answer in zip(some_prompts(name), reference(name), strict=True):
        for decoder in (unsure, bold):
            assert_same(decoder.decode([prompt]), [answer])
    assert unsure.work.decoder_tokens <= 5 * unsure.work.passes
    assert unsure.work.decoder_tokens < bold.work.decoder_tokens


@pytest.mark.parametrize("name", FAMILIES)
def test_the_reference_runs_each_token_once_in_a_pass_per_decision(name: str) -> None:
    decoder = SequentialDecoder(family_and_codec(name)[0])
    answers = decoder.decode(some_prompts(name))
    assert decoder.work.windows == len(answers)
    assert decoder.work.passes == sum(map(num_decisions, some_prompts(name), answers))
    assert decoder.work.decoder_tokens <= decoder.work.output_tokens


@pytest.mark.parametrize("name", FAMILIES)
def test_both_decoders_count_the_same_output(name: str) -> None:
    exact, sequential = (
        ExactDecoder(family_and_codec(name)[0], 48),
        SequentialDecoder(family_and_codec(name)[0]),
    )
    for decoder in (exact, sequential):
        decoder.decode(some_prompts(name))
    tokens = sum(
        len(code.forced) + len(code.grammar.paths[tag])
        for prompt, answer in zip(some_prompts(name), reference(name), strict=True)
        for code, tag in zip(prompt.codes, tag_indices(prompt, answer), strict=True)
    )
    assert exact.work.output_tokens == sequential.work.output_tokens == tokens
    assert exact.work.windows == sequential.work.windows == len(some_prompts(name))
