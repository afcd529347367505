"""What annotators accept in a real Label Studio makes the model better on their project, and on theirs alone."""

import random
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.e2e.conftest import ready_backend
from tests.support import labelled_sentences as labelled
from tests.support.backend import Backend
from tests.support.label_studio import Json, LabelStudio
from tests.support.labelled_sentences import LabelledSentence
from tests.support.processes import wait_until
from tests.support.wiretap import Exchange, Wiretap

pytestmark = pytest.mark.e2e

TRAINING_S = 1500  # of two projects, on a machine that does other things too
NUM_POISONED = 60
WIKIGOLD = ["person", "organization", "location", "miscellaneous"]


@dataclass
class Pupil:
    """A project of Label Studio with the backend connected."""

    id: int
    key: str  # as Label Studio names it to the backend
    sentences: list[LabelledSentence]  # of its tasks, in their order
    tasks: list[int]
    before: list[Json] = field(default_factory=list)  # predictions, a task each
    after: list[Json] = field(default_factory=list)
    version_before: str = ""
    version_after: str = ""
    job: Json = None


@dataclass
class Lesson:
    """What happened; the tests judge it."""

    taught: Pupil
    poisoned: Pupil
    num_taught: int  # the first so many of its tasks were annotated
    wikigold_before: float
    wikigold_after: float
    answered: list[Json]  # predictions that were asked for while the training ran
    started_together: bool


@pytest.fixture(scope="module")
def school(tmp_path_factory: pytest.TempPathFactory, artifacts: Path) -> Iterator[Backend]:
    """A backend that trains only when it is told to."""
    model_dir, log = tmp_path_factory.mktemp("school"), artifacts / "backend-school.log"
    with ready_backend(model_dir, log, GNER_TRAIN_AFTER="0") as backend:
        yield backend


@pytest.fixture(scope="module")
def tap(school: Backend) -> Iterator[Wiretap]:
    with closing(Wiretap(school.url)) as tap:
        yield tap


def enrol(
    label_studio: LabelStudio, tap: Wiretap, title: str, labels: list[str], sentences: list[LabelledSentence]
) -> Pupil:
    project = label_studio.create_project(title, labelled.label_config(labels))
    assert label_studio.connect(project, tap.url)["readable_state"] == "Connected"
    tasks = label_studio.import_tasks(project, [{"text": sentence.text} for sentence in sentences])
    return Pupil(project, tap.key_of(project), sentences, tasks)


def predicted(label_studio: LabelStudio, pupil: Pupil) -> tuple[str, list[Json]]:
    """Retrieve predictions; the version that Label Studio was told, and each task's prediction of it."""
    label_studio.retrieve_predictions(pupil.id)
    version = str(label_studio.backend(pupil.id)["model_version"])
    by_task = {
        task["id"]: next(p for p in task["predictions"] if p["model_version"] == version)
        for task in label_studio.tasks(pupil.id)
    }
    return version, [by_task[task] for task in pupil.tasks]


def shuffled(sentences: Sequence[LabelledSentence]) -> list[LabelledSentence]:
    """The same spans with each other's labels."""
    labels = [label for sentence in sentences for _, _, label in sentence.spans]
    random.Random(11).shuffle(labels)
    left = iter(labels)
    return [
        LabelledSentence(sentence.text, tuple((start, end, next(left)) for start, end, _ in sentence.spans))
        for sentence in sentences
    ]


def annotate(label_studio: LabelStudio, pupil: Pupil, sentences: Sequence[LabelledSentence]) -> None:
    for task, sentence in zip(pupil.tasks, sentences, strict=False):
        label_studio.annotate(task, sentence.regions())


def start_training(label_studio: LabelStudio, tap: Wiretap, pupil: Pupil) -> str:
    """The job, as the backend named it to Label Studio."""
    label_studio.start_training(pupil.id)

    def answered() -> list[Exchange]:
        return [e for e in tap.webhooks(pupil.id) if e.request["action"] == "START_TRAINING"]

    (exchange,) = wait_until("START_TRAINING", answered, timeout_s=20)
    assert 200 <= exchange.status < 300, exchange
    return str(exchange.response["job"])


def f1_on_wikigold(backend: Backend, project: str) -> float:
    """Of the version that the project is served."""
    sentences = labelled.sentences("wikigold", "test")
    tasks = [{"id": index, "data": {"text": sentence.text}} for index, sentence in enumerate(sentences)]
    config = labelled.label_config(WIKIGOLD)
    return labelled.span_f1(sentences, backend.predict_all(project, config, tasks, timeout_s=600))


@pytest.fixture(scope="module")
def lesson(label_studio: LabelStudio, school: Backend, tap: Wiretap) -> Lesson:
    """Two projects: one is annotated as its corpus is, the other with shuffled labels. Both are trained."""
    train, test = labelled.sentences("crossner-ai", "train"), labelled.sentences("crossner-ai", "test")
    labels = labelled.labels_of([*train, *test])
    taught = enrol(label_studio, tap, "Taught", labels, [*train, *test])
    poisoned = enrol(label_studio, tap, "Poisoned", labels, train[:NUM_POISONED])
    for pupil in (taught, poisoned):
        pupil.version_before, pupil.before = predicted(label_studio, pupil)
    wikigold_before = f1_on_wikigold(school, taught.key)
    annotate(label_studio, taught, train)
    annotate(label_studio, poisoned, shuffled(train[:NUM_POISONED]))

    jobs = {pupil.id: start_training(label_studio, tap, pupil) for pupil in (taught, poisoned)}
    answered, started_together = [], False
    config, number = labelled.label_config(labels), 0
    deadline_s = time.monotonic() + TRAINING_S
    while True:
        states = [school.job(job)["job_status"] for job in jobs.values()]
        started_together |= states == ["started", "started"]
        if set(states) <= {"finished", "failed"}:
            break
        assert time.monotonic() < deadline_s, f"still {states}:\n{school.server.log_tail()}"
        assert school.health()["status"] == "UP"  # within the second that Label Studio gives it
        number += 1
        task = {"id": number, "data": {"text": f"Take number {number}: neural networks beat Deep Blue at chess."}}
        answered += school.predict(poisoned.key, config, [task])
        time.sleep(0.5)
    for pupil in (taught, poisoned):
        pupil.job = school.job(jobs[pupil.id])

    def current() -> bool:
        return bool(school.setup(taught.key, config)["model_version"] == taught.job["result"]["version"])

    if taught.job.get("result", {}).get("promoted"):
        wait_until("the new version to be served", current, timeout_s=30)
    for pupil in (taught, poisoned):
        pupil.version_after, pupil.after = predicted(label_studio, pupil)
    return Lesson(
        taught,
        poisoned,
        len(train),
        wikigold_before,
        f1_on_wikigold(school, taught.key),
        answered,
        started_together,
    )


def test_a_hundred_accepted_sentences_teach_fourteen_new_labels(lesson: Lesson) -> None:
    taught = lesson.taught
    assert taught.job["job_status"] == "finished", taught.job
    assert taught.job["result"]["promoted"], taught.job["result"]
    unseen = slice(lesson.num_taught, None)
    before = labelled.span_f1(taught.sentences[unseen], taught.before[unseen])
    after = labelled.span_f1(taught.sentences[unseen], taught.after[unseen])
    seconds = taught.job["result"]["seconds"]
    print(f"span F1 on {len(taught.before[unseen])} unseen sentences: {before:.3f} -> {after:.3f}, in {seconds:.0f} s")
    assert after >= before + 0.15


def test_what_it_knew_before_is_not_forgotten(lesson: Lesson) -> None:
    print(f"wikigold: {lesson.wikigold_before:.3f} -> {lesson.wikigold_after:.3f}")
    assert lesson.wikigold_after >= lesson.wikigold_before - 0.02


def test_label_studio_is_told_the_new_version_and_predicts_again(lesson: Lesson, school: Backend) -> None:
    taught = lesson.taught
    assert taught.version_after == taught.job["result"]["version"] != taught.version_before
    assert school.versions(taught.key)["current"] == taught.version_after


def test_poisoned_labels_are_refused_and_predictions_stay(lesson: Lesson, school: Backend) -> None:
    poisoned = lesson.poisoned
    assert poisoned.job["job_status"] == "finished", poisoned.job
    assert not poisoned.job["result"]["promoted"], poisoned.job["result"]
    assert poisoned.version_after == poisoned.version_before
    assert [labelled.spans_of(p) for p in poisoned.after] == [labelled.spans_of(p) for p in poisoned.before]
    (rejected,) = school.versions(poisoned.key)["versions"]
    assert rejected["status"] == "rejected"
    print(f"refused: {rejected['reason']}")


def test_projects_train_one_after_the_other_on_their_own_examples(lesson: Lesson, school: Backend) -> None:
    assert not lesson.started_together
    for pupil in (lesson.taught, lesson.poisoned):
        (version,) = school.versions(pupil.key)["versions"]
        tasks = {task for task, _ in [*version["examples"], *version["held_out"]]}
        assert tasks
        assert tasks <= set(pupil.tasks)


def test_nobody_waited_for_the_training(lesson: Lesson) -> None:
    """/health was asked for all the while, with Label Studio's time-out, and /predict answered each time."""
    assert len(lesson.answered) > 10
    assert all(item["result"] is not None for item in lesson.answered)
    assert {item["model_version"] for item in lesson.answered} == {lesson.poisoned.version_before}
