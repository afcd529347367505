"""Exact constrained decoding in few passes.

Most of a GNER answer is known beforehand: words and brackets are forced, only tags are free. The decoder drafts all
tags, runs the drafted answer through the model (teacher forcing, one window at a time) and keeps it up to the first tag
that differs from the constrained argmax. It corrects that tag and starts the next pass there, on the key-value cache of
what was kept. Tags after a correction are drafted again from the same pass (Jacobi iteration). Whatever the draft, the
result equals greedy constrained decoding step by step (see sequential.py): a tag is kept only if it is the argmax given
the kept tags before it.

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
from backend.engine.decoding_state import DecodingState, GiveWay, go_on
from backend.engine.drafter import Draft, Drafter, drafts_of
from backend.engine.family import Family
from backend.ner.bio import OUTSIDE_INDEX, TagSet, begin_index, contains, first_of, made_legal, may_follow
from backend.ner.grammar import Decision, Grammar


@dataclass(slots=True)
class Work:
    """What a decoder has done since it was created. tau = decoder_tokens / output_tokens."""

    passes: int = 0  # calls of the decoder stack, of any batch size
    decoder_tokens: int = 0  # tokens run through it, padding included
    output_tokens: int = 0  # tokens of the answers
    windows: int = 0  # prompts answered


class Decoder(Protocol):
    """What all decoders have in common."""

    work: Work

    def decode(self, prompts: Sequence[EncodedPrompt], give_way: GiveWay = go_on) -> list[Decoded]:
        """Tag every word of each prompt; output order is input order.

        `give_way` is called as often as possible. It may use this decoder for other prompts before it returns.
        """
        ...


@dataclass(frozen=True, slots=True)
class Check:
    """A decision that a pass can verify. The hidden state of the fed token `fed_index` predicts it."""

    fed_index: int
    word: int
    decision: Decision


@dataclass(slots=True)
class _Row:
    """One prompt while it is decoded. Lists have one entry per word.

    `tags` are drafts; the first `settled[word]` decisions of a word are final. `label_tags` are the B- tags to guess
    where it is known only that an entity begins. `unsure` marks words whose draft is likely wrong.
    """

    prompt: EncodedPrompt
    tags: list[int]
    label_tags: list[int]
    unsure: list[bool]
    settled: list[int]
    probabilities: list[float]  # per word, the product over its settled decisions
    word: int = 0  # the next feed begins in this word, of which `cached_of_word` tokens are cached
    cached_of_word: int = 0
    started: bool = False  # whether the start token is cached

    @classmethod
    def of(cls, prompt: EncodedPrompt) -> "_Row":
        num_words = len(prompt.words)
        draft = list(prompt.draft) if prompt.draft is not None else [OUTSIDE_INDEX] * num_words
        return cls(prompt, draft, [begin_index(0)] * num_words, [False] * num_words, [0] * num_words, [1.0] * num_words)

    @property
    def done(self) -> bool:
        last = len(self.tags) - 1
        # an illegal draft has not been verified, and has no decisions to count
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
                # the last fed token verifies this word; tokens after a draft that is likely wrong would be wasted
                width = min(width, checks_of_word[0].fed_index + 1)
            if len(tokens) > width:  # not >=: the last fed token may predict the next word's first decision
                break
        else:
            width = min(width, checks[-1].fed_index + 1)  # nothing needs to run after the text's last decision
        return tokens[:width], [check for check in checks if check.fed_index < width]

    def _legalise(self, word: int) -> None:
        """A draft may be wrong but must be legal; a correction of the word before may have made it illegal."""
        self.tags[word] = made_legal(self.tags[word], self.tag_before(word))

    def apply(self, num_fed: int, checks: Sequence[Check], verdicts: "_Verdicts") -> int:
        """Settle what the pass verified and correct the first difference. Returns how many fed tokens stay."""
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
        """One of the candidates, between which no decision has been made yet."""
        label_tag = self.label_tags[word]
        return label_tag if contains(candidates, label_tag) else first_of(candidates)

    def _redraft(self, checks: Sequence[Check], logits: NDArray[np.float32], legal: "_LegalTokens") -> None:
        """New drafts for the words after a correction, from this pass's logits (which saw a wrong prefix)."""
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
    """The tokens that a batch's logits are computed for, and the columns that each decision may choose from."""

    def __init__(self, grammars: set[Grammar], device: torch.device) -> None:
        tokens = sorted(set().union(*(grammar.decision_tokens for grammar in grammars)))
        self.column = {token: index for index, token in enumerate(tokens)}
        self.token_ids = torch.tensor(tokens, device=device)
        self._columns_of: dict[tuple[int, ...], NDArray[np.intp]] = {}

    def columns_of(self, decision: Decision) -> NDArray[np.intp]:
        """The column of each token of a decision, in order."""
        known = self._columns_of.get(decision.tokens)
        if known is None:
            known = np.array([self.column[token] for token in decision.tokens])
            self._columns_of[decision.tokens] = known
        return known


@dataclass(frozen=True, slots=True)
class _Verdicts:
    """The results of one row's checks: the argmax of the legal tokens, its probability, and all logits."""

    choices: list[int]
    probabilities: list[float]
    logits: NDArray[np.float32]  # (checks, columns)
    legal: _LegalTokens


class ExactDecoder:
    """Drafts, verifies, corrects. One instance per loaded model. Not thread-safe, as the model is not."""

    def __init__(
        self, family: Family, window_tokens: int, drafter: Drafter | None = None, *, draft_threshold: float = 0.0
    ) -> None:
        """`window_tokens` bounds the tokens of a pass. Short windows waste less on wrong drafts, long ones save passes.

        A single prompt with an unsure draft gets `window_tokens`, one without gets twice as many, and each prompt of a
        batch gets half as many. `drafter` drafts for models without a draft head. For a single prompt, a draft of the
        model's own head with a probability below `draft_threshold` is unsure and ends the window.
        """
        self.work = Work()
        self._family = family
        self._device: torch.device = family.model.device
        self._window_tokens = window_tokens
        self._drafter = drafter
        self._draft_threshold = draft_threshold

    @torch.inference_mode()
    def decode(self, prompts: Sequence[EncodedPrompt], give_way: GiveWay = go_on) -> list[Decoded]:
        """Tag every word of each prompt; output order is input order. Gives way between two passes.

        Logits are (num_decisions, num_decision_tokens), masked to the legal ones before argmax and softmax.
        """
        rows = [_Row.of(prompt) for prompt in prompts]
        active = [row for row in rows if not row.done]
        if active:
            self._run(active, give_way)
        self.work.windows += len(rows)
        self.work.output_tokens += sum(row.answer_tokens for row in rows)
        return [
            Decoded(tuple(row.grammar(word).tags[tag] for word, tag in enumerate(row.tags)), tuple(row.probabilities))
            for row in rows
        ]

    def _run(self, rows: list[_Row], give_way: GiveWay) -> None:
        state = self._family.begin([row.prompt for row in rows], give_way)
        self._draft(rows, state)
        legal = _LegalTokens({code.grammar for row in rows for code in row.prompt.codes}, self._device)
        while rows:
            width = self._width(rows)
            # in a batch, a row that stops early would only wait for the others
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
                give_way()
            rows = [rows[index] for index in staying]

    def _width(self, rows: Sequence[_Row]) -> int:
        """The most tokens of a row in the next pass. In a batch, all rows are padded to the widest."""
        if len(rows) > 1:
            return max(1, self._window_tokens // 2)
        (row,) = rows
        return self._window_tokens if any(row.unsure[row.word :]) else 2 * self._window_tokens

    def _draft(self, rows: Sequence[_Row], state: DecodingState) -> None:
        """Replace the first draft, all O: by the prompt's own, else the model's draft head's, else the drafter's."""
        prompts = [row.prompt for row in rows]
        logits = self._family.draft(prompts, state)
        drafts: Sequence[Draft | None] = []
        if logits is not None:
            drafts = drafts_of(logits, prompts)
        elif self._drafter is not None:
            drafts = self._drafter.draft(prompts)
        # another checkpoint's probabilities hardly predict where this one differs: see docs/lab-notes.md
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
        """One result per row, from the logits at the positions to be checked."""
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
        """A hook for benchmarks that know the answers: the logits (checks, columns) to use. `column` is by token."""
        return logits
