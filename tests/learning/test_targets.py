"""The loss is about what is decoded: along an answer it is the decoder's own probability of it."""

import math
from collections.abc import Sequence

import pytest
import torch

from backend.engine.codec import Codec
from backend.engine.decode import ExactDecoder
from backend.engine.family import Family
from backend.learning.lessons import Lesson
from backend.learning.targets import EncodedLesson, encode, losses, soften
from tests.support import tiny

LABELS = ("person", "work of art", "city")
SENTENCES = (("Marie", "Curie", "worked", "in", "Paris", "."), ("Paris", "worked"), ("University",))


def decoded_lessons(family: Family, codec: Codec) -> tuple[list[EncodedLesson], list[float]]:
    """What the model answers, as lessons, and the logarithm of its probability."""
    decoded = ExactDecoder(family, 64).decode([codec.encode(LABELS, words) for words in SENTENCES])
    lessons = [encode(codec, Lesson(LABELS, words, row.tags)) for words, row in zip(SENTENCES, decoded, strict=True)]
    return lessons, [sum(map(math.log, row.probabilities)) for row in decoded]


@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_the_loss_of_what_is_decoded_is_its_probability(name: str) -> None:
    family, codec = tiny.FAMILIES[name]()
    lessons, log_probabilities = decoded_lessons(family, codec)
    with torch.no_grad():
        for lesson, log_probability in zip(lessons, log_probabilities, strict=True):
            found = losses(family, [lesson])
            assert found.decisions.item() * len(lesson.decisions) == pytest.approx(-log_probability, abs=1e-4)
            assert found.draft is None


@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_a_batch_is_the_mean_of_its_lessons_by_weight(name: str) -> None:
    family, codec = tiny.FAMILIES[name]()
    lessons = [
        encode(codec, Lesson(LABELS, words, ("B-person",) + ("O",) * (len(words) - 1), weight))
        for words, weight in zip(SENTENCES, (1.0, 2.0, 0.5), strict=True)
    ]
    assert _mean_of(family, lessons) == pytest.approx(losses(family, lessons).decisions.item(), rel=1e-4)


def _mean_of(family: Family, lessons: Sequence[EncodedLesson]) -> float:
    sizes = [lesson.weight * len(lesson.decisions) for lesson in lessons]
    alone = [losses(family, [lesson]).decisions.item() for lesson in lessons]
    return sum(size * loss for size, loss in zip(sizes, alone, strict=True)) / sum(sizes)


def test_the_draft_head_learns_the_same_tags() -> None:
    family, codec = tiny.bert_with_draft_head()
    lessons = [
        encode(codec, Lesson(LABELS, words, ("B-city",) + ("O",) * (len(words) - 1), weight))
        for words, weight in zip(SENTENCES, (1.0, 2.0, 0.5), strict=True)
    ]
    prompts = [lesson.prompt for lesson in lessons]
    with torch.no_grad():
        logits = family.draft(prompts, family.begin(prompts))
        found = losses(family, lessons).draft
    assert logits is not None
    assert found is not None
    log_probabilities = logits.log_softmax(-1)
    total = words = 0.0
    for row, lesson in enumerate(lessons):
        tags = [5] + [0] * (len(lesson.prompt.words) - 1)  # B-city, O ...
        total -= lesson.weight * sum(log_probabilities[row, word, tag].item() for word, tag in enumerate(tags))
        words += lesson.weight * len(tags)
    assert found.item() == pytest.approx(total / words, rel=1e-4)


@pytest.mark.parametrize("make", [*tiny.FAMILIES.values(), tiny.bert_with_draft_head])
def test_a_model_has_nothing_to_learn_of_its_own_probabilities(make: object) -> None:
    assert callable(make)
    family, codec = make()
    lessons, _ = decoded_lessons(family, codec)
    softened = soften(family, lessons)
    assert _gradient(family, softened) < 1e-3 * _gradient(family, lessons)
    for lesson in softened:
        assert torch.allclose(lesson.targets.sum(-1), torch.ones(len(lesson.decisions)), atol=1e-4)
        assert [decision.choice for decision in lesson.decisions] == lesson.targets.argmax(-1).tolist()


def _gradient(family: Family, lessons: Sequence[EncodedLesson]) -> float:
    family.model.zero_grad()
    found = losses(family, lessons)
    total = found.decisions if found.draft is None else found.decisions + found.draft
    total.backward()  # type: ignore[no-untyped-call]
    return max(float(p.grad.abs().max()) for p in family.model.parameters() if p.grad is not None)


def test_softening_keeps_the_order_in_batches_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    family, codec = tiny.bert_with_draft_head()
    lessons, _ = decoded_lessons(family, codec)
    together = soften(family, lessons)
    monkeypatch.setattr("backend.learning.targets._PASS_TOKENS", 1)
    for one, of_many in zip(soften(family, lessons), together, strict=True):
        assert one.prompt == of_many.prompt
        assert torch.allclose(one.targets, of_many.targets, atol=1e-5)
        assert torch.allclose(one.draft_targets, of_many.draft_targets, atol=1e-5)
