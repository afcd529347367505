"""Scores a checkpoint in training on the held-out sentences. The processes of a run share the work."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from backend.engine.codec import Codec, Limits
from backend.engine.family import BertToBertFamily
from backend.engine.tagger import Tagger, WordsQuestion
from backend.evaluation.accuracy import score, scored_tags
from backend.evaluation.corpora import Corpus
from backend.ner.prompt import PromptFormat
from backend.pretraining.losses import Learner
from backend.pretraining.recipe import Recipe
from backend.pretraining.shared_weights import SharedBuffers


@dataclass(frozen=True, slots=True)
class HeldOutF1:
    """Strict span F1 by collection: of the decoder, and of the draft head."""

    decoder: dict[str, float]
    draft: dict[str, float]


class HeldOut:
    """The held-out sentences of a run, as one of its processes sees them."""

    def __init__(
        self,
        corpora: Sequence[Corpus],
        recipe: Recipe,
        tokenizer: PreTrainedTokenizerFast,
        folder: Path,
        rank: int,
        shared: SharedBuffers,
    ) -> None:
        """The `dev` splits of `corpora`. The processes exchange their tags in files in `folder`."""
        self._sentences = [(corpus, sentence) for corpus in corpora for sentence in corpus.dev]
        self._folder, self._rank, self._processes = folder, rank, shared.processes
        max_tokens = recipe.architecture.max_tokens
        self._codec = Codec(
            tokenizer,
            PromptFormat(recipe.template),
            Limits(max_tokens, max_tokens),
            source_ends_with_eos=True,
            locates_words=True,
            marks_case=recipe.architecture.marks_case,
        )

    def tag_own_share(self, learner: Learner) -> None:
        """Tag this process's share of the sentences, and write the tags to its file."""
        own = self._sentences[self._rank :: self._processes]
        questions = [WordsQuestion(sentence.words, sentence.labels or corpus.labels) for corpus, sentence in own]
        tagged = Tagger(BertToBertFamily(learner.model, learner.head), self._codec).tag_words(questions)
        self._folder.mkdir(exist_ok=True)
        self._file_of(self._rank).write_text(json.dumps([[row.tags, row.draft] for row in tagged]), encoding="utf-8")

    def score(self) -> HeldOutF1:
        """Scores of all sentences. Every process must have tagged its share before."""
        tagged: list[Any] = [None] * len(self._sentences)
        for rank in range(self._processes):
            tagged[rank :: self._processes] = json.loads(self._file_of(rank).read_text(encoding="utf-8"))
        return HeldOutF1(self._f1([tags for tags, _ in tagged]), self._f1([draft for _, draft in tagged]))

    def _file_of(self, rank: int) -> Path:
        return self._folder / f"held-out-{rank}.json"

    def _f1(self, predicted: Sequence[Sequence[str]]) -> dict[str, float]:
        """By collection, sorted by name."""
        rows: dict[str, list[tuple[tuple[str, ...], tuple[str, ...]]]] = {}
        for (corpus, sentence), tags in zip(self._sentences, predicted, strict=True):
            pair = scored_tags(sentence.tags, corpus), scored_tags(tags, corpus)
            rows.setdefault(corpus.collection, []).append(pair)
        return {
            name: score([expected for expected, _ in rows[name]], [found for _, found in rows[name]]).f1
            for name in sorted(rows)
        }
