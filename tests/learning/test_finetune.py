"""Training on tiny random models: it learns, it is repeatable, it leaves the base alone, and it judges itself."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from backend.engine.adapter_files import CONFIG_FILE, WEIGHTS_FILE
from backend.engine.adapters import Adapters
from backend.engine.checkpoint import Checkpoint, LoadedModel
from backend.engine.codec import Codec
from backend.engine.family import Family
from backend.engine.tagger import Tagger
from backend.errors import AdapterError, NotEnoughExamples, TrainingFailed
from backend.learning import gate
from backend.learning.annotations import AnnotatedText, ControlLabels, Project
from backend.learning.examples import Example, LabelledText, Remapping, Snapshot
from backend.learning.finetune import MIN_HELD_OUT, Outcome, TrainingSettings, _replayed_labels, fine_tune
from backend.learning.lessons import is_held_out, lessons_of
from backend.learning.progress import Progress
from backend.learning.registry import ParentVersion, VersionInfo
from backend.learning.targets import encode, losses, soften
from backend.ner.labels import PromptLabels
from backend.ner.prompt import PromptFormat
from backend.ner.spans import Passage, Question, Span
from tests.support import tiny

LABELS = ("person", "city")
KEY = "2.1700000000"
SETTINGS = TrainingSettings(
    rank=4, alpha=8, rate=3e-2, epochs=3, min_steps=12, max_steps=12, batch_lessons=4, replay_weight=1.0
)
MAKERS: dict[str, Callable[[], tuple[Family, Codec]]] = {
    **tiny.FAMILIES,
    "bert with a draft head": tiny.bert_with_draft_head,
}
# `make check` trains the bundled checkpoint's kind alone
EVERY_FAMILY = [pytest.param(name, marks=[] if name.startswith("bert") else pytest.mark.slow) for name in MAKERS]


def text(marked: str) -> LabelledText:
    """`Marie|person worked in Paris|city .`: a word and its label."""
    words, spans, start = [], [], 0
    for entry in marked.split(" "):
        word, _, label = entry.partition("|")
        if label:
            spans.append(Span(start, start + len(word), label, 1.0))
        words.append(word)
        start += len(word) + 1
    return LabelledText(Passage(" ".join(words)), LABELS, tuple(spans))


PATTERNS = (
    "Marie|person worked in Paris|city .",
    "Curie|person did a musical in Paris|city !",
    "the University of Paris|city",
    "George|person , Marie|person and Curie|person worked",
    "a work of art",
)
GUARD = [
    LabelledText(Passage(f"The organization and location {number} : Clooney"), ("organization", "person"), ())
    for number in range(8)
]


def loaded(name: str) -> LoadedModel:
    family, codec = MAKERS[name]()
    kind = "causal" if name == "llama" else "seq2seq"
    checkpoint = Checkpoint("tiny", Path("nowhere"), kind, PromptFormat(), codec.limits, "0123456789abcdef")  # type: ignore[arg-type]
    return LoadedModel(checkpoint, family, codec, torch.device("cpu"), torch.float32)


def snapshot(examples: Iterable[Example], key: str = KEY) -> Snapshot:
    project = Project(key, 2, "", "", (ControlLabels("label", PromptLabels.of((label, label) for label in LABELS)),))
    return Snapshot(project, tuple(examples), Remapping(0, 0, 0, 0, 0, ()), 0)


def example(task_id: int, *texts: LabelledText, corrected: bool = False) -> Example:
    return Example(task_id, 100 + task_id, corrected, texts)


def project(number: int = 20) -> Snapshot:
    return snapshot(example(task_id, text(PATTERNS[task_id % len(PATTERNS)])) for task_id in range(number))


def judged_ids(number: int) -> list[int]:
    """Task ids of which `number` are trained on, and enough others are held out: no cross-validation is needed."""
    held_out = [task_id for task_id in range(500) if is_held_out(KEY, task_id)]
    return [task_id for task_id in range(500) if not is_held_out(KEY, task_id)][:number] + held_out[: 2 * MIN_HELD_OUT]


def project_without_folds(number: int = 20) -> Snapshot:
    """As `project`, but only one model has to be trained."""
    return snapshot(
        example(task_id, text(PATTERNS[index % len(PATTERNS)])) for index, task_id in enumerate(judged_ids(number))
    )


def run(
    model: LoadedModel,
    of: Snapshot,
    folder: Path,
    *,
    parent: ParentVersion | None = None,
    settings: TrainingSettings = SETTINGS,
    unlabelled: Sequence[AnnotatedText] = (),
    reports: list[Progress] | None = None,
    adapters: Adapters | None = None,
    guard: Sequence[LabelledText] = GUARD,
) -> Outcome:
    folder.mkdir(parents=True, exist_ok=True)
    reports = [] if reports is None else reports
    adapters = Adapters(model.family) if adapters is None else adapters
    return fine_tune(
        model,
        adapters,
        of,
        folder,
        parent=parent,
        unlabelled=unlabelled,
        settings=settings,
        guard=guard,
        on_progress=reports.append,
    )


def answers(model: LoadedModel, of: Snapshot) -> dict[int, tuple[Span, ...]]:
    questions = [labelled.question for example in of.examples for labelled in example.texts]
    return {index: spans for some in Tagger.of(model).answer(questions) for index, spans in some.items()}


def version(outcome: Outcome) -> VersionInfo:
    return VersionInfo("tiny-p2-1", KEY, "tiny-0123456789", outcome.parent, "", "published", "", outcome.examples)


def loss_on(model: LoadedModel, of: Snapshot) -> float:
    """Per decision, of the right answers."""
    lessons = [
        encode(model.codec, lesson)
        for example in of.examples
        for labelled in example.texts
        for lesson in lessons_of(model.codec, labelled.question, labelled.spans)
    ]
    with torch.no_grad():
        return losses(model.family, lessons).decisions.item()


@pytest.mark.parametrize("name", EVERY_FAMILY)
def test_it_learns_and_leaves_the_base_alone(name: str, tmp_path: Path) -> None:
    model, reports = loaded(name), list[Progress]()
    before, loss_before = answers(model, project_without_folds()), loss_on(model, project_without_folds())
    adapters = Adapters(model.family)
    settings = replace(SETTINGS, min_steps=40, max_steps=40)
    outcome = run(model, project_without_folds(), tmp_path, settings=settings, reports=reports, adapters=adapters)
    assert {file.name for file in tmp_path.iterdir()} == {WEIGHTS_FILE, CONFIG_FILE}
    assert all(report.loss is not None and report.loss > 0 for report in reports if report.step)
    assert outcome.parent == "tiny-0123456789"
    assert (adapters.active, adapters.loaded) == (None, ())
    assert answers(model, project_without_folds()) == before
    assert loss_on(model, project_without_folds()) == loss_before

    serving = loaded(name)
    Adapters(serving.family).activate("trained", tmp_path)
    assert loss_on(serving, project_without_folds()) < 0.97 * loss_before


@pytest.mark.parametrize("name", EVERY_FAMILY)
def test_the_same_examples_make_the_same_adapter(name: str, tmp_path: Path) -> None:
    first, second = (run(loaded(name), project_without_folds(), tmp_path / folder) for folder in ("one", "two"))
    assert first.adapter_sha256 == second.adapter_sha256
    assert (tmp_path / "one" / WEIGHTS_FILE).read_bytes() == (tmp_path / "two" / WEIGHTS_FILE).read_bytes()
    assert first.verdict == second.verdict


def test_the_draft_head_is_left_alone(tmp_path: Path) -> None:
    model = loaded("bert with a draft head")
    head = model.family._draft_head  # type: ignore[attr-defined]
    before = {name: tensor.clone() for name, tensor in head.state_dict().items()}
    run(model, project_without_folds(), tmp_path)
    assert all(torch.equal(tensor, before[name]) for name, tensor in head.state_dict().items())


def test_held_out_tasks_are_told_apart_and_never_taught(tmp_path: Path) -> None:
    many = project(100)
    outcome = run(loaded("bert"), many, tmp_path / "with")
    assert {task_id for task_id, _ in outcome.held_out} == {n for n in range(100) if is_held_out(KEY, n)}
    assert len(outcome.examples) + len(outcome.held_out) == 100
    assert not outcome.verdict.cross_validated
    assert outcome.verdict.tasks.num == len(outcome.held_out)
    other = snapshot(
        example(e.task_id, text("Clooney|city worked")) if is_held_out(KEY, e.task_id) else e for e in many.examples
    )
    assert run(loaded("bert"), other, tmp_path / "without").adapter_sha256 == outcome.adapter_sha256


def test_few_examples_are_cross_validated(tmp_path: Path) -> None:
    few, reports = project(12), list[Progress]()
    outcome = run(loaded("bert"), few, tmp_path, reports=reports)
    assert len(outcome.held_out) < MIN_HELD_OUT
    assert outcome.verdict.cross_validated
    assert outcome.verdict.tasks.num == 12
    assert list(dict.fromkeys(report.stage for report in reports)) == [
        "preparing",
        "training",
        "cross-validating 1 of 3",
        "cross-validating 2 of 3",
        "cross-validating 3 of 3",
        "judging",
    ]
    assert (reports[-1].step, reports[-1].steps, reports[-1].eta_s) == (48, 48, 0.0)
    steps = [report.step for report in reports]
    assert steps == sorted(steps)


@pytest.mark.slow  # trains two versions
def test_a_child_goes_on_from_its_parent(tmp_path: Path) -> None:
    first = run(loaded("bert"), project(), tmp_path / "parent")
    still = TrainingSettings(rank=2, rate=0.0, strengths=(1.0,), min_steps=2, max_steps=2)
    child = run(
        loaded("bert"),
        project(30),
        tmp_path / "child",
        parent=ParentVersion(version(first), tmp_path / "parent"),
        settings=still,
    )
    assert child.parent == "tiny-p2-1"
    assert child.adapter_sha256 == first.adapter_sha256
    assert child.verdict.tasks.before == child.verdict.tasks.after
    seen = {task_id for task_id, _ in first.examples}
    assert child.verdict.tasks.num == 30 - len(seen), "judged on what the parent has not seen"


@pytest.mark.slow  # trains twice and answers the guard set many times
def test_no_more_of_the_change_is_kept_than_the_guard_set_allows(tmp_path: Path) -> None:
    asked = [replace(text(pattern), labels=("organization", "person")) for pattern in PATTERNS * 4]
    said = answers(loaded("bert"), snapshot(map(example, range(20), asked)))
    guard = [replace(one, spans=said[index]) for index, one in enumerate(asked)]
    assert sum(map(len, said.values())) > 10
    settings = replace(
        SETTINGS, min_steps=40, max_steps=40, guard_share=0.0, replay_share=0.0, min_guard=0, min_replay=0
    )
    kept = {}
    for strengths in ((1.0,), (1.0, 0.5, 1e-6)):
        outcome = run(loaded("bert"), project(), tmp_path, settings=replace(settings, strengths=strengths), guard=guard)
        kept[outcome.settings["strength"]] = outcome.verdict.guard
    assert gate.forgets(kept[1.0])
    assert not gate.forgets(kept[1e-6])
    assert kept[1e-6].after == kept[1e-6].before


# Two halves that contradict each other: what is learnt of one is lost of the other.
LIKED = text("Marie worked in Paris|city")
CONTRADICTING = text("Marie worked in Paris|person")
ONE_MODEL = replace(SETTINGS, swap_share=0.0, guard_share=0.0, min_guard=0, replay_share=0.0, min_replay=0)


def trained(of: Snapshot, folder: Path, settings: TrainingSettings, **given: Any) -> LoadedModel:
    """A model with the adapter that was trained on these examples."""
    run(loaded("bert"), of, folder, settings=replace(settings, strengths=(1.0,)), **given)
    model = loaded("bert")
    Adapters(model.family).activate("trained", folder)
    return model


@pytest.mark.slow  # trains twice and answers the guard set many times
def test_corrections_weigh_more(tmp_path: Path) -> None:
    """The heavier the corrected examples, the better they are learnt, and the worse those that contradict them."""
    settings = replace(ONE_MODEL, min_steps=30, max_steps=30, batch_lessons=16)
    ids = judged_ids(16)
    of = snapshot(
        example(task_id, LIKED if index % 2 else CONTRADICTING, corrected=index % 2 == 1)
        for index, task_id in enumerate(ids)
    )
    corrected, others = snapshot([example(1, LIKED)]), snapshot([example(1, CONTRADICTING)])
    preferences = []  # for the corrected answer, in nats per decision
    for weight in (0.0, 1.0, 4.0):
        model = trained(of, tmp_path, replace(settings, corrected_weight=weight))
        preferences.append(loss_on(model, others) - loss_on(model, corrected))
    assert preferences == sorted(preferences)
    assert preferences[0] < 0 < preferences[-1], "with weight 0 only what contradicts it is learnt"


@pytest.mark.slow  # trains two versions
def test_other_texts_of_the_project_are_replayed(tmp_path: Path) -> None:
    """What the base model says of them changes less if they are replayed."""
    other = AnnotatedText("label", Passage("a creative work of George in 2024"), LABELS, ())
    settings = replace(ONE_MODEL, min_steps=30, max_steps=30, min_replay=60, replay_weight=4.0)
    question = Question(other.passage, ("organization", "person"))
    base = loaded("bert")
    spans = next(done[0] for done in Tagger.of(base).answer([question]) if done)
    said = soften(base.family, [encode(base.codec, lesson) for lesson in lessons_of(base.codec, question, spans)])
    drift = []
    for index, unlabelled in enumerate([(), (other,) * 100]):
        model = trained(project_without_folds(), tmp_path / str(index), settings, unlabelled=unlabelled)
        with torch.no_grad():
            drift.append(losses(model.family, said).decisions.item())
    assert drift[1] < drift[0]


@pytest.mark.parametrize(
    ("own", "asked"),
    [
        ({"protein", "gene", "virus"}, ("Person", "place", "firm")),
        ({"person", "protein", "gene", "virus"}, ("Person", "place", "firm")),
        ({"person", "place", "gene"}, ("firm",)),
        ({"person", "place", "firm"}, ()),
        ({"person"}, ("place", "firm")),
    ],
)
def test_what_the_base_says_may_not_contradict_the_annotators(own: set[str], asked: tuple[str, ...]) -> None:
    assert _replayed_labels(("Person", "place", "firm"), own) == asked


@pytest.mark.parametrize("stage", ["preparing", "training", "cross-validating 2 of 3"])
def test_the_callback_can_end_it(stage: str, tmp_path: Path) -> None:
    class Ended(Exception):
        pass

    def end(progress: Progress) -> None:
        if progress.stage == stage and (progress.step or stage == "preparing"):
            raise Ended

    model = loaded("bert")
    adapters = Adapters(model.family)
    before = answers(model, project())
    with pytest.raises(Ended):
        fine_tune(model, adapters, project(12), tmp_path, settings=SETTINGS, on_progress=end, guard=GUARD)
    assert adapters.active is None
    assert adapters.loaded == ()
    assert answers(model, project()) == before


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        pytest.param([], "none of the 0 examples to train on has a span", id="none"),
        pytest.param([example(n, text("a work of art")) for n in range(30)], "has a span", id="no spans"),
        pytest.param(
            [example(next(n for n in range(99) if not is_held_out(KEY, n)), text(PATTERNS[0]))],
            "nothing to judge",
            id="one",
        ),
    ],
)
def test_too_few_examples(examples: list[Example], message: str, tmp_path: Path) -> None:
    with pytest.raises(NotEnoughExamples, match=message):
        run(loaded("bert"), snapshot(examples), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_nothing_new_since_the_version_that_is_served(tmp_path: Path) -> None:
    known = snapshot(e for e in project(12).examples if not is_held_out(KEY, e.task_id))
    ids = tuple((e.task_id, e.annotation_id) for e in known.examples)
    current = VersionInfo("tiny-p2-1", KEY, "tiny-0123456789", "", "", "published", "", ids)
    with pytest.raises(NotEnoughExamples, match="nothing to judge"):
        run(loaded("bert"), known, tmp_path, parent=ParentVersion(current, tmp_path))


def test_a_parent_that_cannot_be_read(tmp_path: Path) -> None:
    unseen = VersionInfo("tiny-p2-1", KEY, "tiny-0123456789", "", "", "published", "")
    with pytest.raises(AdapterError, match="cannot read the adapter"):
        run(loaded("bert"), project(), tmp_path / "new", parent=ParentVersion(unseen, tmp_path / "none"))


def test_a_loss_that_is_no_number_ends_it(tmp_path: Path) -> None:
    wild = TrainingSettings(rank=4, rate=1e30, min_steps=20, max_steps=20)
    with pytest.raises(TrainingFailed, match="the loss became"):
        run(loaded("bert"), project(), tmp_path, settings=wild)


def test_guard_sentences_that_a_tokenizer_cannot_write_are_left_out(tmp_path: Path) -> None:
    odd = LabelledText(Passage("x"), ("中", "文"), ())
    model = loaded("bert")
    outcome = run(model, project(), tmp_path, guard=[odd])
    assert outcome.verdict.guard.num == 0
