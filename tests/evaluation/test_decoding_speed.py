"""The benchmark measures decoders, and compares them with batched `generate`."""

import pytest
import torch

from backend.engine.decode import Decoder, ExactDecoder
from backend.engine.sequential import SequentialDecoder
from backend.evaluation.decoding_speed import Measurement, chart, measure, table
from tests.support import tiny

LABELS = ("work", "work of art", "city")
SENTENCES = ["Marie Curie worked in Paris", "Paris ( 2024 )", "for the University of art", "Curie", "the work of Marie"]


def test_a_measurement_counts_what_was_done() -> None:
    loaded, codec = tiny.bert()
    prompts = [codec.encode(LABELS, sentence.split()) for sentence in SENTENCES]
    reference = [answer.tags for answer in SequentialDecoder(loaded).decode(prompts)]
    decoders: dict[str, Decoder] = {"sequential": SequentialDecoder(loaded), "exact": ExactDecoder(loaded, 16)}
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
