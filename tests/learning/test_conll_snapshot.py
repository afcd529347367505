"""Files of labelled sentences as a project's examples."""

from pathlib import Path

import pytest

from backend.errors import CorpusError
from backend.learning import conll_snapshot as conll


def write(folder: Path, content: str) -> Path:
    (folder / "x.conll").write_text(content, encoding="utf-8")
    return folder / "x.conll"


def test_each_sentence_is_a_task_with_the_labels_of_all(tmp_path: Path) -> None:
    file = write(
        tmp_path, "Marie\tB-person\nCurie\tI-person\nin\tO\nParis\tB-city\n\nnothing\tO\n\n👩‍👩‍👧\tO\nÅse\tB-person\n"
    )
    snapshot = conll.read_snapshot(file, "7.1")
    assert (snapshot.project.key, snapshot.project.id) == ("7.1", 7)
    texts = [example.texts[0] for example in snapshot.examples]
    assert [text.passage.text for text in texts] == ["Marie Curie in Paris", "nothing", "👩‍👩‍👧 Åse"]
    assert {text.labels for text in texts} == {("city", "person")}
    found = [[(text.passage.text[span.start : span.end], span.label) for span in text.spans] for text in texts]
    assert found == [[("Marie Curie", "person"), ("Paris", "city")], [], [("Åse", "person")]]
    assert len({example.task_id for example in snapshot.examples}) == 3
    assert snapshot.remapping.kept == 3


@pytest.mark.parametrize("content", ["", "only\tO\n", "no tab\n", "x\tB-\n"])
def test_a_file_that_teaches_nothing_is_refused(tmp_path: Path, content: str) -> None:
    with pytest.raises(CorpusError, match=r"x\.conll"):
        conll.read_snapshot(write(tmp_path, content), "7")
