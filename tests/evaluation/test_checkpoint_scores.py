"""The command that scores a checkpoint."""

import json
from pathlib import Path

import pytest
import torch

from backend.cli import main
from backend.pretraining.checkpoint import build, export
from tests.support import small_recipe as small


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained checkpoint, in `checkpoint`, and corpora, in `ner`."""
    path = tmp_path_factory.mktemp("evaluation")
    built = build(small.recipe(), [("Ada",)], small.write_encoder(path / "encoder"))
    export(built.learner, built.tokenizer, small.recipe(), torch.float32, path / "checkpoint")
    small.write_corpora(path / "ner")
    return path


@pytest.mark.slow  # reads the whole written corpus
def test_the_command(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["evaluate", "--checkpoint", str(folder / "checkpoint"), "--data", str(folder / "ner")]
    assert main([*arguments, "--split", "train", "--corpus", "news", "--limit", "3", "--save-scores"]) == 0
    output = capsys.readouterr().out
    assert "| news | train | 3 |" in output
    assert "drugs" not in output
    assert set(json.loads((folder / "checkpoint" / "gner.json").read_text())["scores"]) == {"news"}
    assert main([*arguments, "--corpus", "tweets"]) == 2
    assert "tweets" in capsys.readouterr().err


@pytest.mark.slow  # reads the whole written corpus
def test_the_written_corpus_is_measured_beside_those_of_the_folder(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["evaluate", "--data", str(folder / "ner"), "--checkpoint", str(folder / "checkpoint")]
    assert main([*command, "--corpus", "written", "--split", "dev", "--limit", "1"]) == 0
    assert "| written | dev | 1 |" in capsys.readouterr().out
