"""Exact decoding against the step-by-step reference, with the bundled checkpoint on 500 real sentences."""

from pathlib import Path

import pytest
import torch

from backend.engine import checkpoint as checkpoints
from backend.engine.codec import EncodedPrompt
from backend.engine.decode import ExactDecoder
from backend.engine.sequential import SequentialDecoder
from backend.evaluation.corpora import read_corpora

CORPORA = Path(__file__).parents[3] / "shared" / "data" / "ner"
PARTS = {"crossner-ai": 200, "wikigold": 100, "wnut17": 100, "bc5cdr": 100}


@pytest.mark.slow
@pytest.mark.skipif(not CORPORA.is_dir(), reason=f"needs the corpora in {CORPORA}, which are not part of the project")
def test_500_real_sentences_get_the_labels_of_step_by_step_decoding() -> None:
    mini = checkpoints.load(checkpoints.resolve("gner-mini"), torch.device("cpu"), torch.float32)
    prompts: list[EncodedPrompt] = []
    for corpus in read_corpora(CORPORA):
        sentences = corpus.test[: PARTS.get(corpus.name, 0)]
        prompts += [mini.codec.encode(corpus.labels, sentence.words) for sentence in sentences]
    assert len(prompts) == 500
    reference = [answer.tags for answer in SequentialDecoder(mini.family).decode(prompts)]
    assert sum(tag != "O" for tags in reference for tag in tags) > 1_000, "there must be something to decide"
    for decoder, batch_size in (
        (ExactDecoder(mini.family, 64, draft_threshold=0.6), 1),
        (ExactDecoder(mini.family, 64), 16),
        (ExactDecoder(mini.family, 10_000), 50),
    ):
        batches = [prompts[begin : begin + batch_size] for begin in range(0, 500, batch_size)]
        assert [answer.tags for batch in batches for answer in decoder.decode(batch)] == reference
