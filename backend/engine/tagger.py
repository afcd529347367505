"""Label many texts offline, in batches of windows of like length.

Training, evaluation and pretraining use it. Serving has a queue of its own: see serving/batcher.py.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from backend.engine.batches import batches_by_length
from backend.engine.checkpoint import LoadedModel
from backend.engine.codec import Codec, Decoded, EncodedPrompt
from backend.engine.decode import ExactDecoder
from backend.engine.device import profile_of
from backend.engine.drafter import drafts_of
from backend.engine.family import Family
from backend.ner import segment
from backend.ner.spans import Question, Span, Window

_BATCH_WINDOWS = 32


@dataclass(frozen=True, slots=True)
class WordsQuestion:
    """A sentence that is split into words already, and the prompt words of the labels to ask for."""

    words: tuple[str, ...]
    labels: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TaggedSentence:
    """A sentence's tags, and those that the draft head guessed; `draft` is None for a model without a draft head."""

    tags: tuple[str, ...]
    draft: tuple[str, ...] | None


_Answer = TypeVar("_Answer")


class Tagger:
    """Labels texts with the active adapter. Not thread-safe, as the model is not."""

    def __init__(self, family: Family, codec: Codec) -> None:
        self._family = family
        self._codec = codec
        self._decoder = ExactDecoder(family, profile_of(family.model.device).window_tokens)

    @classmethod
    def of(cls, loaded: LoadedModel) -> "Tagger":
        """A tagger for a loaded checkpoint."""
        return cls(loaded.family, loaded.codec)

    def answer(self, questions: Sequence[Question]) -> Iterator[dict[int, tuple[Span, ...]]]:
        """Find the spans of each passage. Yields, after each batch, the passages that it finished, by index.

        Raises LabelsIndistinguishable and PromptTooLong.
        """
        windows = [self._windows(question) for question in questions]
        parts = [
            [WordsQuestion(tuple(word.text for word in window.words), question.labels) for window in of_question]
            for question, of_question in zip(questions, windows, strict=True)
        ]
        for finished in self._batches(parts, self._decoder.decode):
            yield {index: _spans(questions[index], windows[index], decoded) for index, decoded in finished.items()}

    def tag_words(
        self, questions: Sequence[WordsQuestion], on_finished: Callable[[int], object] = lambda _: None
    ) -> list[TaggedSentence]:
        """Tag sentences, in their order. `on_finished` gets the number of finished sentences after each batch.

        A sentence that exceeds the checkpoint's context is cut in halves until each part fits; the parts are tagged
        separately. Raises LabelsIndistinguishable, and PromptTooLong if the labels leave no room for words.
        """
        tagged: dict[int, TaggedSentence] = {}
        for finished in self._batches([self._halves(question) for question in questions], self._decode_with_drafts):
            tagged |= {index: _joined(rows) for index, rows in finished.items()}
            on_finished(len(finished))
        return [tagged[index] for index in range(len(questions))]

    def _batches(
        self,
        questions: Sequence[Sequence[WordsQuestion]],
        decode: Callable[[list[EncodedPrompt]], Sequence[_Answer]],
    ) -> Iterator[dict[int, list[_Answer]]]:
        """Decode the parts of all questions. Yields a question's answers, in order, once all its parts are decoded.

        Questions without parts come first, then those that each batch finishes.
        """
        flat = [(owner, number) for owner, parts in enumerate(questions) for number in range(len(parts))]
        found: list[dict[int, _Answer]] = [{} for _ in questions]  # by part
        yield {owner: [] for owner, parts in enumerate(questions) if not parts}
        lengths = [len(questions[owner][number].words) for owner, number in flat]
        for batch in batches_by_length(lengths, max_rows=_BATCH_WINDOWS):
            chosen = [flat[index] for index in batch]
            asked = [questions[owner][number] for owner, number in chosen]
            answers = decode([self._codec.encode(part.labels, part.words) for part in asked])
            finished: dict[int, list[_Answer]] = {}
            for (owner, number), answer in zip(chosen, answers, strict=True):
                found[owner][number] = answer
                if len(found[owner]) == len(questions[owner]):
                    finished[owner] = [found[owner][part] for part in sorted(found[owner])]
                    found[owner] = {}
            yield finished

    def _windows(self, question: Question) -> list[Window]:
        text, breaks = question.passage.text, question.passage.breaks
        return self._codec.windows(question.labels, text, segment.words(text, breaks), breaks)

    def _halves(self, question: WordsQuestion) -> list[WordsQuestion]:
        words, labels = question.words, question.labels
        if len(words) < 2 or self._codec.fits(labels, words):
            return [question]
        middle = len(words) // 2
        return [
            *self._halves(WordsQuestion(words[:middle], labels)),
            *self._halves(WordsQuestion(words[middle:], labels)),
        ]

    def _decode_with_drafts(self, prompts: list[EncodedPrompt]) -> list[TaggedSentence]:
        drafts = self._draft_tags(prompts)
        decoded = self._decoder.decode(prompts)
        return [TaggedSentence(row.tags, draft) for row, draft in zip(decoded, drafts, strict=True)]

    @torch.inference_mode()
    def _draft_tags(self, prompts: list[EncodedPrompt]) -> list[tuple[str, ...] | None]:
        logits = self._family.draft(prompts, self._family.begin(prompts))
        if logits is None:
            return [None] * len(prompts)
        names = [self._codec.grammar(prompt.labels).tags for prompt in prompts]
        drafts = drafts_of(logits, prompts)
        return [tuple(of_row[tag] for tag in draft.tags) for of_row, draft in zip(names, drafts, strict=True)]


def _spans(question: Question, windows: Sequence[Window], decoded: Sequence[Decoded]) -> tuple[Span, ...]:
    words = [
        word
        for window, row in zip(windows, decoded, strict=True)
        for word in segment.kept(window, row.tags, row.probabilities)
    ]
    return tuple(segment.stitch(words, question.passage.breaks))


def _joined(parts: Sequence[TaggedSentence]) -> TaggedSentence:
    drafts = [part.draft for part in parts if part.draft is not None]
    return TaggedSentence(
        tuple(tag for part in parts for tag in part.tags),
        tuple(tag for draft in drafts for tag in draft) if len(drafts) == len(parts) else None,
    )
