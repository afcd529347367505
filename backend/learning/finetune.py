"""Fine-tuning: a project's examples -> the adapter of its next version, and the gate's verdict on it.

The loss uses the code that serves: a teacher-forced pass over the correct answer, through the same family, codec and
grammar, with cross-entropy over the legal tokens of each decision (see `targets`). So all kinds of model take one path,
and what is trained is exactly what is decoded. Every word is trained on, O included. A model with a draft head also
has the head's loss. The head itself is not trained; the encoder below it is, so that drafts stay correct.

Lessons of three other kinds are mixed in against forgetting. Their targets are the base model's own probabilities, not
only its best answer (learning without forgetting: Li and Hoiem 2016, arXiv:1606.09282):

- the training half of the guard set;
- variants of its sentences, with entities swapped among them;
- texts of the project, asked with label sets of the guard set. These must not be the project's own labels in disguise:
  the base model's answers may not contradict the annotators.

Only a part of the trained change is kept. That loses little of what is new and keeps much of what the base model can do
(weights between those of two models: Wortsman et al. 2022, arXiv:2109.01903). It is the largest part with which the
guard set is not forgotten.
"""

import logging
import math
import random
import time
from collections.abc import Callable, Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from backend.engine.adapter_files import WEIGHTS_FILE
from backend.engine.adapters import Adapters, AdapterSettings
from backend.engine.checkpoint import LoadedModel
from backend.engine.tagger import Tagger
from backend.errors import LabelsIndistinguishable, NotEnoughExamples, TrainingFailed
from backend.learning import gate
from backend.learning.annotations import AnnotatedText
from backend.learning.examples import Example, LabelledText, Snapshot
from backend.learning.gate import Answers, Verdict
from backend.learning.guard import halves, read_guard
from backend.learning.lessons import (
    Lesson,
    Mentions,
    folds,
    lessons_of,
    random_batches,
    split,
    swapped,
)
from backend.learning.progress import Progress
from backend.learning.registry import ParentVersion, sha256_of
from backend.learning.targets import EncodedLesson, encode, losses, soften
from backend.ner.bio import mentions_by_label
from backend.ner.spans import Passage, Question, Span

log = logging.getLogger(__name__)

# With fewer held-out tasks with spans, chance decides (with nine, a version was rejected that had gained 0.2). Then the
# version is cross-validated.
MIN_HELD_OUT = 12

_REPORT_EVERY_LESSONS = 32  # while soft targets are computed
# names of adapters
_TRAINED = "in training"
_PARENT = "parent"


@dataclass(frozen=True, slots=True)
class TrainingSettings:
    """How a version is trained; the measurements that chose the numbers are in docs/lab-notes.md.

    A share is a number of lessons per lesson of the project. An epoch sees every lesson of the project once.
    """

    rank: int = 16
    alpha: int = 32
    rate: float = 1.2e-3  # of Adam at its peak; it rises over the first tenth of the steps, then falls to zero
    epochs: int = 14
    min_steps: int = 60
    max_steps: int = 600
    batch_lessons: int = 8
    batch_tokens: int = 8192  # source and target, padded
    clip_norm: float = 1.0
    strengths: tuple[float, ...] = (
        0.9,
        0.8,
        0.7,
        0.6,
    )  # parts of the change; the first safe one is kept
    corrected_weight: float = 2.0  # of an example whose prediction the annotator corrected
    draft_weight: float = 1.0  # of the draft head's loss
    swap_share: float = 0.4  # of the entities of a lesson: replaced by others of the project with the same label
    guard_share: float = 0.5  # of guard sentences
    replay_share: float = 0.75  # of varied guard sentences and of texts with other labels
    replay_weight: float = 4.0  # of a lesson of either kind
    min_guard: int = 32  # lessons per epoch: even a small project must not forget the rest
    min_replay: int = 44
    max_replay_texts: int = 200
    folds: int = 3
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What `fine_tune` knows about the adapter that it wrote."""

    verdict: Verdict
    parent: str  # the version that it continues from; the base version if it starts from the base
    examples: tuple[tuple[int, int], ...]  # (task id, annotation id) trained on
    held_out: tuple[tuple[int, int], ...]
    settings: dict[str, Any]
    seconds: float
    adapter_sha256: str


def ignore_progress(_: Progress) -> None:
    """For callers that do not show it."""


def fine_tune(
    loaded: LoadedModel,
    adapters: Adapters,
    snapshot: Snapshot,
    folder: Path,
    *,
    parent: ParentVersion | None = None,
    unlabelled: Sequence[AnnotatedText] = (),
    settings: TrainingSettings | None = None,
    guard: Sequence[LabelledText] | None = None,
    on_progress: Callable[[Progress], None] = ignore_progress,
) -> Outcome:
    """Train on a project's examples, write the adapter into `folder`, and ask the gate for a verdict.

    The adapter starts as a copy of the parent's; without a parent, as no change to the base model. `on_progress` is
    called about every second; if it raises, the training ends. However the training ends, no adapter is active after
    it. `guard` replaces the shipped guard set.
    Raises NotEnoughExamples, AdapterError if the parent cannot be read, and TrainingFailed if the loss is not finite.
    """
    began = time.monotonic()
    settings = settings or TrainingSettings()
    guard = read_guard() if guard is None else guard
    tuning = _FineTuning(loaded, adapters, snapshot, parent, settings, guard, on_progress)
    try:
        verdict = tuning.run(unlabelled, folder)
    finally:
        tuning.close()
    return Outcome(
        verdict,
        loaded.checkpoint.version if parent is None else parent.info.version,
        _ids(tuning.train),
        _ids(tuning.held_out),
        asdict(settings) | {"strength": tuning.strength},
        time.monotonic() - began,
        sha256_of(folder / WEIGHTS_FILE),
    )


def _ids(examples: Iterable[Example]) -> tuple[tuple[int, int], ...]:
    return tuple((example.task_id, example.annotation_id) for example in examples)


@dataclass(frozen=True, slots=True)
class _Replay:
    """Lessons against forgetting. Their targets are the base model's probabilities."""

    guard: tuple[EncodedLesson, ...]  # along the answers of the guard set
    base_answers: tuple[EncodedLesson, ...]  # along answers of the base model


@dataclass(frozen=True, slots=True)
class _PlannedModel:
    """A model to train: the candidate, or one for a fold. `judged` are examples that it is not trained on."""

    stage: str
    lessons: tuple[Lesson, ...]
    judged: tuple[Example, ...]
    is_candidate: bool


class _FineTuning:
    """One training, from the snapshot to the verdict."""

    def __init__(
        self,
        loaded: LoadedModel,
        adapters: Adapters,
        snapshot: Snapshot,
        parent: ParentVersion | None,
        settings: TrainingSettings,
        guard: Sequence[LabelledText],
        on_progress: Callable[[Progress], None],
    ) -> None:
        """Raises NotEnoughExamples."""
        self._loaded = loaded
        self._adapters = adapters
        self._parent = parent
        self._settings = settings
        self._on_progress = on_progress
        self._guard = halves([sentence for sentence in guard if self._can_write(sentence.labels)])
        self._rng = random.Random(settings.seed)
        self._project = snapshot.project.key
        parts = split(self._project, snapshot.examples)
        self.train, self.held_out = parts.train, parts.held_out
        seen = set() if parent is None else {task_id for task_id, _ in parent.info.examples}
        self._folds = self._choose_folds([example for example in self.train if example.task_id not in seen])
        self._judged = [*self.held_out, *(example for fold in self._folds for example in fold)]
        self._require_spans()
        self._stage = "preparing"
        self._step, self._steps = 0, 0
        self._loss: float | None = None
        self._training_s = 0.0
        self.strength = settings.strengths[0]  # the part of the trained change that is kept

    def _can_write(self, labels: tuple[str, ...]) -> bool:
        try:
            self._loaded.codec.grammar(labels)
        except LabelsIndistinguishable:
            log.info("guard sentences with the labels %s are left out: this checkpoint cannot write them", labels)
            return False
        return True

    def _choose_folds(self, unseen: Sequence[Example]) -> list[tuple[Example, ...]]:
        """Examples for cross-validation, in folds; none if there are enough held-out tasks."""
        num_held_out = sum(map(_has_spans, self.held_out))
        if num_held_out >= MIN_HELD_OUT or len(self.train) < 2:
            return []
        return folds(self._project, unseen, self._settings.folds)

    def _require_spans(self) -> None:
        if not any(map(_has_spans, self.train)):
            raise NotEnoughExamples(
                f"project {self._project!r}: none of the {len(self.train)} examples to train on has a span (another "
                f"{len(self.held_out)} are held out for judging); accept more annotations"
            )
        if not any(map(_has_spans, self._judged)):
            raise NotEnoughExamples(
                f"project {self._project!r}: there is nothing to judge a new version by, since the current version was "
                "trained on all examples with spans; accept more annotations"
            )

    def run(self, unlabelled: Sequence[AnnotatedText], folder: Path) -> Verdict:
        """Answer with the base and the parent, train, save, answer with the new version, judge."""
        self._report()
        self._adapters.activate(None)
        guard_before = self._answer_texts(self._guard.gate)
        replay = self._replay(unlabelled)
        if self._parent is not None:
            self._adapters.activate(_PARENT, self._parent.folder)
        before = self._answer_examples(self._judged)

        plans = self._plans()
        steps = [self._num_steps(plan, replay) for plan in plans]
        self._steps = sum(steps)
        after: list[tuple[tuple[Span, ...], ...]] = []
        guarded: list[Answers] = []
        for plan, num_steps in zip(plans, steps, strict=True):
            self._stage = plan.stage
            self._train(plan, num_steps, replay)
            if plan.is_candidate:
                guarded = self._keep_safe_part(guard_before)
                self._adapters.save(_TRAINED, folder)
            else:
                self._adapters.scale(_TRAINED, self.strength)
            after += self._answer_examples(plan.judged)
            self._adapters.drop(_TRAINED)
        self._stage = "judging"
        self._report()
        return gate.judge(
            [
                Answers(tuple(text.spans for text in example.texts), *spans)
                for example, *spans in zip(self._judged, before, after, strict=True)
            ],
            guarded,
            cross_validated=bool(self._folds),
        )

    def _keep_safe_part(self, guard_before: Sequence[tuple[Span, ...]]) -> list[Answers]:
        """Scale the adapter _TRAINED down as far as the guard set demands. Returns the answers there."""
        kept, guarded = 1.0, list[Answers]()
        for strength in self._settings.strengths:
            self._adapters.scale(_TRAINED, strength / kept)
            kept = self.strength = strength
            guarded = [
                Answers((sentence.spans,), (was,), (now,))
                for sentence, was, now in zip(
                    self._guard.gate, guard_before, self._answer_texts(self._guard.gate), strict=True
                )
            ]
            compared = gate.compare(guarded)
            log.info(
                "with %g of the change, span F1 on the guard set is %.3f; the base model has %.3f",
                strength,
                compared.after.f1,
                compared.before.f1,
            )
            if not gate.forgets(compared):
                break
        return guarded

    def close(self) -> None:
        """Leave the model as it was, without the adapters of this training."""
        for name in (_TRAINED, _PARENT):
            if name in self._adapters.loaded:
                self._adapters.drop(name)
        self._adapters.activate(None)

    def _plans(self) -> list[_PlannedModel]:
        """The candidate, which is judged on the held-out tasks, then a model for each fold."""
        lessons = {example.task_id: self._lessons(example) for example in self.train}
        plans = []
        for number, left_out in enumerate([(), *self._folds]):
            without = {example.task_id for example in left_out}
            chosen = tuple(row for task_id, rows in lessons.items() if task_id not in without for row in rows)
            stage = f"cross-validating {number} of {len(self._folds)}" if number else "training"
            plans.append(_PlannedModel(stage, chosen, left_out if number else self.held_out, number == 0))
        return plans

    def _lessons(self, example: Example) -> list[Lesson]:
        weight = self._settings.corrected_weight if example.corrected else 1.0
        return [
            lesson
            for text in example.texts
            for lesson in lessons_of(self._loaded.codec, text.question, text.spans, weight)
        ]

    def _replay(self, unlabelled: Sequence[AnnotatedText]) -> _Replay:
        """The answers that must stay as they are. The base model must be active."""
        codec, weight = self._loaded.codec, self._settings.replay_weight
        guard = [
            lesson for text in self._guard.training for lesson in lessons_of(codec, text.question, text.spans, weight)
        ]
        questions = [*self._questions_about_project(unlabelled), *self._questions_like_guard(guard)]
        answers = self._answer(questions)
        lessons = [
            lesson
            for question, spans in zip(questions, answers, strict=True)
            for lesson in lessons_of(codec, question, spans, weight)
        ]
        return _Replay(tuple(self._softened(guard)), tuple(self._softened(lessons)))

    def _softened(self, lessons: Sequence[Lesson]) -> list[EncodedLesson]:
        """The lessons with the active model's probabilities as their targets."""
        softened = []
        for begin in range(0, len(lessons), _REPORT_EVERY_LESSONS):
            self._report()
            encoded = [encode(self._loaded.codec, lesson) for lesson in lessons[begin : begin + _REPORT_EVERY_LESSONS]]
            softened += soften(self._loaded.family, encoded)
        return softened

    def _questions_about_project(self, unlabelled: Sequence[AnnotatedText]) -> list[Question]:
        """The project's texts, each with a label set of the guard set."""
        own = {label.casefold() for example in self.train for text in example.texts for label in text.labels}
        sets = [_replayed_labels(sentence.labels, own) for sentence in self._guard.training]
        sets = [labels for labels in sets if labels]
        passages = [
            *(text.passage for text in unlabelled),
            *(text.passage for example in self.train for text in example.texts),
        ]
        if not sets:
            return []
        passages = self._rng.sample(passages, min(len(passages), self._settings.max_replay_texts))
        return [Question(passage, self._rng.choice(sets)) for passage in passages]

    def _questions_like_guard(self, lessons: Sequence[Lesson]) -> list[Question]:
        """Variants of the guard sentences, with entities swapped among them."""
        mentions = {
            labels: mentions_by_label(lesson for lesson in lessons if lesson.labels == labels)
            for labels in {lesson.labels for lesson in lessons}
        }
        varied = [swapped(lesson, mentions[lesson.labels], 1.0, self._rng) for lesson in lessons]
        return [
            Question(Passage(" ".join(lesson.words)), lesson.labels)
            for lesson in varied
            if self._loaded.codec.fits(lesson.labels, lesson.words)
        ]

    def _num_steps(self, plan: _PlannedModel, replay: _Replay) -> int:
        steps = self._settings.epochs * len(self._epoch(plan, replay))
        return max(self._settings.min_steps, min(self._settings.max_steps, steps))

    def _epoch(self, plan: _PlannedModel, replay: _Replay) -> list[list[EncodedLesson]]:
        """Batches of one epoch: variants of all lessons of the project, and lessons against forgetting."""
        settings = self._settings
        mentions = mentions_by_label(plan.lessons)
        rows = [self._varied(lesson, mentions) for lesson in plan.lessons]
        for others, share, least in (
            (replay.guard, settings.guard_share, settings.min_guard),
            (replay.base_answers, settings.replay_share, settings.min_replay),
        ):
            # the models of the folds answer questions about the project only
            number = max(math.ceil(share * len(plan.lessons)), least if plan.is_candidate else 0)
            rows += self._rng.sample(others, min(len(others), number))
        lengths = [row.num_tokens for row in rows]
        drawn = random_batches(lengths, settings.batch_lessons, settings.batch_tokens, self._rng)
        return [[rows[index] for index in batch] for batch in drawn]

    def _varied(self, lesson: Lesson, mentions: Mentions) -> EncodedLesson:
        """A variant with other entities of the project: the model must learn their context, not only their words."""
        codec = self._loaded.codec
        varied = swapped(lesson, mentions, self._settings.swap_share, self._rng)
        return encode(codec, varied if codec.fits(varied.labels, varied.words) else lesson)

    def _train(self, plan: _PlannedModel, num_steps: int, replay: _Replay) -> None:
        """Train the adapter _TRAINED, which is active then."""
        settings = self._settings
        began = time.monotonic()
        shape = AdapterSettings(settings.rank, settings.alpha, settings.seed)
        parameters = self._adapters.new(_TRAINED, shape, None if self._parent is None else self._parent.folder)
        optimizer = torch.optim.AdamW(parameters, lr=settings.rate, betas=(0.9, 0.98), weight_decay=0.0)
        queue: list[list[EncodedLesson]] = []
        for step in range(num_steps):
            queue = queue or self._epoch(plan, replay)
            for group in optimizer.param_groups:
                group["lr"] = settings.rate * _rate(step, num_steps)
            loss = self._backward(queue.pop())
            if not math.isfinite(loss):
                raise TrainingFailed(f"the loss became {loss} in step {step + 1} of {num_steps}, rate {settings.rate}")
            nn.utils.clip_grad_norm_(parameters, settings.clip_norm)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            self._loss = loss if step == 0 or self._loss is None else 0.9 * self._loss + 0.1 * loss
            self._step += 1
            self._training_s += time.monotonic() - began
            began = time.monotonic()
            self._report()

    def _backward(self, batch: Sequence[EncodedLesson]) -> float:
        """Compute the gradients of a batch; returns its loss per decision. If that is not finite, there are none."""
        found = losses(self._loaded.family, batch)
        loss = found.decisions.detach().item()
        if math.isfinite(loss):
            total = found.decisions
            if found.draft is not None:
                total = total + self._settings.draft_weight * found.draft
            total.backward()  # type: ignore[no-untyped-call]
        return loss

    def _answer_examples(self, examples: Sequence[Example]) -> list[tuple[tuple[Span, ...], ...]]:
        texts = iter(self._answer_texts([text for example in examples for text in example.texts]))
        return [tuple(next(texts) for _ in example.texts) for example in examples]

    def _answer_texts(self, texts: Sequence[LabelledText]) -> list[tuple[Span, ...]]:
        return self._answer([text.question for text in texts])

    def _answer(self, questions: Sequence[Question]) -> list[tuple[Span, ...]]:
        done: dict[int, tuple[Span, ...]] = {}
        for finished in Tagger.of(self._loaded).answer(questions):
            done |= finished
            self._report()
        return [done[index] for index in range(len(questions))]

    def _report(self) -> None:
        eta_s = self._training_s / self._step * (self._steps - self._step) if self._step else None
        self._on_progress(Progress(self._stage, self._step, self._steps, self._loss, eta_s))


def _replayed_labels(labels: tuple[str, ...], own: AbstractSet[str]) -> tuple[str, ...]:
    """The labels of a guard label set that may be asked about a project with the labels `own`, casefolded.

    A set with at most half of the project's labels asks another question, so its answer may differ. A set with more of
    them asks the project's own question, which annotators answer: then the shared labels are left out.
    """
    shared = {label for label in labels if label.casefold() in own}
    return labels if 2 * len(shared) <= len(own) else tuple(label for label in labels if label not in shared)


def _has_spans(example: Example) -> bool:
    return any(text.spans for text in example.texts)


def _rate(step: int, steps: int) -> float:
    """The part of the peak rate at a step, counted from 0: it rises over the first tenth, then falls to zero."""
    warmup = max(1, steps // 10)
    return min((step + 1) / warmup, (steps - step) / max(1, steps - warmup))
