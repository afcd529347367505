"""The bundled checkpoint drafts for other models, which verify its drafts."""

from dataclasses import replace
from functools import cache

import pytest
import torch

from backend.engine import checkpoint as checkpoints
from backend.engine.decode import ExactDecoder
from backend.engine.drafter import Drafter
from backend.engine.sequential import SequentialDecoder
from backend.ner.bio import tag_names
from tests.support import tiny

LABELS = ("person", "location")
SENTENCES = [
    ["Angela", "Merkel", "met", "Barack", "Obama", "in", "Berlin", "."],
    ["We", "drove", "from", "Paris", "to", "Lyon", "with", "Marie", "Curie", "."],
]


@cache
def mini() -> checkpoints.LoadedModel:
    bundled = checkpoints.resolve(checkpoints.DEFAULT_MODEL)
    return checkpoints.load(bundled, torch.device("cpu"), torch.float32)


def test_the_bundled_checkpoint_guesses_people_and_places() -> None:
    _, codec = tiny.t5()
    drafts = Drafter(mini().family, mini().codec).draft([codec.encode(LABELS, words) for words in SENTENCES])
    names = tag_names(LABELS)
    assert drafts[0] is not None
    assert [names[tag] for tag in drafts[0].tags] == [
        "B-person", "I-person", "O", "B-person", "I-person", "O", "B-location", "O",
    ]  # fmt: skip


@pytest.mark.parametrize("draft_threshold", [0.0, 0.6, 1.1])
@pytest.mark.parametrize("family", ["t5", "llama"])
def test_drafts_of_another_model_never_change_a_label(family: str, draft_threshold: float) -> None:
    loaded, codec = tiny.FAMILIES[family](3)
    prompts = [codec.encode(LABELS, words) for words in SENTENCES]
    decoder = ExactDecoder(loaded, 40, Drafter(mini().family, mini().codec), draft_threshold=draft_threshold)
    assert [a.tags for a in decoder.decode(prompts)] == [b.tags for b in SequentialDecoder(loaded).decode(prompts)]


def test_what_does_not_suit_the_small_checkpoint_gets_no_draft() -> None:
    _, codec = tiny.t5()
    long = [
        "Paris"
    ] * 600  # more than the small checkpoint's context, and than the tiny model's own limits would let by
    prompts = [
        codec.encode(LABELS, SENTENCES[0]),
        codec.encode(LABELS, ()),
        replace(codec.encode(LABELS, ()), words=tuple(long)),
    ]
    first, empty, too_long = Drafter(mini().family, mini().codec).draft(prompts)
    assert first is not None
    assert empty is None
    assert too_long is None


def test_the_bundled_checkpoint_is_decoded_in_few_passes() -> None:
    """With its own draft head, a few passes give the labels of dozens of steps."""
    prompts = [mini().codec.encode(LABELS, words) for words in SENTENCES]
    exact, sequential = ExactDecoder(mini().family, 64, draft_threshold=0.6), SequentialDecoder(mini().family)
    assert [a.tags for a in exact.decode(prompts[:1])] == [b.tags for b in sequential.decode(prompts[:1])]
    assert exact.work.passes <= 4 < sequential.work.passes
