"""A model's probabilities along a given answer, and their distance from the targets.

It is one teacher-forced pass through the serving code. The source is read as for decoding, the answer is fed at once,
and logits are taken at the answer's decisions, over the tokens that are legal there.

A target has a probability for each legal token: 1 for the correct one (`encode`), or the probabilities that a model has
now (`soften`). A model that is trained on its own probabilities does not change (Hinton et al. 2015, arXiv:1503.02531).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from torch import Tensor
from torch.nn import functional

from backend.engine.batches import batches_by_length
from backend.engine.codec import Codec, EncodedPrompt
from backend.engine.family import Family, pad
from backend.learning.lessons import Lesson
from backend.ner.bio import OUTSIDE_INDEX, num_tags
from backend.ner.grammar import Decision

_PASS_TOKENS = 8192  # source and target of a pass that needs no gradients, padded


@dataclass(frozen=True, slots=True)
class EncodedLesson:
    """A lesson in tokens. Sizes: T fed tokens, N decisions, K legal tokens at most, W words, G tags.

    `fed` is the answer up to the token that predicts the last decision, without the start token. The hidden state of
    token `positions[i]`, with the start token as number 0, predicts decision i.
    """

    prompt: EncodedPrompt
    weight: float
    fed: tuple[int, ...]  # (T,)
    positions: tuple[int, ...]  # (N,)
    decisions: tuple[Decision, ...]  # (N,)
    targets: Tensor  # (N, K), rows add up to 1
    draft_targets: Tensor  # (W, G), rows add up to 1

    @property
    def num_tokens(self) -> int:
        """Tokens of source and target."""
        return len(self.prompt.source_ids) + len(self.fed) + 1


@dataclass(frozen=True, slots=True)
class Losses:
    """Means over decisions, and over words, each weighted by its lesson. `draft` is None without a draft head."""

    decisions: Tensor
    draft: Tensor | None


@dataclass(frozen=True, slots=True)
class _LogProbabilities:
    """Of a batch; minus infinity for tokens that are not legal."""

    decisions: Tensor  # (all decisions, K)
    draft: Tensor | None  # (batch, W, G)


def encode(codec: Codec, lesson: Lesson) -> EncodedLesson:
    """The lesson with the correct answer as its targets. Raises LabelsIndistinguishable and PromptTooLong."""
    prompt = codec.encode(lesson.labels, lesson.words, lesson.tags)
    assert prompt.draft is not None
    tokens: list[int] = []
    positions: list[int] = []
    decisions: list[Decision] = []
    previous = OUTSIDE_INDEX
    for code, tag in zip(prompt.codes, prompt.draft, strict=True):
        path_index = len(tokens) + len(code.forced)
        for decision in code.grammar.decisions(previous, tag):
            positions.append(path_index + decision.offset)
            decisions.append(decision)
        tokens += code.forced + code.grammar.paths[tag]
        previous = tag
    targets = torch.zeros(len(decisions), max(len(decision.tokens) for decision in decisions))
    targets[range(len(decisions)), [decision.choice for decision in decisions]] = 1
    draft_targets = torch.zeros(len(prompt.draft), num_tags(len(lesson.labels)))
    draft_targets[range(len(prompt.draft)), list(prompt.draft)] = 1
    return EncodedLesson(
        prompt,
        lesson.weight,
        tuple(tokens[: positions[-1]]),
        tuple(positions),
        tuple(decisions),
        targets,
        draft_targets,
    )


def losses(family: Family, batch: Sequence[EncodedLesson]) -> Losses:
    """Cross-entropy of the targets and the model's probabilities."""
    found = _log_probabilities(family, batch)
    of_decisions = found.decisions.new_tensor([row.weight for row in batch for _ in row.decisions])
    targets = _stacked([row.targets for row in batch], found.decisions)
    decisions = (_cross_entropy(targets, found.decisions) * of_decisions).sum() / of_decisions.sum()
    if found.draft is None:
        return Losses(decisions, None)
    of_words = found.draft.new_tensor([row.weight for row in batch for _ in row.draft_targets])
    drafts = torch.cat([found.draft[index, : len(row.draft_targets)] for index, row in enumerate(batch)])
    draft_targets = _stacked([row.draft_targets for row in batch], drafts)
    return Losses(decisions, (_cross_entropy(draft_targets, drafts) * of_words).sum() / of_words.sum())


@torch.no_grad()
def soften(family: Family, lessons: Sequence[EncodedLesson]) -> list[EncodedLesson]:
    """The lessons with the model's present probabilities, along the same answers, as their targets."""
    softened = list(lessons)
    lengths = [lesson.num_tokens for lesson in lessons]
    for chosen in batches_by_length(lengths, max_tokens=_PASS_TOKENS):
        found = _log_probabilities(family, [lessons[index] for index in chosen])
        ends = list(accumulate(len(lessons[index].decisions) for index in chosen))
        for row, (index, end) in enumerate(zip(chosen, ends, strict=True)):
            lesson = lessons[index]
            targets = _probabilities(found.decisions[end - len(lesson.decisions) : end], lesson.targets)
            drafts = lesson.draft_targets
            if found.draft is not None:
                drafts = _probabilities(found.draft[row, : len(drafts)], drafts)
            softened[index] = replace(lesson, targets=targets, draft_targets=drafts)
    return softened


def _log_probabilities(family: Family, batch: Sequence[EncodedLesson]) -> _LogProbabilities:
    device: torch.device = family.model.device
    prompts = [row.prompt for row in batch]
    memory = family.begin(prompts)
    fed = [(start, *row.fed) for start, row in zip(memory.start_tokens, batch, strict=True)]
    hidden = family.forward(memory, memory.feed(fed, device))
    at_rows = torch.tensor([index for index, row in enumerate(batch) for _ in row.positions], device=device)
    at_tokens = torch.tensor([position for row in batch for position in row.positions], device=device)
    options = [decision.tokens for row in batch for decision in row.decisions]
    tokens = sorted(set().union(*options))
    logits = family.logits(hidden[at_rows, at_tokens], torch.tensor(tokens, device=device))
    column = {token: index for index, token in enumerate(tokens)}
    columns = [[column[token] for token in legal] for legal in options]
    index, legal = pad(columns, logits.device)
    at_options = logits.gather(1, index).masked_fill(legal == 0, float("-inf"))
    draft = family.draft(prompts, memory)
    return _LogProbabilities(at_options.log_softmax(-1), None if draft is None else draft.log_softmax(-1))


def _cross_entropy(targets: Tensor, found: Tensor) -> Tensor:
    """Both (rows, options) -> (rows,). An illegal token has minus infinity, and a target of 0."""
    return -torch.where(targets > 0, targets * found, 0.0).sum(-1)


def _probabilities(found: Tensor, like: Tensor) -> Tensor:
    """Probabilities of as many options as `like` has; the others are padding."""
    return found[:, : like.shape[-1]].exp().cpu()


def _stacked(rows: Sequence[Tensor], like: Tensor) -> Tensor:
    """The rows of all matrices, padded with zeros to the width of `like`, on its device."""
    return torch.cat([functional.pad(row, (0, like.shape[-1] - row.shape[-1])) for row in rows]).to(like.device)
