"""Many texts at once give what each gives alone."""

import pytest
import torch

from backend.engine.drafter import head_drafts
from backend.engine.sequential import SequentialDecoder
from backend.engine.tagger import Tagger, WordsQuestion
from backend.ner.spans import Passage, Question, Span
from tests.support import tiny

LABELS = ("person", "city")


def answers(tagger: Tagger, *passages: Passage) -> dict[int, tuple[Span, ...]]:
    questions = [Question(passage, LABELS) for passage in passages]
    return {index: spans for finished in tagger.answer(questions) for index, spans in finished.items()}


def test_texts_are_answered_in_windows_and_in_any_length() -> None:
    texts = [" ".join(["Marie worked in Paris ."] * 120), "a work", " "]
    found = answers(Tagger(*tiny.bert()), *map(Passage, texts))
    assert sorted(found) == [0, 1, 2]
    assert found[2] == ()
    for index, text in enumerate(texts):
        assert all(0 <= span.start < span.end <= len(text) for span in found[index])


@pytest.mark.slow  # decodes many drawn texts, together and alone
def test_every_text_is_answered_once_and_as_it_is_alone() -> None:
    tagger = Tagger(*tiny.bert())
    passages = [Passage("Marie Curie worked in Paris " * number, (12,)) for number in range(70)]
    seen: list[int] = []
    together: dict[int, tuple[Span, ...]] = {}
    for finished in tagger.answer([Question(passage, LABELS) for passage in passages]):
        seen += finished
        together |= finished
    assert sorted(seen) == list(range(70))
    assert any(together.values())
    for index in (1, 20, 69):
        alone = answers(tagger, passages[index])[0]
        assert [(span.start, span.end, span.label) for span in together[index]] == [
            (span.start, span.end, span.label) for span in alone
        ]


def test_no_span_crosses_a_break() -> None:
    text = "Marie Curie worked in Paris for the University of Paris"
    breaks = tuple(index for index, sign in enumerate(text) if sign == " ")
    whole = answers(Tagger(*tiny.bert()), Passage(text), Passage(text, breaks))
    assert any(" " in text[span.start : span.end] for span in whole[0])
    assert all(" " not in text[span.start : span.end] for span in whole[1])


def test_sentences_come_back_in_order_and_whole_however_long() -> None:
    sentences = [("Paris",) * number for number in (90, 1, 7)]  # the first exceeds the context of 64 tokens
    told: list[int] = []
    tagged = Tagger(*tiny.bert_with_draft_head(limit=64)).tag_words(
        [WordsQuestion(words, ("city",)) for words in sentences], told.append
    )
    assert [len(row.tags) for row in tagged] == [90, 1, 7]
    assert [len(row.draft or ()) for row in tagged] == [90, 1, 7]
    assert sum(told) == 3


def test_sentences_get_the_decoders_tags_and_the_draft_heads() -> None:
    family, codec = tiny.bert_with_draft_head()
    sentences = [tuple(line.split()) for line in tiny.LINES[:4]]
    tagged = Tagger(family, codec).tag_words([WordsQuestion(words, LABELS) for words in sentences])
    for words, row in zip(sentences, tagged, strict=True):
        prompt = codec.encode(LABELS, words)
        assert row.tags == SequentialDecoder(family).decode([prompt])[0].tags
        names = codec.grammar(LABELS).tags
        with torch.inference_mode():
            assert row.draft == tuple(names[tag] for tag in head_drafts(family, [prompt])[0].tags)


@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_without_a_draft_head_there_is_no_draft(name: str) -> None:
    [row] = Tagger(*tiny.FAMILIES[name]()).tag_words([WordsQuestion(("Paris",), ("city",))])
    assert row.draft is None
