"""Exact constrained decoding in a handful of passes.

A GNER answer is nearly all known beforehand: words and brackets are forced, only tags are free. So the decoder drafts
all tags, runs the drafted answer through the model teacher-forced, a window at a time, and keeps it up to the first
tag that differs from the constrained argmax; that one is corrected and the next pass starts there, on the key-values
of what was kept. Tags behind a correction are redrafted from the same pass (Jacobi iteration). Whatever the draft
was, the result is that of greedy constrained decoding step by step (see sequential.py): a tag is only ever kept if
it is the argmax given the kept tags before it.

Sources: speculative verification, Leviathan et al. 2023 (arXiv:2211.17192); Jacobi decoding, Santilli et al. 2023
(arXiv:2305.10427).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from backend.engine.codec import Decoded, EncodedPrompt
from backend.engine.decoding_state import DecodingState
from backend.engine.drafter import Draft, Drafter, drafts_of
from backend.engine.family import Family
from backend.ner.bio import OUTSIDE_INDEX, TagSet, begin_index, contains, first_of, made_legal, may_follow
from backend.ner.grammar import Decision, Grammar


@dataclass(slots=True)
class Work:
    """What a decoder has done since it was made. tau = decoder_tokens / output_tokens."""

    passes: int = 0  # calls of the decoder stack, whatever their batch size
    decoder_tokens: int = 0  # tokens run through it, padding included
    output_tokens: int = 0  # tokens of the answers
    windows: int = 0  # prompts answered


class Decoder(Protocol):
    """The one function that every way of decoding offers."""

    work: Work

    def decode(self, prompts: Sequence[EncodedPrompt]) -> list[Decoded]:
        """Tag every word of each prompt; output order is input order."""
        ...


@dataclass(frozen=True, slots=True)
class Check:
    """A decision that a pass can verify: `fed_index` is the fed token whose hidden state predicts it."""

    fed_index: int
    word: int
    decision: Decision


@dataclass(slots=True)
class _Row:
    """One prompt on its way to its answer.

    `tags` are drafts; a word's first `settled[word]` decisions are final. `label_tags` are, per word, the B- tag to
    guess where all that is known is that a label begins; `unsure` marks the words whose draft is likely wrong.
    """

    prompt: EncodedPrompt
    tags: list[int]
    label_tags: list[int]
    unsure: list[bool]
    settled: list[int]
    probabilities: list[float]  # per word, the product over its settled decisions
    word: int = 0  # where the next feed begins: word `word`, of which `cached_of_word` tokens are in the memory
    cached_of_word: int = 0
    started: bool = False  # whether the start token is in the memory

    @classmethod
    def of(cls, prompt: EncodedPrompt) -> "_Row":
        num_words = len(prompt.words)
        draft = list(prompt.draft) if prompt.draft is not None else [OUTSIDE_INDEX] * num_words
        return cls(prompt, draft, [begin_index(0)] * num_words, [False] * num_words, [0] * num_words, [1.0] * num_words)

    @property
    def done(self) -> bool:
        last = len(self.tags) - 1
        # a draft that is not legal (any more) has not been looked at, and has no decisions to count
        return last < 0 or (
            may_follow(self.tags[last], self.tag_before(last)) and self.settled[last] == len(self.decisions(last))
        )

    @property
    def answer_tokens(self) -> int:
        return sum(map(self.num_tokens, range(len(self.tags))))

    def grammar(self, word: int) -> Grammar:
        return self.prompt.codes[word].grammar

    def tag_before(self, word: int) -> int:
        return self.tags[word - 1] if word else OUTSIDE_INDEX

    def allowed(self, word: int) -> TagSet:
        return self.grammar(word).allowed(self.tag_before(word))

    def decisions(self, word: int) -> tuple[Decision, ...]:
        return self.grammar(word).decisions(self.tag_before(word), self.tags[word])

    def num_tokens(self, word: int) -> int:
        code = self.prompt.codes[word]
        return len(code.forced) + len(code.grammar.paths[self.tags[word]])

    def feed(self, start_token: int, width: int, stop_when_unsure: bool) -> tuple[list[int], list[Check]]:
        """The next tokens of the drafted answer, at most `width`, and the decisions that they verify."""
        tokens = [] if self.started else [start_token]
        checks: list[Check] = []
        for word in range(self.word, len(self.tags)):
            self._legalise(word)
            code = self.prompt.codes[word]
            skip = self.cached_of_word if word == self.word else 0
            path_index = len(tokens) - skip + len(code.forced)
            checks_of_word = [
                Check(path_index + decision.offset - 1, word, decision)
                for decision in self.decisions(word)[self.settled[word] :]
            ]
            checks += checks_of_word
            tokens += (code.forced + code.grammar.paths[self.tags[word]])[skip:]
            if stop_when_unsure and self.unsure[word] and not self.settled[word]:
                # its decision is verified at the last fed token, and nothing is run behind a draft that is likely wrong
                width = min(width, checks_of_word[0].fed_index + 1)
            if len(tokens) > width:  # not at equality: the last fed token may predict the next word's first decision
                break
        else:
            width = min(width, checks[-1].fed_index + 1)  # behind the text's last decision nothing needs to be run
        return tokens[:width], [check for check in checks if check.fed_index < width]

    def _legalise(self, word: int) -> None:
        """A draft may be wrong, but must be legal: an I- that may not stand here goes on with the label of the word
        before, which a correction has changed, or begins one of its own."""
        self.tags[word] = made_legal(self.tags[word], self.tag_before(word))

    def apply(self, num_fed: int, checks: Sequence[Check], verdicts: "_Verdicts") -> int:
        """Settle what the pass verified, correct the first difference, and say how many fed tokens stay."""
        for index, check in enumerate(checks):
            choice = verdicts.choices[index]
            self.settled[check.word] += 1
            self.probabilities[check.word] *= verdicts.probabilities[index]
            if choice != check.decision.choice:
                self._correct(check, check.decision.tokens[choice])
                self._redraft(checks[index + 1 :], verdicts.logits[index + 1 :], verdicts.legal)
                return self._advance(check.fed_index + 1)
        return self._advance(num_fed)

    def _correct(self, check: Check, token: int) -> None:
        node = self.grammar(check.word).root
        path = self.grammar(check.word).paths[self.tags[check.word]]
        for passed in path[: check.decision.offset]:
            node = node.children[passed]
        self.tags[check.word] = self._guess(check.word, node.children[token].tags & self.allowed(check.word))

    def _guess(self, word: int, candidates: TagSet) -> int:
        """One of the tags between which nothing has been decided yet."""
        label_tag = self.label_tags[word]
        return label_tag if contains(candidates, label_tag) else first_of(candidates)

    def _redraft(self, checks: Sequence[Check], logits: NDArray[np.float32], legal: "_LegalTokens") -> None:
        """New drafts for the words behind a correction, from what the pass said of them (on a wrong prefix)."""
        for word, of_word in groupby(enumerate(checks), key=lambda pair: pair[1].word):
            if word < len(self.tags) and self.settled[word]:
                continue  # the corrected word itself
            grammar, allowed = self.grammar(word), self.allowed(word)
            node, offset = grammar.root, 0
            path = grammar.paths[self.tags[word]]
            for index, check in of_word:
                for token in path[offset : check.decision.offset]:
                    node = node.children[token]
                offset = check.decision.offset
                options = grammar.options(node, allowed)
                best = options[int(np.argmax(logits[index, [legal.column[token] for token in options]]))]
                if best != path[offset]:
                    self.tags[word] = self._guess(word, node.children[best].tags & allowed)
                    break

    def _advance(self, accepted: int) -> int:
        left = accepted if self.started else accepted - 1
        self.started = True
        while self.word < len(self.tags) and self.cached_of_word + left >= self.num_tokens(self.word):
            left -= self.num_tokens(self.word) - self.cached_of_word
            self.word, self.cached_of_word = self.word + 1, 0
        self.cached_of_word += left
        return accepted


class _LegalTokens:
    """The columns that a batch's logits are computed for, and which of them each decision may choose."""

    def __init__(self, grammars: set[Grammar], device: torch.device) -> None:
        tokens = sorted(set().union(*(grammar.decision_tokens for grammar in grammars)))
        self.column = {token: index for index, token in enumerate(tokens)}
        self.token_ids = torch.tensor(tokens, device=device)
        self._columns_of: dict[tuple[int, ...], NDArray[np.intp]] = {}

    def columns_of(self, decision: Decision) -> NDArray[np.intp]:
        """Column of each of a decision's tokens, in their order."""
        known = self._columns_of.get(decision.tokens)
        if known is None:
            known = np.array([self.column[token] for token in decision.tokens])
            self._columns_of[decision.tokens] = known
        return known


@dataclass(frozen=True, slots=True)
class _Verdicts:
    """What a pass says of one row's checks: the argmax among the legal tokens, its probability, and all logits."""

    choices: list[int]
    probabilities: list[float]
    logits: NDArray[np.float32]  # (checks, columns)
    legal: _LegalTokens


class ExactDecoder:
    """Draft, verify, correct. One instance per loaded model; not thread-safe, as the model is not."""

    def __init__(
        self, family: Family, window_tokens: int, drafter: Drafter | None = None, *, draft_threshold: float = 0.0
    ) -> None:
        """`window_tokens` bounds what one pass runs of a prompt alone whose draft is unsure somewhere, twice as many of
        one whose draft is not, and half as many of each in a batch: short keeps a wrong draft cheap, long saves passes.

        `drafter` guesses for a model that has no draft head. A guess of the model's own head of less probability than
        `draft_threshold` ends the window of a prompt that is alone: fewer tokens are run in vain, in more passes.
        """
        self.work = Work()
        self._family = family
        self._device: torch.device = family.model.device
        self._window_tokens = window_tokens
        self._drafter = drafter
        self._draft_threshold = draft_threshold

    @torch.inference_mode()
    def decode(self, prompts: Sequence[EncodedPrompt]) -> list[Decoded]:
        """Tag every word of each prompt; output order is input order.

        Logits are (num_decisions, num_decision_tokens), masked to the legal ones before argmax and softmax.
        """
        rows = [_Row.of(prompt) for prompt in prompts]
        active = [row for row in rows if not row.done]
        if active:
            self._run(active)
        self.work.windows += len(rows)
        self.work.output_tokens += sum(row.answer_tokens for row in rows)
        return [
            Decoded(tuple(row.grammar(word).tags[tag] for word, tag in enumerate(row.tags)), tuple(row.probabilities))
            for row in rows
        ]

    def _run(self, rows: list[_Row]) -> None:
        state = self._family.begin([row.prompt for row in rows])
        self._draft(rows, state)
        legal = _LegalTokens({code.grammar for row in rows for code in row.prompt.codes}, self._device)
        while rows:
            width = self._width(rows)
            # in a batch a row that stops early would only wait
            alone = len(rows) == 1
            feeds = [row.feed(start, width, alone) for row, start in zip(rows, state.start_tokens, strict=True)]
            fed = [tokens for tokens, _ in feeds]
            hidden = self._family.forward(state, state.feed(fed, self._device))
            self.work.passes += 1
            self.work.decoder_tokens += hidden.shape[0] * hidden.shape[1]
            verdicts = self._verdicts(hidden, rows, [checks for _, checks in feeds], legal)
            accepted = [
                row.apply(len(tokens), checks, verdict)
                for row, (tokens, checks), verdict in zip(rows, feeds, verdicts, strict=True)
            ]
            staying = [index for index, row in enumerate(rows) if not row.done]
            if staying:
                state.keep(accepted, staying)
            rows = [rows[index] for index in staying]

    def _width(self, rows: Sequence[_Row]) -> int:
        """Tokens that the next pass runs of each row at most. In a batch every row is padded to the widest."""
        if len(rows) > 1:
            return max(1, self._window_tokens // 2)
        (row,) = rows
        return self._window_tokens if any(row.unsure[row.word :]) else 2 * self._window_tokens

    def _draft(self, rows: Sequence[_Row], state: DecodingState) -> None:
        """Better drafts than O throughout: a prompt's own, else the model's draft head's, else the drafter's."""
        prompts = [row.prompt for row in rows]
        logits = self._family.draft(prompts, state)
        drafts: Sequence[Draft | None] = []
        if logits is not None:
            drafts = drafts_of(logits, prompts)
        elif self._drafter is not None:
            drafts = self._drafter.draft(prompts)
        # another checkpoint's probabilities say little of where this one will differ: see docs/decisions.md
        threshold = self._draft_threshold if logits is not None else 0.0
        for row, draft in zip(rows, drafts, strict=False):
            if draft is not None:
                row.label_tags = draft.label_tags
                if row.prompt.draft is None:
                    row.tags = draft.tags
                    row.unsure = [probability < threshold for probability in draft.probabilities]

    def _verdicts(
        self, hidden: Tensor, rows: Sequence[_Row], checks: Sequence[Sequence[Check]], legal: _LegalTokens
    ) -> list[_Verdicts]:
        """One per row, from the head's logits at the positions to be checked."""
        flat = [(row, check) for row, of_row in enumerate(checks) for check in of_row]
        if not flat:
            return [_Verdicts([], [], np.empty((0, 0), dtype=np.float32), legal) for _ in checks]
        at_rows = torch.tensor([row for row, _ in flat], device=self._device)
        at_tokens = torch.tensor([check.fed_index for _, check in flat], device=self._device)
        logits = self._family.logits(hidden[at_rows, at_tokens], legal.token_ids).cpu().numpy()
        logits = self.overrule(logits, [(rows[row].prompt, check) for row, check in flat], legal.column)
        masked = np.full((len(flat), max(len(check.decision.tokens) for _, check in flat)), -np.inf, dtype=np.float32)
        for index, (_, check) in enumerate(flat):
            columns = legal.columns_of(check.decision)
            masked[index, : len(columns)] = logits[index, columns]
        choices = masked.argmax(1)
        chosen = np.take_along_axis(masked, choices[:, None], 1)
        probabilities = 1 / np.exp(masked - chosen).sum(1)
        ends = np.cumsum([0] + [len(of_row) for of_row in checks])
        return [
            _Verdicts(choices[a:b].tolist(), probabilities[a:b].tolist(), logits[a:b], legal) for a, b in pairwise(ends)
        ]

    def overrule(
        self,
        logits: NDArray[np.float32],
        asked: Sequence[tuple[EncodedPrompt, Check]],  # noqa: ARG002
        column: Mapping[int, int],  # noqa: ARG002
    ) -> NDArray[np.float32]:
        """For a benchmark that knows the answers: logits (checks, columns) as they shall count. `column` of a token."""
        return logits
