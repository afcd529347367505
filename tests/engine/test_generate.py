"""Unconstrained generation: whatever the model writes, every word gets one tag of the label set."""

import pytest
import torch

from backend.engine.generate import GenerateDecoder
from backend.evaluation.known_answers import ForcedGenerateDecoder
from backend.ner.bio import tag_names
from tests.support import tiny

LABELS = ("person", "city")
WORDS = ("Marie", "Curie", "worked", "in", "Paris")


@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_word_gets_a_tag_and_a_score(family: str, num_beams: int) -> None:
    loaded, codec = tiny.FAMILIES[family]()
    decoder = GenerateDecoder(loaded.model, codec.tokenizer, num_beams=num_beams, max_new_tokens=24)
    prompts = [codec.encode(LABELS, WORDS), codec.encode(LABELS, WORDS[:1])]
    answers = decoder.decode(prompts)
    assert [len(answer.tags) for answer in answers] == [5, 1]
    assert all(tag in tag_names(LABELS) for answer in answers for tag in answer.tags)
    assert all(0.0 <= p <= 1.0 for answer in answers for p in answer.probabilities)
    assert decoder.work.windows == 2
    assert decoder.work.passes <= 24


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_well_formed_answer_is_read_back_as_it_was_meant(family: str) -> None:
    """A model that is forced to write an answer gets the tags of that answer, alone or in a batch."""
    loaded, codec = tiny.FAMILIES[family]()
    prompts = [codec.encode(LABELS, WORDS), codec.encode(LABELS, WORDS[:2])]
    decoder = ForcedGenerateDecoder(loaded.model, codec.tokenizer, num_beams=1, max_new_tokens=80)
    decoder.answers = {id(prompts[0]): (1, 2, 0, 0, 3), id(prompts[1]): (1, 2)}
    decoder.eos_token_id = loaded.model.generation_config.eos_token_id
    first, second = decoder.decode(prompts)
    assert first.tags == ("B-person", "I-person", "O", "O", "B-city")
    assert second.tags == ("B-person", "I-person")


def test_the_score_is_the_mean_probability_of_what_was_written() -> None:
    loaded, codec = tiny.bert()
    prompt = codec.encode(LABELS, WORDS)
    [answer] = GenerateDecoder(loaded.model, codec.tokenizer, num_beams=1, max_new_tokens=6).decode([prompt])
    ids = [loaded.model.generation_config.decoder_start_token_id]
    logs = []
    source = torch.tensor([prompt.source_ids])
    with torch.inference_mode():
        for _ in range(6):
            logits = loaded.model(input_ids=source, decoder_input_ids=torch.tensor([ids])).logits[0, -1]
            ids.append(int(logits.argmax()))
            logs.append(float(logits.log_softmax(0).max()))
            if ids[-1] == loaded.model.generation_config.eos_token_id:
                break
    written = [log for log, token in zip(logs, ids[1:], strict=True) if token != codec.tokenizer.pad_token_id]
    assert answer.probabilities[0] == pytest.approx(2.718281828 ** (sum(written) / len(written)), rel=1e-3)
