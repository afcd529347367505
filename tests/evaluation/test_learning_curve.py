"""The learning curve of a tiny checkpoint, on corpora of a few sentences."""

import json
from pathlib import Path

import pytest

from backend.errors import CorpusError, InvalidSettings
from backend.evaluation.learning_curve import Point, learning_curve, table
from tests.support.running import save_checkpoint

SPICES = ("saffron", "cumin", "sumac", "ginger", "nutmeg", "cloves", "paprika", "cardamom")
CITIES = ("Lisbon", "Oslo", "Kano", "Trieste")


def write_corpora(folder: Path) -> Path:
    spices = "\n\n".join(f"Add\tO\n{name}\tB-spice\nnow\tO" for name in SPICES)
    cities = "\n\n".join(f"She\tO\nleft\tO\n{name}\tB-city" for name in CITIES)
    for path, content in {
        "kitchen/train.conll": spices,
        "kitchen/test.conll": spices,
        "travel/test.conll": cities,
    }.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(content + "\n", encoding="utf-8")
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_corpora(tmp_path / "corpora")


def measure(tmp_path: Path, data: Path, **changes: object) -> list[Point]:
    asked = {"corpus": "kitchen", "kept": "travel", "sizes": [8], "device": "cpu", "out": None, **changes}
    return learning_curve(model=str(save_checkpoint(tmp_path / "tiny")), data=data, **asked)  # type: ignore[arg-type]


@pytest.mark.slow
def test_it_is_scored_before_and_after(tmp_path: Path, data: Path) -> None:
    out = tmp_path / "curve"
    before, after = measure(tmp_path, data, out=out)
    assert (before.sentences, before.trained_on) == (0, 0)
    assert after.sentences == 8
    assert 0 < after.trained_on < 8  # some are held out
    # the adapter was active; a random model of this size learns nothing that generalises
    assert (after.f1, after.kept_f1) != (before.f1, before.kept_f1)
    written = json.loads(out.with_suffix(".json").read_text(encoding="utf-8"))
    assert [(point["sentences"], point["f1"]) for point in written] == [(0, before.f1), (8, after.f1)]
    assert "kitchen, learnt" in out.with_suffix(".svg").read_text(encoding="utf-8")


@pytest.mark.parametrize("sizes", [[], [0], [9]])
def test_impossible_sizes_are_refused(tmp_path: Path, data: Path, sizes: list[int]) -> None:
    with pytest.raises(InvalidSettings, match="'kitchen' has 1 to 8 sentences"):
        measure(tmp_path, data, sizes=sizes)


def test_a_missing_corpus_is_named(tmp_path: Path, data: Path) -> None:
    with pytest.raises(CorpusError, match=r"no corpus 'garden'.*'kitchen', 'travel'"):
        measure(tmp_path, data, corpus="garden")


def test_the_table() -> None:
    point = Point(25, 19, 0.3125, 0.283, 0.342, 0.765, True, "published", 113.4)
    row = table([point], "kitchen", "travel").splitlines()[-1]
    assert row == "| 25 | 19 | **0.312** | 0.283-0.342 | 0.765 | published | 113 |"
