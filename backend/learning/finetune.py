"""Training a project's next version: accepted annotations -> an adapter, and what the gate says of it.

The loss is computed by the code that serves: a teacher-forced pass over the right answer, through the same family,
codec and grammar, with cross-entropy over the legal tokens of each decision (see `teacher`). So it is one path for
every kind of model, and what is learnt is exactly what is decoded. Every word is trained on, O included. A model that
has a draft head also learns the head's loss; the head itself is left alone, the encoder below it learns, so that drafts
go on being right.

Against forgetting, lessons of three other kinds are mixed in. All are told the base model's own probabilities and not
only its best answer (learning without forgetting: Li and Hoiem 2016, arXiv:1606.09282):

- the training half of the guard set;
- its sentences with each other's entities;
- texts of the project, asked with label sets of the guard set, which must not be the project's own in disguise: what
  the base model says may not contradict the annotators.

And of the change that was trained only a part is kept, which loses less of what is new than it keeps of what was there
(weights between those of two models: Wortsman et al. 2022, arXiv:2109.01903): the largest part with which the guard set
is not forgotten.
"""

import hashlib
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

from backend.engine.adapters import WEIGHTS_FILE, Adapters, AdapterSettings
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
    batches,
    folds,
    lessons_of,
    split,
    swapped,
)
from backend.learning.registry import VersionInfo
from backend.learning.targets import Taught, encode, losses, soften
from backend.ner.bio import mentions_by_label
from backend.ner.spans import Passage, Question, Span

log = logging.getLogger(__name__)

# With fewer held-out tasks that have spans, luck decides (nine refused a version that had gained 0.2): the gate
# cross-validates.
MIN_HELD_OUT = 12

_BATCH_WINDOWS = 32
_TRAINED = "in training"
_CURRENT = "served now"


@dataclass(frozen=True, slots=True)
class TrainingSettings:
    """How a version is trained; the measurements that chose the numbers are in docs/decisions.md.

    A share counts lessons beside one of the project's. An epoch sees every lesson of the project once.
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
    strengths: tuple[float, ...] = (0.9, 0.8, 0.7, 0.6)  # parts of the trained change: the first that is safe is kept
    corrected_weight: float = 2.0  # of an example in which the annotator changed the prediction
    draft_weight: float = 1.0  # of the draft head's loss
    swap_share: float = 0.4  # of the entities of a lesson, replaced by others of the project with their label
    guard_share: float = 0.5  # of guard sentences
    replay_share: float = 0.75  # of varied guard sentences and of texts with other labels
    replay_weight: float = 4.0  # of a lesson of either kind
    min_guard: int = 32  # lessons an epoch, so that a small project too keeps in mind what there was
    min_replay: int = 44
    max_replay_texts: int = 200
    folds: int = 3
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a training stands. Steps count over the candidate and, where it is cross-validated, its folds."""

    stage: str  # "preparing", "training", "cross-validating 1 of 3", "judging"
    step: int
    steps: int
    loss: float | None  # per decision, an average over the last steps
    eta_s: float | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What `train` leaves: an adapter in the folder, and what there is to know of it."""

    verdict: Verdict
    parent: str  # a version's name, the base's where it began from nothing
    examples: tuple[tuple[int, int], ...]  # (task id, annotation id) trained on
    held_out: tuple[tuple[int, int], ...]
    settings: dict[str, Any]
    seconds: float
    adapter_sha256: str


def train(
    loaded: LoadedModel,
    adapters: Adapters,
    snapshot: Snapshot,
    unlabelled: Sequence[AnnotatedText],
    parent: Path | None,
    current: VersionInfo | None,
    settings: TrainingSettings,
    on_progress: Callable[[Progress], None],
    folder: Path,
    guard: Sequence[LabelledText] | None = None,
) -> Outcome:
    """Train on a project's examples, write the adapter into `folder`, ask the gate.

    The adapter begins as the one in `parent`, the folder of the version `current` that is served now; both None: that
    is the base model. `on_progress` is called every second or so; an exception of it ends the training. Whatever ends
    it, no adapter is in force then. `guard` stands for the shipped guard set.
    Raises NotEnoughExamples, AdapterError for a parent that cannot be read, and TrainingFailed for a loss that is none.
    """
    begun = time.monotonic()
    course = _Course(
        loaded, adapters, snapshot, current, settings, read_guard() if guard is None else guard, on_progress
    )
    try:
        verdict = course.run(parent, unlabelled, folder)
    finally:
        course.close()
    return Outcome(
        verdict,
        loaded.checkpoint.version if current is None else current.version,
        _ids(course.train),
        _ids(course.held_out),
        asdict(settings) | {"strength": course.strength},
        time.monotonic() - begun,
        hashlib.sha256((folder / WEIGHTS_FILE).read_bytes()).hexdigest(),
    )


def _ids(examples: Iterable[Example]) -> tuple[tuple[int, int], ...]:
    return tuple((example.task_id, example.annotation_id) for example in examples)


@dataclass(frozen=True, slots=True)
class _Replay:
    """Lessons against forgetting, with the base model's probabilities in their targets."""

    guard: tuple[Taught, ...]
    asked: tuple[Taught, ...]


@dataclass(frozen=True, slots=True)
class _Plan:
    """A model to be trained. `judged` are examples that it is not trained on."""

    stage: str
    lessons: tuple[Lesson, ...]
    judged: tuple[Example, ...]
    is_candidate: bool


class _Course:
    """One training, from the snapshot to the verdict."""

    def __init__(
        self,
        loaded: LoadedModel,
        adapters: Adapters,
        snapshot: Snapshot,
        current: VersionInfo | None,
        settings: TrainingSettings,
        guard: Sequence[LabelledText],
        on_progress: Callable[[Progress], None],
    ) -> None:
        """Raises NotEnoughExamples."""
        self._loaded = loaded
        self._adapters = adapters
        self._settings = settings
        self._on_progress = on_progress
        self._guard = halves([sentence for sentence in guard if self._can_write(sentence.labels)])
        self._rng = random.Random(settings.seed)
        self._project = snapshot.project.key
        parts = split(self._project, snapshot.examples)
        self.train, self.held_out = parts.train, parts.held_out
        seen = set() if current is None else {task_id for task_id, _ in current.examples}
        self._folds = self._choose_folds([example for example in self.train if example.task_id not in seen])
        self._judged = [*self.held_out, *(example for fold in self._folds for example in fold)]
        self._require_spans()
        self._stage = "preparing"
        self._step, self._steps = 0, 0
        self._loss: float | None = None
        self._training_s = 0.0
        self.strength = settings.strengths[0]  # of the change, what is kept

    def _can_write(self, labels: tuple[str, ...]) -> bool:
        try:
            self._loaded.codec.grammar(labels)
        except LabelsIndistinguishable:
            log.info("guard sentences with the labels %s are left out: this checkpoint cannot write them", labels)
            return False
        return True

    def _choose_folds(self, unseen: Sequence[Example]) -> list[tuple[Example, ...]]:
        """Examples to be judged by models that are trained without them; none where the held-out tasks are enough."""
        num_held_out = sum(map(_has_spans, self.held_out))
        if num_held_out >= MIN_HELD_OUT or len(self.train) < 2:
            return []
        return folds(self._project, unseen, self._settings.folds)

    def _require_spans(self) -> None:
        if not any(map(_has_spans, self.train)):
            raise NotEnoughExamples(
                f"project {self._project!r}: none of the {len(self.train)} examples to train on has a span (another "
                f"{len(self.held_out)} are held out to judge by); accept more annotations"
            )
        if not any(map(_has_spans, self._judged)):
            raise NotEnoughExamples(
                f"project {self._project!r}: there is nothing to judge a new version by, for the one served now was "
                "trained on all examples with spans but those; accept more annotations"
            )

    def run(self, parent: Path | None, unlabelled: Sequence[AnnotatedText], folder: Path) -> Verdict:
        """Answer with the versions that are, train, save, answer with the new one, judge."""
        self._report()
        self._adapters.activate(None)
        guard_before = self._answer_texts(self._guard.gate)
        replay = self._replay(unlabelled)
        if parent is not None:
            self._adapters.activate(_CURRENT, parent)
        before = self._answer(self._judged)

        plans = self._plans()
        steps = [self._num_steps(plan, replay) for plan in plans]
        self._steps = sum(steps)
        after: list[tuple[tuple[Span, ...], ...]] = []
        guarded: list[Answers] = []
        for plan, num_steps in zip(plans, steps, strict=True):
            self._stage = plan.stage
            self._fit(plan, num_steps, replay, parent)
            if plan.is_candidate:
                guarded = self._weaken(guard_before)
                self._adapters.save(_TRAINED, folder)
            else:
                self._adapters.scale(_TRAINED, self.strength)
            after += self._answer(plan.judged)
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

    def _weaken(self, guard_before: Sequence[tuple[Span, ...]]) -> list[Answers]:
        """Keep as much of the adapter _TRAINED as the guard set allows; the result is what is answered there then."""
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
                "with %g of the change the guard set's span F1 is %.3f, the base model's %.3f",
                strength,
                compared.after.f1,
                compared.before.f1,
            )
            if not gate.forgets(compared):
                break
        return guarded

    def close(self) -> None:
        """Leave the model as it was, its adapters forgotten."""
        for name in (_TRAINED, _CURRENT):
            if name in self._adapters.loaded:
                self._adapters.drop(name)
        self._adapters.activate(None)

    def _plans(self) -> list[_Plan]:
        """The candidate, judged on the held-out tasks, then a model for each fold."""
        lessons = {example.task_id: self._lessons(example) for example in self.train}
        plans = []
        for number, left_out in enumerate([(), *self._folds]):
            without = {example.task_id for example in left_out}
            chosen = tuple(row for task_id, rows in lessons.items() if task_id not in without for row in rows)
            stage = f"cross-validating {number} of {len(self._folds)}" if number else "training"
            plans.append(_Plan(stage, chosen, left_out if number else self.held_out, number == 0))
        return plans

    def _lessons(self, example: Example) -> list[Lesson]:
        weight = self._settings.corrected_weight if example.corrected else 1.0
        return [
            lesson
            for text in example.texts
            for lesson in lessons_of(self._loaded.codec, text.question, text.spans, weight)
        ]

    def _replay(self, unlabelled: Sequence[AnnotatedText]) -> _Replay:
        """What the base model, which is in force, is to go on saying."""
        codec, weight = self._loaded.codec, self._settings.replay_weight
        guard = [
            lesson for text in self._guard.training for lesson in lessons_of(codec, text.question, text.spans, weight)
        ]
        asked = [*self._asked_of_project(unlabelled), *self._asked_of_guard(guard)]
        said = self._answer_all(asked)
        lessons = [
            lesson
            for question, spans in zip(asked, said, strict=True)
            for lesson in lessons_of(codec, question, spans, weight)
        ]
        return _Replay(
            tuple(self._softened(guard)),
            tuple(self._softened(lessons)),
        )

    def _softened(self, lessons: Sequence[Lesson]) -> list[Taught]:
        softened = []
        for begin in range(0, len(lessons), _BATCH_WINDOWS):
            self._report()
            taught = [encode(self._loaded.codec, lesson) for lesson in lessons[begin : begin + _BATCH_WINDOWS]]
            softened += soften(self._loaded.family, taught)
        return softened

    def _asked_of_project(self, unlabelled: Sequence[AnnotatedText]) -> list[Question]:
        """The project's texts, each with one of the guard set's label sets."""
        own = {label.casefold() for example in self.train for text in example.texts for label in text.labels}
        sets = [_other_labels(sentence.labels, own) for sentence in self._guard.training]
        sets = [labels for labels in sets if labels]
        passages = [
            *(text.passage for text in unlabelled),
            *(text.passage for example in self.train for text in example.texts),
        ]
        if not sets:
            return []
        passages = self._rng.sample(passages, min(len(passages), self._settings.max_replay_texts))
        return [Question(passage, self._rng.choice(sets)) for passage in passages]

    def _asked_of_guard(self, lessons: Sequence[Lesson]) -> list[Question]:
        """The guard sentences with each other's entities: like them, but there are more."""
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

    def _num_steps(self, plan: _Plan, replay: _Replay) -> int:
        steps = self._settings.epochs * len(self._epoch(plan, replay))
        return max(self._settings.min_steps, min(self._settings.max_steps, steps))

    def _epoch(self, plan: _Plan, replay: _Replay) -> list[list[Taught]]:
        """Batches of all lessons of the project, varied, with their share of the others."""
        settings = self._settings
        mentions = mentions_by_label(plan.lessons)
        rows = [self._varied(lesson, mentions) for lesson in plan.lessons]
        for others, share, least in (
            (replay.guard, settings.guard_share, settings.min_guard),
            (replay.asked, settings.replay_share, settings.min_replay),
        ):
            # the models of the folds are asked about the project alone
            number = max(math.ceil(share * len(plan.lessons)), least if plan.is_candidate else 0)
            rows += self._rng.sample(others, min(len(others), number))
        sized = [(row.num_tokens, row) for row in rows]
        return batches(sized, settings.batch_lessons, settings.batch_tokens, self._rng)

    def _varied(self, lesson: Lesson, mentions: Mentions) -> Taught:
        """With other entities of the project: the words around tell their label too, not only they themselves."""
        codec = self._loaded.codec
        varied = swapped(lesson, mentions, self._settings.swap_share, self._rng)
        return encode(codec, varied if codec.fits(varied.labels, varied.words) else lesson)

    def _fit(self, plan: _Plan, num_steps: int, replay: _Replay, parent: Path | None) -> None:
        """Make the adapter _TRAINED, which is in force then."""
        settings = self._settings
        begun = time.monotonic()
        shape = AdapterSettings(settings.rank, settings.alpha, settings.seed)
        parameters = self._adapters.new(_TRAINED, shape, parent)
        optimizer = torch.optim.AdamW(parameters, lr=settings.rate, betas=(0.9, 0.98), weight_decay=0.0)
        queue: list[list[Taught]] = []
        for step in range(num_steps):
            queue = queue or self._epoch(plan, replay)
            for group in optimizer.param_groups:
                group["lr"] = settings.rate * _rate(step, num_steps)
            found = losses(self._loaded.family, queue.pop())
            loss = found.decisions.detach().item()
            if not math.isfinite(loss):
                raise TrainingFailed(f"the loss became {loss} in step {step + 1} of {num_steps}, rate {settings.rate}")
            total = found.decisions if found.draft is None else found.decisions + settings.draft_weight * found.draft
            total.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(parameters, settings.clip_norm)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            self._loss = loss if step == 0 or self._loss is None else 0.9 * self._loss + 0.1 * loss
            self._step += 1
            self._training_s += time.monotonic() - begun
            begun = time.monotonic()
            self._report()

    def _answer(self, examples: Sequence[Example]) -> list[tuple[tuple[Span, ...], ...]]:
        texts = iter(self._answer_texts([text for example in examples for text in example.texts]))
        return [tuple(next(texts) for _ in example.texts) for example in examples]

    def _answer_texts(self, texts: Sequence[LabelledText]) -> list[tuple[Span, ...]]:
        return self._answer_all([text.question for text in texts])

    def _answer_all(self, asked: Sequence[Question]) -> list[tuple[Span, ...]]:
        done: dict[int, tuple[Span, ...]] = {}
        for some in Tagger.of(self._loaded).answer(asked):
            done |= some
            self._report()
        return [done[index] for index in range(len(asked))]

    def _report(self) -> None:
        eta_s = self._training_s / self._step * (self._steps - self._step) if self._step else None
        self._on_progress(Progress(self._stage, self._step, self._steps, self._loss, eta_s))


def _other_labels(labels: tuple[str, ...], own: AbstractSet[str]) -> tuple[str, ...]:
    """A guard label set as a project with the labels `own` is asked with it.

    With few of the project's labels it is another question, which may have another answer. With most of them it is the
    project's own question, that annotators answer: then their labels are left out.
    """
    shared = {label for label in labels if label.casefold() in own}
    return labels if 2 * len(shared) <= len(own) else tuple(label for label in labels if label not in shared)


def _has_spans(example: Example) -> bool:
    return any(text.spans for text in example.texts)


def _rate(step: int, steps: int) -> float:
    """The part of the peak rate at a step counted from 0: up over the first tenth, then down to zero."""
    warmup = max(1, steps // 10)
    return min((step + 1) / warmup, (steps - step) / max(1, steps - warmup))
