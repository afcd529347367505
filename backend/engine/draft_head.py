"""The draft head: guesses every word's tag from the encoder's output, in one small matrix product.

A checkpoint folder may contain one (`draft_head` in its gner.json). It is trained together with the encoder, which
learns to relate each word to the labels of the prompt. The decoder starts from its guesses and verifies them: a wrong
guess costs time but never changes a label.

For word w, label l (the mean state of the label's tokens in the prompt) and d the head's size:

    score(w, B-l) = <begin h_w, label h_l> / sqrt(d) + begin_bias
    score(w, I-l) = <inside h_w, label h_l> / sqrt(d) + inside_bias
    score(w, O)   = outside h_w + outside_bias

Tensors in the file: `begin.weight`, `inside.weight`, `label.weight` (size, hidden), `begin_bias`, `inside_bias` (1,),
`outside.weight` (1, hidden), `outside.bias` (1,).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from backend.errors import CheckpointError
from backend.ner.bio import OUTSIDE_INDEX, begin_of, may_follow


@dataclass(frozen=True, slots=True)
class Places:
    """Where a prompt's words and labels stand among its source tokens.

    `word_positions[i]` is the first token of word i; `label_spans[i]` are the tokens of label i, half-open.
    """

    word_positions: tuple[int, ...]
    label_spans: tuple[tuple[int, int], ...]


def locate(template: str, labels: Sequence[str], words: Sequence[str], offsets: Sequence[tuple[int, int]]) -> Places:
    """Places of the prompt `PromptFormat(template).render(labels, words)`.

    `offsets` are the tokenizer's: per token, the half-open range of the rendered prompt's code points (empty for
    special tokens). A word or label without tokens gets the token after it.
    """
    head, rest = template.split("{labels}", 1)
    between = rest.split("{sentence}", 1)[0]
    label_ranges = _ranges(len(head), labels, ", ")
    after_labels = label_ranges[-1][1] if label_ranges else len(head)
    word_ranges = _ranges(after_labels + len(between), words, " ")
    spans = iter(_token_spans([*label_ranges, *word_ranges], offsets))
    label_spans = tuple(next(spans) for _ in labels)
    return Places(tuple(next(spans)[0] for _ in words), label_spans)


def _ranges(start: int, texts: Sequence[str], separator: str) -> list[tuple[int, int]]:
    ranges = []
    for text in texts:
        ranges.append((start, start + len(text)))
        start += len(text) + len(separator)
    return ranges


def _token_spans(ranges: Sequence[tuple[int, int]], offsets: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The tokens within each range of code points (ascending), at least one each."""
    spans, token, last = [], 0, len(offsets) - 1
    for start, end in ranges:
        while token < last and (offsets[token][0] < start or offsets[token][0] == offsets[token][1]):
            token += 1
        stop = token
        while stop <= last and offsets[stop][0] < end and offsets[stop][0] < offsets[stop][1]:
            stop += 1
        spans.append((token, max(stop, token + 1)))
    return spans


def stack(places: Sequence[Places], device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """Places as tensors, padded with zeros: word positions (batch, words) and label spans (batch, labels, 2)."""
    num_words = max(len(of_row.word_positions) for of_row in places)
    num_labels = max(len(of_row.label_spans) for of_row in places)
    words = [[*of_row.word_positions] + [0] * (num_words - len(of_row.word_positions)) for of_row in places]
    labels = [[*of_row.label_spans] + [(0, 0)] * (num_labels - len(of_row.label_spans)) for of_row in places]
    return torch.tensor(words, device=device), torch.tensor(labels, device=device)


class DraftHead(nn.Module):
    """Tag scores from the encoder's output. The formula is in the module's docstring."""

    def __init__(self, hidden_size: int, size: int) -> None:
        super().__init__()
        self.begin = nn.Linear(hidden_size, size, bias=False)
        self.inside = nn.Linear(hidden_size, size, bias=False)
        self.label = nn.Linear(hidden_size, size, bias=False)
        self.outside = nn.Linear(hidden_size, 1)
        self.begin_bias = nn.Parameter(torch.zeros(1))
        self.inside_bias = nn.Parameter(torch.zeros(1))

    @classmethod
    def load(cls, path: Path) -> "DraftHead":
        """Read a draft head from a safetensors file. Raises CheckpointError if it is missing or has other tensors."""
        try:
            tensors = load_file(path)
            size, hidden_size = tensors["label.weight"].shape
            head = cls(hidden_size, size)
            head.load_state_dict(tensors)
        except Exception as error:
            raise CheckpointError(f"cannot read the draft head {path}: {error}") from error
        head.to(tensors["label.weight"].dtype)
        return head.eval()

    def save(self, path: Path, dtype: torch.dtype) -> None:
        """Write the tensors in `dtype`."""
        save_file(
            {name: tensor.detach().to(dtype).contiguous().cpu() for name, tensor in self.state_dict().items()}, path
        )

    def forward(self, encoder_hidden: Tensor, word_positions: Tensor, label_spans: Tensor) -> Tensor:
        """Tag logits (batch, words, 1 + 2 * labels), in the order of `bio.tag_names`: O, B-1, I-1, B-2, I-2 ...

        `encoder_hidden` is (batch, source, hidden), before any projection to the decoder's size; `word_positions`
        (batch, words) and `label_spans` (batch, labels, 2) are made by `stack`. An empty span is padding:
        its two tags get minus infinity.
        """
        batch, num_source, _ = encoder_hidden.shape
        columns = torch.arange(num_source, device=encoder_hidden.device)
        within = (columns >= label_spans[..., :1]) & (columns < label_spans[..., 1:])  # (batch, labels, source)
        lengths = within.sum(-1, keepdim=True)
        label_states = (within / lengths.clamp(min=1)).to(encoder_hidden.dtype) @ encoder_hidden
        rows = torch.arange(batch, device=encoder_hidden.device)[:, None]
        word_states = encoder_hidden[rows, word_positions]  # (batch, words, hidden)
        keys = self.label(label_states).transpose(1, 2) / self.label.out_features**0.5
        begin = self.begin(word_states) @ keys + self.begin_bias
        inside = self.inside(word_states) @ keys + self.inside_bias
        of_labels = torch.stack([begin, inside], dim=-1).float()  # (batch, words, labels, 2)
        of_labels = of_labels.masked_fill((lengths == 0)[:, None, :, :], float("-inf"))
        outside = self.outside(word_states).float()
        return torch.cat([outside, of_labels.flatten(2)], dim=-1)


def best_tags(logits: Tensor, num_words: Sequence[int]) -> list[list[int]]:
    """The head's guesses: per row, the index of each word's best tag, made legal.

    `logits` (batch, words, tags) are those of `DraftHead.forward`; row r has `num_words[r]` words. An I- that does
    not continue its own label becomes the B- of that label.
    """
    rows: list[list[int]] = []
    for best, length in zip(logits.argmax(-1).tolist(), num_words, strict=True):
        row: list[int] = []
        for tag in best[:length]:
            before = row[-1] if row else OUTSIDE_INDEX
            row.append(tag if may_follow(tag, before) else begin_of(tag))
        rows.append(row)
    return rows
