"""The worker process, from a snapshot to a published version. How a model is trained is tested in learning."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis

from backend import worker
from backend.engine import checkpoint as checkpoints
from backend.engine.adapter_files import WEIGHTS_FILE
from backend.engine.adapters import Adapters, AdapterSettings
from backend.engine.checkpoint import LoadedModel
from backend.errors import CorruptVersion, NotEnoughExamples, TrainingFailed, UnknownProject
from backend.learning import conll_snapshot, lease, training
from backend.learning.annotations import AnnotatedText, Annotation, ControlLabels, LabelledSpan, Project
from backend.learning.example_store import ExampleStore
from backend.learning.examples import Snapshot
from backend.learning.finetune import Outcome
from backend.learning.gate import Verdict, agreement, compare
from backend.learning.jobs import TrainingQueue
from backend.learning.lease import Abandoned, TrainingRun
from backend.learning.progress import Progress
from backend.learning.registry import ParentVersion, Registry, sha256_of
from backend.learning.training import TrainingResult
from backend.ner.labels import PromptLabels
from backend.ner.spans import Passage
from backend.settings import Settings
from tests.support.processes import Server, wait_until
from tests.support.running import save_checkpoint

ROOT = Path(__file__).parent.parent
PROJECT = "5.1795333437"
TIMEOUT_S = 90


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny")


@pytest.fixture
def settings(checkpoint: Path, valkey_url: str, tmp_path: Path) -> Settings:
    return Settings(model=str(checkpoint), redis_url=valkey_url, model_dir=tmp_path / "data", train_device="cpu")


@pytest.fixture
def registry(settings: Settings) -> Registry:
    return Registry(settings.model_dir, checkpoints.resolve(settings.model).version)


@pytest.fixture
def examples(valkey: redis.Redis) -> ExampleStore:
    return ExampleStore(valkey)


def fill(examples: ExampleStore, number: int, first: int = 1) -> None:
    labels = ControlLabels("label", PromptLabels.of([("person", "Person")]))
    examples.save_project(Project(PROJECT, 5, "p", "digest", (labels,)))
    text = AnnotatedText(
        "label", Passage("Marie Curie worked"), ("Person",), (LabelledSpan(0, 11, "Person", "manual"),)
    )
    annotations = [
        Annotation(index, index, 1, True, False, (text,), None, (), {}) for index in range(first, first + number)
    ]
    examples.put(PROJECT, annotations)


@dataclass
class Given:
    """The arguments of one call."""

    snapshot: Snapshot
    parent: ParentVersion | None
    unlabelled: Sequence[AnnotatedText]


class Trainer:
    """In place of `fine_tune`: writes an adapter with weights of its own, and remembers its arguments."""

    def __init__(self) -> None:
        self.given: list[Given] = []
        self.publish = True
        self.meanwhile: Callable[[], None] = lambda: None

    def __call__(
        self,
        loaded: LoadedModel,
        adapters: Adapters,
        snapshot: Snapshot,
        folder: Path,
        *,
        parent: ParentVersion | None,
        unlabelled: Sequence[AnnotatedText],
        on_progress: Callable[[Progress], None],
    ) -> Outcome:
        self.given.append(Given(snapshot, parent, unlabelled))
        on_progress(Progress("training", 1, 2, 0.5, 3.0))
        self.meanwhile()
        on_progress(Progress("training", 2, 2, 0.25, 0.0))
        for parameter in adapters.new("candidate", AdapterSettings(), None if parent is None else parent.folder):
            parameter.data.fill_(0.01 * len(self.given))
        adapters.save("candidate", folder)
        return Outcome(
            verdict_of(self.publish),
            loaded.checkpoint.version if parent is None else parent.info.version,
            tuple((example.task_id, example.annotation_id) for example in snapshot.examples),
            (),
            {"rank": 16},
            1.5,
            sha256_of(folder / WEIGHTS_FILE),
        )


def verdict_of(publish: bool) -> Verdict:
    nothing = compare([])
    reason = "it is better" if publish else "it is worse"
    return Verdict(publish, reason, nothing, False, nothing, agreement([]))


SCORES = verdict_of(publish=True).scores


@pytest.fixture
def trainer() -> Trainer:
    return Trainer()


def train(settings: Settings, client: redis.Redis, trainer: Trainer | None = None) -> TrainingResult:
    with lease.training(client, PROJECT) as run:
        return worker.train_project(settings, client, run, trainer)


# --- one training


def test_a_better_version_is_published_and_promoted(
    settings: Settings, valkey: redis.Redis, examples: ExampleStore, registry: Registry, trainer: Trainer
) -> None:
    fill(examples, 6)
    result = train(settings, valkey, trainer)
    assert set(result.to_json()) == {"version", "promoted", "reason", "scores", "seconds"}
    assert (result.promoted, result.reason, result.scores) == (True, "it is better", SCORES)
    assert registry.current(PROJECT) == result.version
    info = registry.info(PROJECT, result.version)
    assert (info.project, info.parent, info.status) == (PROJECT, registry.base_version, "published")
    assert info.examples == tuple((number, number) for number in range(1, 7))
    assert registry.folder(PROJECT, result.version).is_dir(), "it is intact"
    assert examples.trained_changes(PROJECT) == examples.changes(PROJECT) == 6
    assert result.version.startswith("tiny-p5-")


def test_a_worse_version_is_kept_but_not_used(
    settings: Settings, valkey: redis.Redis, examples: ExampleStore, registry: Registry, trainer: Trainer
) -> None:
    fill(examples, 6)
    trainer.publish = False
    result = train(settings, valkey, trainer)
    assert (result.promoted, registry.current(PROJECT)) == (False, None)
    assert registry.info(PROJECT, result.version).status == "rejected"
    assert examples.trained_changes(PROJECT) == 6


def test_the_next_goes_on_from_the_current_one_unless_it_must_not(
    settings: Settings, valkey: redis.Redis, examples: ExampleStore, registry: Registry, trainer: Trainer
) -> None:
    fill(examples, 6)
    first = train(settings, valkey, trainer).version
    second = train(settings, valkey, trainer).version
    assert trainer.given[0].parent is None
    assert trainer.given[1].parent == ParentVersion(registry.info(PROJECT, first), registry.folder(PROJECT, first))
    assert registry.info(PROJECT, second).parent == first
    with lease.training(valkey, PROJECT) as run:
        run.from_base = True
        third = worker.train_project(settings, valkey, run, trainer).version
    assert trainer.given[2].parent is None
    assert registry.info(PROJECT, third).parent == registry.base_version


def test_a_corrupt_current_version_is_an_error_and_no_reason_to_begin_at_the_base(
    settings: Settings, valkey: redis.Redis, examples: ExampleStore, registry: Registry, trainer: Trainer
) -> None:
    fill(examples, 6)
    folder = registry.folder(PROJECT, train(settings, valkey, trainer).version)
    (folder / "adapter_model.safetensors").write_bytes(b"nonsense")
    with pytest.raises(CorruptVersion):
        train(settings, valkey, trainer)
    assert len(trainer.given) == 1


def test_too_few_examples(settings: Settings, valkey: redis.Redis, examples: ExampleStore, trainer: Trainer) -> None:
    fill(examples, 3)
    with pytest.raises(NotEnoughExamples, match="3 accepted annotations"):
        train(settings, valkey, trainer)
    assert not trainer.given
    assert examples.trained_changes(PROJECT) == 3, "the next annotation alone does not try again"


def test_a_project_that_nobody_knows(settings: Settings, valkey: redis.Redis) -> None:
    with pytest.raises(UnknownProject, match=PROJECT):
        train(settings, valkey)


def test_an_error_leaves_no_version_and_no_folder(
    settings: Settings, valkey: redis.Redis, examples: ExampleStore, registry: Registry, trainer: Trainer
) -> None:
    def fail() -> None:
        raise TrainingFailed("loss nan")

    fill(examples, 6)
    trainer.meanwhile = fail
    with pytest.raises(TrainingFailed):
        train(settings, valkey, trainer)
    assert registry.versions(PROJECT) == ()
    assert not list(settings.model_dir.rglob("*.safetensors"))
    assert examples.trained_changes(PROJECT) == 6


def test_who_has_lost_its_lease_publishes_nothing_and_changes_nothing(
    settings: Settings, valkey: redis.Redis, examples: ExampleStore, registry: Registry, trainer: Trainer
) -> None:
    fill(examples, 6)
    run = TrainingRun(PROJECT)

    def lose_lease() -> None:
        run.why_stop = lambda: "another trains it"

    trainer.meanwhile = lose_lease
    with pytest.raises(Abandoned, match="another trains it"):
        worker.train_project(settings, valkey, run, trainer)
    assert registry.versions(PROJECT) == ()
    assert examples.trained_changes(PROJECT) == 0


def test_what_is_forgotten_meanwhile_is_not_published(
    settings: Settings, valkey: redis.Redis, examples: ExampleStore, trainer: Trainer
) -> None:
    fill(examples, 6)

    def forget() -> None:
        examples.forget(PROJECT, task_id=2)

    trainer.meanwhile = forget
    with pytest.raises(TrainingFailed, match="task 2; train again"):
        train(settings, valkey, trainer)
    trainer.meanwhile = lambda: None
    train(settings, valkey, trainer)


def test_what_comes_meanwhile_is_requested_next(
    settings: Settings, valkey: redis.Redis, examples: ExampleStore, trainer: Trainer
) -> None:
    fill(examples, 6)
    trainer.meanwhile = lambda: fill(examples, 20, first=7)
    train(settings, valkey, trainer)
    queue = TrainingQueue(valkey, settings.train_after)
    job = queue.request_if_due(PROJECT, examples)
    assert job is not None
    assert valkey.llen("rq:queue:gner-training") == 1
    assert queue.status(job).state == "queued"


@pytest.mark.slow  # waits for the client's repeated tries
def test_without_label_studio_it_is_trained_on_what_is_there(
    settings: Settings,
    valkey: redis.Redis,
    examples: ExampleStore,
    trainer: Trainer,
    caplog: pytest.LogCaptureFixture,
) -> None:
    fill(examples, 6)
    away = settings.model_copy(
        update={"label_studio_url": "http://127.0.0.1:1", "label_studio_api_key": "0123456789abcdef"}
    )
    assert train(away, valkey, trainer).promoted
    assert "http://127.0.0.1:1" in caplog.text


def test_progress_goes_through(
    settings: Settings, valkey: redis.Redis, examples: ExampleStore, trainer: Trainer
) -> None:
    fill(examples, 6)
    told: list[Progress] = []
    with lease.training(valkey, PROJECT, told.append) as run:
        worker.train_project(settings, valkey, run, trainer)
    assert told[-1].to_json() == {"stage": "training", "step": 2, "steps": 2, "loss": 0.25, "eta_s": 0.0}
    assert told[0].stage == "loading the model"


def test_a_file_of_sentences_needs_no_store(
    settings: Settings, registry: Registry, trainer: Trainer, tmp_path: Path
) -> None:
    file = tmp_path / "x.conll"
    file.write_text("Marie\tB-person\nworked\tO\n\n" * 5, encoding="utf-8")
    away = settings.model_copy(update={"redis_url": "redis://127.0.0.1:1"})
    snapshot = conll_snapshot.read_snapshot(file, "7")
    result = training.train_version(away, snapshot, TrainingRun("7"), fine_tune=trainer)
    assert registry.current("7") == result.version
    assert len(trainer.given[0].snapshot.examples) == 5


# --- the process


# Of a worker: 10, unless the tests themselves stand back further.
NICENESS = max(10, os.getpriority(os.PRIO_PROCESS, 0))


def test_it_stands_back() -> None:
    program = (
        "import os; from backend import worker; worker.stand_back(); worker.stand_back()\n"
        f"assert os.getpriority(os.PRIO_PROCESS, 0) == {NICENESS}\n"
    )
    # in a session of its own: Linux lowers the priority of the whole session
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, timeout=TIMEOUT_S, start_new_session=True)


def test_a_training_by_hand_does_not_slow_down_the_terminal_that_it_was_started_in() -> None:
    stand_back = "from backend import worker; worker.stand_back()"
    program = (
        "import subprocess, sys\n"
        "from pathlib import Path\n"
        "session = Path('/proc/self/autogroup')\n"
        "before = session.read_text() if session.exists() else ''\n"
        f"subprocess.run([sys.executable, '-c', {stand_back!r}], check=True)\n"
        "assert (session.read_text() if session.exists() else '') == before\n"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, timeout=TIMEOUT_S, start_new_session=True)


@pytest.mark.slow  # starts a worker and a process for its job
def test_a_worker_of_the_command_line_does_jobs_in_processes_of_their_own(
    settings: Settings, valkey: redis.Redis, examples: ExampleStore, tmp_path: Path
) -> None:
    fill(examples, 3)
    queue = TrainingQueue(valkey, default_after=20)
    job = queue.request(PROJECT)
    command = [sys.executable, "-m", "backend.cli", "worker", "--redis-url", settings.redis_url]
    command += ["--model", settings.model, "--model-dir", str(settings.model_dir)]
    server = Server(command, {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, tmp_path / "worker.log")
    try:
        server.wait_until("the job to fail", lambda: queue.status(job).state == "failed", TIMEOUT_S)
        assert "NotEnoughExamples" in str(queue.status(job).error)
        wait_until("the job's own process to end", lambda: len(server.descendants()) == 1, TIMEOUT_S)
        [process] = server.descendants()
        assert process.nice() == NICENESS
        os.kill(process.pid, signal.SIGTERM)
        wait_until("the worker to end", lambda: not server.descendants(), TIMEOUT_S)
    finally:
        server.kill()


def test_a_worker_without_a_store_ends_with_a_sentence() -> None:
    command = [sys.executable, "-m", "backend.cli", "worker", "--redis-url", "redis://127.0.0.1:1"]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=TIMEOUT_S, start_new_session=True
    )
    assert done.returncode == 2
    assert "does not answer" in done.stderr
    assert "Traceback" not in done.stderr
