"""What is sent through Label Studio: the corpora's sentences where they are, the project's own samples."""

import json
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SAMPLES = ROOT / "samples"
CORPORA = ROOT.parent / "shared" / "data" / "ner"


def config(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def samples(name: str) -> list[dict[str, Any]]:
    """The tasks of samples/`name`."""
    tasks: list[dict[str, Any]] = json.loads((SAMPLES / name).read_text(encoding="utf-8"))
    return tasks


def corpus_sentences(corpus: str, num_sentences: int) -> list[str]:
    """The first sentences of a corpus' test split, their words joined by spaces."""
    path = CORPORA / corpus / "test.conll"
    if not path.exists():
        pytest.skip(f"{path} does not exist: the corpora are not part of the project")
    sentences = path.read_text(encoding="utf-8").strip().split("\n\n")
    return [" ".join(line.split("\t")[0] for line in block.split("\n")) for block in sentences[:num_sentences]]
