"""The published prompt and answer, to the letter.

The expected texts are written out here by hand, from the model card and the published training format, and share
nothing with the code.
"""

import pytest

from backend.ner.bio import label_of, tag_names
from backend.ner.prompt import CAUSAL_WRAPPER, PromptFormat, target

INSTRUCTION = """\
Please analyze the sentence provided, identifying the type of entity for each word on a token-by-token basis.
Output format is: word_1(label_1), word_2(label_2), ...
We'll use the BIO-format to label the entities, where:
1. B- (Begin) indicates the start of a named entity.
2. I- (Inside) is used for words within a named entity but are not the first word.
3. O (Outside) denotes words that are not part of a named entity.

Use the specific entity tags: genre, actor, year and O.
Sentence: did george clooney make a musical in the 1980s"""

LABELS = ("genre", "actor", "year")
WORDS = ["did", "george", "clooney", "make", "a", "musical", "in", "the", "1980s"]


def test_a_flan_t5_checkpoint_gets_the_published_instruction() -> None:
    assert PromptFormat().render(LABELS, WORDS) == INSTRUCTION


def test_a_llama_checkpoint_gets_it_between_inst_marks() -> None:
    assert PromptFormat(wrapper=CAUSAL_WRAPPER).render(LABELS, WORDS) == f"[INST] {INSTRUCTION} [/INST]"


def test_one_label() -> None:
    assert "Use the specific entity tags: person and O.\nSentence: x" in PromptFormat().render(["person"], ["x"])


@pytest.mark.parametrize("words", [[], ["x"]])
def test_a_checkpoint_may_bring_its_own_template(words: list[str]) -> None:
    rendered = PromptFormat("{labels} : {sentence} !", "<{instruction}>").render(["a", "work of art"], words)
    assert rendered == f"<a, work of art : {' '.join(words)} !>"


@pytest.mark.parametrize(
    "sign", ["{sentence}", "{labels}", "{instruction}", "{", "}", "{0}", "{}", "%s", "\\1", "\\g<0>", "$x"]
)
def test_words_and_labels_that_look_like_fields_stay_as_they_are(sign: str) -> None:
    expected = INSTRUCTION.replace("genre", sign).replace("clooney", sign)
    words = [sign if word == "clooney" else word for word in WORDS]
    assert PromptFormat().render((sign, "actor", "year"), words) == expected
    assert PromptFormat(wrapper=CAUSAL_WRAPPER).render((sign, "actor", "year"), words) == f"[INST] {expected} [/INST]"


def test_the_answer_is_the_published_one() -> None:
    tags = ["O", "B-actor", "I-actor", "O", "O", "B-genre", "O", "O", "B-year"]
    expected = "did(O) george(B-actor) clooney(I-actor) make(O) a(O) musical(B-genre) in(O) the(O) 1980s(B-year)"
    assert target(WORDS, tags) == expected


def test_an_answer_has_a_tag_for_every_word() -> None:
    with pytest.raises(ValueError, match="shorter"):
        target(["two", "words"], ["O"])


def test_tags_are_o_then_begin_and_inside_of_each_label() -> None:
    names = tag_names(["person", "work of art"])
    assert names == ["O", "B-person", "I-person", "B-work of art", "I-work of art"]
    assert [label_of(name) for name in names] == [None, "person", "person", "work of art", "work of art"]


def test_a_label_called_o_is_not_the_tag_o() -> None:
    assert tag_names(["O"]) == ["O", "B-O", "I-O"]
    assert label_of("B-O") == "O"
