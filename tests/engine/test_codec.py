"""What the codec writes is what the tokenizer makes of the whole text: words, tags, brackets and all their merges."""

import unicodedata
from collections.abc import Callable, Sequence

import pytest
from hypothesis import assume, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, processors
from transformers import PreTrainedTokenizerFast

from backend.engine.codec import Codec, Limits
from backend.errors import LabelsIndistinguishable, PromptTooLong
from backend.ner import segment
from backend.ner.bio import tag_names
from backend.ner.prompt import CAUSAL_WRAPPER, PUBLISHED_TEMPLATE, PromptFormat, target
from tests.support import tiny

TOKENIZERS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "t5": tiny.t5_tokenizer,
    "llama": tiny.llama_tokenizer,
    "bert": tiny.bert_tokenizer,
}
SHORT = "{labels} : {sentence}"
LIMITS = Limits(1_000_000, 1_000_000)
LABEL_SETS: list[tuple[str, ...]] = [
    ("person",),
    ("person", "work of art", "work"),
    ("O", "B", "I"),
    ("person's role", "a-b", "creative work 2024"),
    tuple(f"type {number}" for number in range(50)),
]
NASTY_WORDS = [
    "Marie",
    "x",
    "]",
    "[",
    "](",
    ")(",
    "(",
    ")",
    "a]",
    "foo(B-person)",
    "O",
    "...",
    "'s",
    "東",
    "ที่",
    "👨‍👩‍👧‍👦",
    "🇩🇪",
    "é",
    "e\u0301",
    "\u0301",
    "\u200d",
    "\u200b",
    "\ufeff",
    "´",
    "ﬁ",
    "½",
    "{",
    "}",
    "~",
    "\\",
    "`",
    "^",
    "<",
    "<s>",
    "</s>",
    "<unk>",
    "<pad>",
    "[INST]",
    "[UNK]",
    "▁",
    "\ud800",
    "\udc00\ud800",
    "\ufffd",
    "\0",
    "\x1c",
    "x" * 40,
    "1,000.5",
    "https://a.b/c?d=e#f",
]
word_lists = st.lists(st.one_of(st.sampled_from(NASTY_WORDS), st.text(max_size=6)).map(segment.words), max_size=12).map(
    lambda found: [word.text for words in found for word in words]
)


def codec(name: str, limits: Limits = LIMITS, template: str = SHORT) -> Codec:
    wrapper = CAUSAL_WRAPPER if name == "llama" else "{instruction}"
    return Codec(TOKENIZERS[name](), PromptFormat(template, wrapper), limits, source_ends_with_eos=name != "llama")


CODECS = {name: codec(name) for name in TOKENIZERS}
PUBLISHED_CODECS = {name: codec(name, template=PUBLISHED_TEMPLATE) for name in TOKENIZERS}


def encodable(text: str) -> str:
    return "".join("\ufffd" if "\ud800" <= char <= "\udfff" else char for char in text)


def tokens_of_whole_answer(name: str, words: Sequence[str], tags: Sequence[str]) -> list[int]:
    text = encodable(target(words, tags))
    ids: list[int] = TOKENIZERS[name]()(text, add_special_tokens=False)["input_ids"]
    return ids


def written(name: str, labels: tuple[str, ...], words: Sequence[str], tags: Sequence[str]) -> list[int]:
    ids: list[int] = []
    for code, tag in zip(CODECS[name].encode(labels, words).codes, tags, strict=True):
        ids += [*code.forced, *code.grammar.paths[code.grammar.tags.index(tag)]]
    return ids


@pytest.mark.parametrize("labels", LABEL_SETS, ids=lambda labels: f"{len(labels)} labels of {labels[0]}")
@pytest.mark.parametrize("word", NASTY_WORDS, ids=ascii)
@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_word_with_any_tag_is_written_as_the_tokenizer_writes_it(
    name: str, word: str, labels: tuple[str, ...]
) -> None:
    for tag in tag_names(labels)[:5]:
        words, tags = ["in", word, "Paris"], ["O", tag, "O"]
        assert written(name, labels, words, tags) == tokens_of_whole_answer(name, words, tags), tag


@pytest.mark.parametrize("name", TOKENIZERS)
@given(words=word_lists, data=st.data())
def test_an_answer_is_written_as_the_tokenizer_writes_it_as_a_whole(
    name: str, words: list[str], data: st.DataObject
) -> None:
    # where the whole answer begins with white space (NFKC makes it of ´), tokenizers mark its first word otherwise
    assume(not unicodedata.normalize("NFKC", "".join(words[:1]))[:1].isspace())
    labels = data.draw(st.sampled_from(LABEL_SETS[:4]))
    tags = data.draw(
        st.lists(st.sampled_from(tag_names(labels)), min_size=len(words), max_size=len(words)), label="tags"
    )
    assert written(name, labels, words, tags) == tokens_of_whole_answer(name, words, tags)


def test_a_word_that_merges_with_the_bracket_has_a_grammar_of_its_own() -> None:
    tokenizer = tiny.llama_tokenizer()
    assert "](" in tokenizer.get_vocab(), "the tiny vocabulary must have the merge that this test is about"
    plain, merging = CODECS["llama"].encode(("person",), ["x", "]"]).codes
    assert plain.grammar is CODECS["llama"].grammar(("person",))
    assert merging.grammar is not plain.grammar
    assert merging.grammar.tags == plain.grammar.tags


def test_most_words_share_the_grammar_of_their_label_set() -> None:
    for name, of_family in CODECS.items():
        codes = of_family.encode(("person", "work of art"), ["Marie", "worked", ",", "Paris", "2024", "!"]).codes
        assert len({id(code.grammar) for code in codes}) == 1, name


@pytest.mark.parametrize("gap", tiny.T5_GAPS)
def test_signs_that_the_vocabulary_lacks_are_unknown_and_yet_words(gap: str) -> None:
    tokenizer = tiny.t5_tokenizer()
    code = CODECS["t5"].encode(("person",), [gap]).codes[0]
    assert tokenizer.unk_token_id in code.forced
    assert code.grammar is CODECS["t5"].grammar(("person",))


@pytest.mark.parametrize("name", TOKENIZERS)
def test_lone_surrogates_are_written_as_replacement_characters(name: str) -> None:
    of_family = CODECS[name]
    encoded = of_family.encode(("person",), ["\ud800", "x\udfff"])
    assert encoded.words == ("\ud800", "x\udfff")
    assert of_family.cost(("person",), "\ud800").source_tokens >= 0


@pytest.mark.parametrize("name", TOKENIZERS)
def test_labels_that_the_vocabulary_does_not_know_are_an_error_that_names_them(name: str) -> None:
    labels = ("東", "京")
    if name == "llama":  # bytes write everything
        assert CODECS[name].grammar(labels).tags == tag_names(labels)
        return
    with pytest.raises(LabelsIndistinguishable, match="'東' and '京'"):
        CODECS[name].encode(labels, ["x"])


def test_labels_that_differ_in_case_only_are_the_same_to_an_uncased_vocabulary() -> None:
    with pytest.raises(LabelsIndistinguishable, match="'person' and 'Person'"):
        CODECS["bert"].grammar(("person", "Person"))
    assert len(CODECS["t5"].grammar(("person", "Person")).tags) == 5


def test_a_llama_prompt_begins_with_bos_and_has_no_eos() -> None:
    tokenizer = tiny.llama_tokenizer()
    source = CODECS["llama"].encode(("person",), ["Marie", "Curie"]).source_ids
    assert source[0] == tokenizer.bos_token_id
    assert tokenizer.bos_token_id not in source[1:]
    assert tokenizer.eos_token_id not in source
    text = tokenizer.decode(list(source[1:]))
    assert isinstance(text, str)
    assert text.strip() == "[INST] person : Marie Curie [/INST]"


def test_a_llama_tokenizer_that_adds_eos_does_not_add_it_to_the_prompt() -> None:
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=Tokenizer.from_str(tiny.llama_tokenizer().backend_tokenizer.to_str()),
        bos_token="<s>",
        eos_token="</s>",
    )
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    assert tokenizer("x")["input_ids"][-1] == tokenizer.eos_token_id
    eager = Codec(tokenizer, PromptFormat(wrapper=CAUSAL_WRAPPER), Limits(640, 640), source_ends_with_eos=False)
    assert tokenizer.eos_token_id not in eager.encode(("person",), ["x"]).source_ids


@pytest.mark.parametrize(("name", "last"), [("t5", "</s>"), ("bert", "[SEP]")])
def test_an_encoder_prompt_ends_as_its_tokenizer_ends_texts(name: str, last: str) -> None:
    source = CODECS[name].encode(("person",), ["Marie", "Curie"]).source_ids
    assert source[-1] == TOKENIZERS[name]().convert_tokens_to_ids(last)
    assert source == tuple(TOKENIZERS[name]()("person : Marie Curie")["input_ids"])


def test_the_published_prompt_is_tokenized_as_one_text() -> None:
    published = codec("t5", template=PUBLISHED_TEMPLATE)
    rendered = PromptFormat().render(("actor", "year"), ["george", "clooney"])
    assert published.encode(("actor", "year"), ["george", "clooney"]).source_ids == tuple(
        tiny.t5_tokenizer()(rendered)["input_ids"]
    )


@pytest.mark.parametrize("template", [SHORT, PUBLISHED_TEMPLATE], ids=["short", "published"])
@pytest.mark.parametrize("name", TOKENIZERS)
@hypothesis_settings(max_examples=60)
@given(words=word_lists.filter(bool), data=st.data())
def test_words_whose_costs_keep_to_the_budget_keep_to_the_limits(
    name: str, template: str, words: list[str], data: st.DataObject
) -> None:
    labels = data.draw(st.sampled_from(LABEL_SETS[:4]))
    of_family = CODECS[name] if template is SHORT else PUBLISHED_CODECS[name]
    costs = [of_family.cost(labels, word) for word in words]
    left = of_family.budget(labels)
    taken_source, taken_target = LIMITS.source_tokens - left.source_tokens, LIMITS.target_tokens - left.target_tokens
    encoded = of_family.encode(labels, words)
    assert len(encoded.source_ids) <= taken_source + sum(cost.source_tokens for cost in costs)
    longest_answer = sum(len(code.forced) + max(map(len, code.grammar.paths)) for code in encoded.codes)
    start_and_end = 2
    assert start_and_end + longest_answer <= taken_target + sum(cost.target_tokens for cost in costs)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_prompt_beyond_the_limit_is_an_error_that_tells_the_numbers(name: str) -> None:
    with pytest.raises(PromptTooLong, match=r"200 words, 1 labels.*exceeds the checkpoint's 100"):
        codec(name, Limits(100, 10_000)).encode(("person",), ["Paris"] * 200)


def test_a_label_set_that_fills_the_context_leaves_no_budget() -> None:
    assert codec("t5", Limits(20, 640)).budget(LABEL_SETS[-1]).source_tokens == 0


def test_drafts_are_given_as_tags_and_kept_as_their_indices() -> None:
    labels = ("person", "work of art")
    encoded = CODECS["t5"].encode(labels, ["a", "b", "c"], ["O", "B-work of art", "I-work of art"])
    assert encoded.draft == (0, 3, 4)
    assert CODECS["t5"].encode(labels, ["a"]).draft is None
