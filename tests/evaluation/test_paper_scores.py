"""The paper's scoring of prediction files."""

import json
from pathlib import Path

import pytest

from backend.cli import main
from backend.errors import CorpusError
from backend.evaluation.paper_scores import average_f1, read_predictions, score_predictions
from backend.ner.scores import Counts


def _line(dataset: str, tagged: str, output: str) -> str:
    words, labels = zip(*(item[:-1].split("(") for item in tagged.split()), strict=True)
    instance = {"words": words, "labels": labels, "id": "7"}
    record = {"dataset": dataset, "label_list": ["actor", "city"], "instance": instance, "prediction": output}
    return json.dumps(record)


def test_the_papers_scoring(tmp_path: Path) -> None:
    path = tmp_path / "predictions.jsonl"
    lines = [
        # correct: george clooney; the second mention is the same entity, which counts once on both sides
        _line("films", "George(B-actor) Clooney(I-actor) is(O) George(B-actor) Clooney(I-actor)",
              "george(B-actor) clooney(I-actor) is(O) george(B-actor) clooney(I-actor)"),
        # "the Rome" and "Rome" are the same once normalised; the model skipped "is"; director is no label here
        _line("films", "the(B-city) Rome(I-city) is(O) old(O)", "the(O) rome(B-city) old(B-director)"),
        # one of two expected entities, and a spurious one: F1 0.5
        _line("trips", "Rome(B-city) or(O) Oslo(B-city)", "Rome(B-city) or(B-city) Oslo(O)"),
    ]  # fmt: skip
    path.write_text("\n".join(lines) + "\n")
    scores = score_predictions(read_predictions(path))
    assert scores == {"films": Counts(2, 2, 2), "trips": Counts(1, 2, 2)}
    assert average_f1(scores) == pytest.approx(0.75)


@pytest.mark.parametrize(
    "line", ["{", "[]", '{"dataset": "x"}', _line("films", "Rome(B-city)", "x").replace('["B-city"]', "[]")]
)
def test_a_malformed_prediction_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "predictions.jsonl"
    path.write_text(_line("films", "Rome(B-city)", "Rome(B-city)") + "\n" + line + "\n")
    with pytest.raises(CorpusError, match="line 2"):
        read_predictions(path)


def test_the_command_on_predictions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "predictions.jsonl"
    path.write_text(_line("trips", "Rome(B-city) or(O) Oslo(B-city)", "Rome(B-city) or(B-city) Oslo(O)") + "\n")
    assert main(["evaluate", "--predictions", str(path)]) == 0
    assert "| trips | 0.5000 | 0.5000 | 0.5000 |" in capsys.readouterr().out
