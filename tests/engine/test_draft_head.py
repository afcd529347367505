"""The draft head against its formula, and where it finds words and labels in a prompt."""

from pathlib import Path

import pytest
import torch

from backend.engine.draft_head import DraftHead, Places, best_tags, locate, stack
from backend.errors import CheckpointError


def _offsets(text: str) -> list[tuple[int, int]]:
    """Offsets of a toy tokenizer: runs of letters in pieces of three, other characters alone, special tokens around."""
    offsets, start = [(0, 0)], 0
    while start < len(text):
        end = start + 1
        while text[start].isalpha() and end < min(len(text), start + 3) and text[end].isalpha():
            end += 1
        if not text[start].isspace():
            offsets.append((start, end))
        start = end
    return [*offsets, (0, 0)]


def test_words_and_labels_are_found_by_their_offsets() -> None:
    text = "person, work of art : ada was , here"
    #   0 CLS, per son , wor k of art : ada was , her e, SEP
    places = locate("{labels} : {sentence}", ["person", "work of art"], ["ada", "was", ",", "here"], _offsets(text))
    assert places == Places(word_positions=(9, 10, 11, 12), label_spans=((1, 3), (4, 8)))


def test_a_word_without_a_token_gets_the_next() -> None:
    text = "x : a \u0301 b"
    offsets = [(0, 0), (0, 1), (2, 3), (4, 5), (8, 9), (0, 0)]  # the tokenizer drops the lone accent
    assert locate("{labels} : {sentence}", ["x"], ["a", "\u0301", "b"], offsets).word_positions == (3, 4, 4)
    assert text[8] == "b"


def test_places_of_a_batch_are_padded() -> None:
    words, labels = stack([Places((3, 4), ((1, 2),)), Places((5,), ((1, 3), (3, 4)))])
    assert words.tolist() == [[3, 4], [5, 0]]
    assert labels.tolist() == [[[1, 2], [0, 0]], [[1, 3], [3, 4]]]


@pytest.fixture
def head() -> DraftHead:
    torch.manual_seed(0)
    return DraftHead(hidden_size=6, size=4)


def test_scores_are_those_of_the_formula(head: DraftHead) -> None:
    hidden = torch.randn(2, 7, 6)
    places = [Places((4, 5), ((1, 3),)), Places((5,), ((1, 2), (2, 4)))]
    with torch.no_grad():
        logits = head(hidden, *stack(places))
        assert logits.shape == (2, 2, 5)
        for row, of_row in enumerate(places):
            for index, position in enumerate(of_row.word_positions):
                word = hidden[row, position]
                expected = [head.outside(word).item()]
                for start, end in of_row.label_spans:
                    label = head.label(hidden[row, start:end].mean(0))
                    expected.append((head.begin(word) @ label / 2 + head.begin_bias).item())
                    expected.append((head.inside(word) @ label / 2 + head.inside_bias).item())
                assert logits[row, index, : len(expected)].tolist() == pytest.approx(expected, abs=1e-5)
    assert torch.isinf(logits[0, :, 3:]).all()  # the first row has one label only


def test_guesses_are_legal() -> None:
    # tags: O, B-1, I-1, B-2, I-2
    logits = torch.zeros(2, 4, 5)
    for row, tags in enumerate([[2, 2, 4, 0], [3, 4, 2, 1]]):
        for word, tag in enumerate(tags):
            logits[row, word, tag] = 1.0
    assert best_tags(logits, [4, 3]) == [[1, 2, 3, 0], [3, 4, 1]]


def test_saved_and_loaded(head: DraftHead, tmp_path: Path) -> None:
    head.save(tmp_path / "head.safetensors", torch.bfloat16)
    loaded = DraftHead.load(tmp_path / "head.safetensors")
    assert torch.equal(loaded.begin.weight, head.begin.weight.to(torch.bfloat16))
    with pytest.raises(CheckpointError, match=r"missing\.safetensors"):
        DraftHead.load(tmp_path / "missing.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"no tensors")
    with pytest.raises(CheckpointError, match="broken"):
        DraftHead.load(tmp_path / "broken.safetensors")
