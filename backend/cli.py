"""The command line: gner-backend serve · worker · train · versions · promote · forget · evaluate · ..."""

import argparse
import fcntl
import json
import logging
import os
import re
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from backend import processes
from backend import settings as settings_module
from backend.errors import (
    BackendError,
    CorpusError,
    InvalidRequest,
    InvalidSettings,
    StoreUnavailable,
    UnknownProject,
)
from backend.settings import Settings

if TYPE_CHECKING:  # each command imports what it needs, so that none waits for torch in vain
    import redis

    from backend.learning.example_store import ExampleStore
    from backend.learning.registry import VersionInfo
    from backend.management import Management

_OURSELVES = (sys.executable, "-m", "backend.cli")
_PROJECT = "project's id in Label Studio, or its key"


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point. Errors that a user can act on end in one sentence and status 2."""
    options = _parser().parse_args(arguments)
    try:
        status: int = options.run(options)
    except BackendError as error:
        print(f"gner-backend: {error}", file=sys.stderr)
        return 2
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="gner-backend", description=__import__("backend").__doc__)
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    serve = commands.add_parser("serve", help="run the backend", formatter_class=argparse.RawDescriptionHelpFormatter)
    serve.description = "Run the backend. Every setting is a flag and an environment variable; the flag wins."
    _add_settings(serve)
    serve.set_defaults(run=_serve)
    web = commands.add_parser("web", help="the web process alone, over a store that runs (serve starts it)")
    _add_settings(web)
    web.set_defaults(run=_web)
    _add_learning(commands)
    _add_train_base(
        commands.add_parser("train-base", help="train the bundled checkpoint from corpora, or go on with it")
    )
    _add_evaluate(
        commands.add_parser("evaluate", help="measure span F1 of a checkpoint, or of the paper's predictions")
    )
    _add_learning_curve(commands.add_parser("learning-curve", help="measure what accepted annotations are worth"))
    _add_benchmark(commands.add_parser("benchmark", help="time every way of decoding on the same sentences"))
    return parser


def _add_learning(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    worker = commands.add_parser("worker", help="train what is asked for, over a store that runs (serve starts one)")
    worker.set_defaults(run=_worker)
    horse = commands.add_parser("work-horse", help="one job of a worker that runs (worker starts it)")
    for name in ("worker", "job", "execution"):
        horse.add_argument(f"of_{name}", metavar=name.upper())
    horse.set_defaults(run=_work_horse)
    train = commands.add_parser("train", help="train a project here and now")
    train.add_argument("--project", required=True, metavar="N", help=_PROJECT)
    train.add_argument(
        "--data",
        type=Path,
        metavar="FILE",
        help="a JSON export of Label Studio, which is added to the project's examples; or a .conll file, which is "
        "trained on instead of them",
    )
    train.add_argument(
        "--label-config", type=Path, metavar="FILE", help="the project's labelling interface, for a JSON export"
    )
    train.set_defaults(run=_train)
    versions = commands.add_parser("versions", help="the trained versions and which one is in use")
    versions.add_argument("--project", metavar="N", help=f"{_PROJECT}; default: all")
    versions.add_argument("--json", action="store_true", help="all that is known of them, as JSON")
    versions.set_defaults(run=_versions)
    promote = commands.add_parser("promote", help="use this version from now on")
    promote.add_argument("--project", required=True, metavar="N", help=_PROJECT)
    promote.add_argument("version", metavar="VERSION", help="of the project, or the checkpoint's own")
    promote.set_defaults(run=_promote)
    rollback = commands.add_parser("rollback", help="use the version that was used before")
    rollback.add_argument("--project", required=True, metavar="N", help=_PROJECT)
    rollback.set_defaults(run=_rollback)
    sync = commands.add_parser("sync", help="make the examples equal to what Label Studio has (needs its API key)")
    sync.add_argument("--project", required=True, metavar="N", help=_PROJECT)
    sync.set_defaults(run=_sync)
    forget = commands.add_parser("forget", help="remove an example and its predictions; tells which versions saw it")
    forget.add_argument("--project", metavar="N", help=f"{_PROJECT}; default: all that have it")
    what = forget.add_mutually_exclusive_group(required=True)
    what.add_argument("--task", type=int, metavar="ID", help="all annotations of this task")
    what.add_argument("--annotation", type=int, metavar="ID", help="this annotation")
    forget.add_argument("--retrain", action="store_true", help="have the project trained again, from the checkpoint")
    forget.set_defaults(run=_forget)
    for parser in (worker, horse, train, versions, promote, rollback, sync, forget):
        _add_settings(parser)


def _add_learning_curve(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, required=True, metavar="FOLDER", help="corpora, a folder each")
    parser.add_argument("--corpus", default="crossner-ai", metavar="NAME", help="the one that is learnt")
    parser.add_argument("--kept", default="wikigold", metavar="NAME", help="one that must not be forgotten")
    parser.add_argument("--sizes", default="25,50,100", help="how many sentences are accepted, with commas")
    parser.add_argument("--model", default="gner-mini", help="checkpoint: name, folder or hub id")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--out", type=Path, metavar="FILE", help="writes FILE.json and FILE.svg")
    parser.set_defaults(run=_learning_curve)


def _add_benchmark(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, required=True, metavar="FOLDER", help="corpora, a folder each")
    parser.add_argument("--corpus", default="crossner-ai", metavar="NAME", help="the one whose test split is decoded")
    parser.add_argument(
        "--models",
        default="gner-mini,t5-base",
        help="checkpoints, or t5-base, t5-large, llama-7b: those shapes with random weights, whose free positions are "
        "overruled by the corpus's labels at equal cost",
    )
    parser.add_argument("--batch", default="1,16", help="batch sizes, with commas")
    parser.add_argument("--sentences", type=int, default=32, help="sentences decoded in each way")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--dtype", default="auto", choices=["auto", "float32", "bfloat16"])
    parser.add_argument("--window", type=int, default=64, help="tokens that one pass of the exact decoder verifies")
    parser.add_argument(
        "--draft-threshold", type=float, default=0.6, help="a draft below this probability ends the window"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="writes FILE.json and FILE.svg")
    parser.set_defaults(run=_benchmark)


def _add_train_base(parser: argparse.ArgumentParser) -> None:
    parser.description = "A run that was stopped goes on where it stood: give the same --out and --recipe."
    parser.add_argument(
        "--data", type=Path, required=True, metavar="FOLDER", help="the corpora, a folder each, in CoNLL form"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where checkpoint, log and state go")
    parser.add_argument("--recipe", type=Path, metavar="FILE", help="default: the bundled checkpoint's recipe.json")
    parser.add_argument("--device", choices=["cpu", "cuda"], help="default: cuda where there is one")
    parser.add_argument("--stop-after-s", type=float, metavar="SECONDS", help="stop, to be resumed, after so much time")
    parser.set_defaults(run=_train_base)


def _add_evaluate(parser: argparse.ArgumentParser) -> None:
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--data", type=Path, metavar="FOLDER", help="corpora to tag and score, a folder each, in CoNLL form"
    )
    what.add_argument(
        "--predictions", type=Path, metavar="FILE", help="score a prediction file of the GNER paper, in the paper's way"
    )
    parser.add_argument("--checkpoint", default="gner-mini", help="name, folder or hub id; default gner-mini")
    parser.add_argument("--corpus", action="append", metavar="NAME", help="only this one of --data (may be repeated)")
    parser.add_argument("--split", default="test", help="train, dev or test; default test")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N sentences of each file")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--dtype", default="auto", choices=["auto", "float32", "bfloat16"])
    parser.add_argument("--save-scores", action="store_true", help="write the F1 into the checkpoint's gner.json")
    parser.add_argument(
        "--tokenizer",
        metavar="NAME",
        help="with --predictions: compare words as this tokenizer (folder or hub id) spells them, as the paper does",
    )
    parser.set_defaults(run=_evaluate)


def _add_settings(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("settings")
    for name, field in Settings.model_fields.items():
        default = "" if field.default in ("", None) else f"; default {field.default}"
        group.add_argument(
            settings_module.flag(name),
            dest=name,
            metavar=settings_module.variable(name),
            help=f"{field.description}{default}".replace("%", "%%"),
        )


def _settings(options: argparse.Namespace) -> Settings:
    settings = settings_module.read(**{name: getattr(options, name) for name in Settings.model_fields})
    logging.basicConfig(level=settings.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    return settings


def _web(options: argparse.Namespace) -> int:
    from backend import web  # torch takes seconds to import: only who needs it waits

    web.run(_settings(options))
    return 0


def _serve(options: argparse.Namespace) -> int:
    """Store, web process, banner; until Ctrl-C or SIGTERM, or until the web process ends by itself."""
    from backend import store
    from backend.engine import checkpoint as checkpoints

    settings = _settings(options)
    checkpoint = checkpoints.resolve(settings.model)
    device = checkpoints.pick_device(settings.device)
    with ExitStack() as stack:
        stack.enter_context(_only_backend_of(settings.model_dir))
        _check_address(settings.host, settings.port)
        if settings.redis_url:
            url, where = settings.redis_url, settings.redis_url.rsplit("@", 1)[-1]
            store.connect(url)
        else:
            url = stack.enter_context(store.embedded(settings.store_dir))
            where = f"embedded Valkey in {settings.store_dir}"
        # Read by the child alone: the user's REDIS_URL, empty or not, has been resolved here.
        child_environment = {**os.environ, **settings.environment(), "REDIS_URL": url}
        print(_banner(settings, checkpoint.name, checkpoint.version, checkpoint.scores, str(device), where), flush=True)
        if settings.worker == "on":
            stack.enter_context(processes.kept_running("worker", [*_OURSELVES, "worker"], child_environment))
        return processes.supervise([*_OURSELVES, "web"], child_environment)


def _check_address(host: str, port: int) -> None:
    """Raises InvalidSettings if nothing can listen there: said before anything is started."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with socket.create_server((host, port), family=family):
            pass
    except OSError as error:
        raise InvalidSettings(f"cannot listen on {host}:{port} (GNER_HOST, PORT): {error.strerror or error}") from error


def _banner(settings: Settings, name: str, version: str, scores: dict[str, float], device: str, where: str) -> str:
    measured = ", ".join(f"{corpus} {f1:.2f}" for corpus, f1 in scores.items()) or "not measured here"
    rows = [
        ("Label Studio", f"add http://<this machine>:{settings.port} as the project's model (Settings > Model)", ""),
        ("checkpoint", f"{name} (version {version}; span F1: {measured})", "--model"),
        ("device", device, "--device"),
        ("store", where, "--redis-url"),
        ("training", _training_line(settings), "--train-after, --worker"),
        ("data", str(settings.model_dir.resolve()), "--model-dir"),
    ]
    lines = [f"  {key:<13} {value}" + (f"   [{switch}]" if switch else "") for key, value, switch in rows]
    note = (
        [
            "  gner-mini is small and made for English; the published checkpoints know more, given a GPU:",
            "    gner-backend serve --model dyyyyyyyy/GNER-T5-base   (or -large, -xl, -xxl, GNER-LLaMA-7B)",
        ]
        if name == "gner-mini"
        else []
    )
    end = "  Ctrl-C stops it; --help lists all settings."
    return "\n".join(["", "GNER backend for Label Studio", *lines, *note, end, ""])


def _training_line(settings: Settings) -> str:
    when = f"after {settings.train_after} changed annotations, or when asked" if settings.train_after else "when asked"
    return when + (", by a worker beside" if settings.worker == "on" else ", by workers that run elsewhere")


# --- learning


def _worker(options: argparse.Namespace) -> int:
    from backend import worker

    settings = _settings(options)
    os.environ.update(settings.environment())  # for the process of each job
    if not settings.redis_url:
        _check_embedded_store(settings)
    return 0 if worker.run(settings, [*_OURSELVES, "work-horse"]) else 1


def _work_horse(options: argparse.Namespace) -> int:
    from backend import worker

    worker.work_horse(_settings(options), options.of_worker, options.of_job, options.of_execution)
    return 0


def _check_embedded_store(settings: Settings) -> None:
    from backend import store

    url = store.embedded_url(settings.store_dir)
    with store.connect(url) as client:
        if not store.answers(client):
            raise StoreUnavailable(
                f"no backend runs over MODEL_DIR={str(settings.model_dir)!r}; start one with `gner-backend serve`, or "
                "give the REDIS_URL that it uses"
            )


@dataclass(frozen=True, slots=True)
class _Here:
    """What the commands about learning work on."""

    settings: Settings
    client: "redis.Redis"
    examples: "ExampleStore"
    management: "Management"


@contextmanager
def _opened(options: argparse.Namespace) -> Iterator[_Here]:
    from backend.engine import checkpoint as checkpoints
    from backend.learning.example_store import ExampleStore
    from backend.learning.registry import Registry
    from backend.management import Management
    from backend.metrics import Metrics
    from backend.serving.cache import CacheLimits, PredictionCache
    from backend.store import connect

    settings = _settings(options)
    registry = Registry(settings.model_dir, checkpoints.resolve(settings.model).version)
    with _reachable_store(settings) as url, connect(url) as client:
        examples = ExampleStore(client)
        cache = PredictionCache(client, CacheLimits(settings.cache_entries, age_s=1), Metrics())
        yield _Here(settings, client, examples, Management(examples, registry, cache))


@contextmanager
def _reachable_store(settings: Settings) -> Iterator[str]:
    """The URL of the backend's store; where none runs, its embedded store runs for so long."""
    from backend import store

    if settings.redis_url:
        yield settings.redis_url
        return
    url = store.embedded_url(settings.store_dir)
    with store.connect(url) as client:
        answers = store.answers(client)
    if answers:
        yield url
        return
    with _only_backend_of(settings.model_dir), store.embedded(settings.store_dir) as url:
        yield url


def _train(options: argparse.Namespace) -> int:
    from backend import worker
    from backend.learning import conll_snapshot, lease, training
    from backend.learning.progress import Progress

    def show(progress: Progress) -> None:
        print(progress, flush=True)

    worker.stand_back()
    if options.data is not None and options.data.suffix == ".conll":
        settings = _settings(options)
        key = _key_for_file(options)
        result = training.train_version(
            settings, conll_snapshot.read_snapshot(options.data, key), lease.TrainingRun(key, on_progress=show)
        )
    else:
        with _opened(options) as here:
            if options.data is not None:
                _import(here, options)
            key = here.management.project(options.project)
            with lease.training(here.client, key, show) as run:
                result = worker.train_project(here.settings, here.client, run)
    print(f"{result.version}: {'promoted' if result.promoted else 'not promoted'}. {result.reason}")
    print(f"{_figures(result.scores)} ({result.seconds:.0f} s)")
    return 0


def _key_for_file(options: argparse.Namespace) -> str:
    """A project that nothing is known of is as good as another here: its key is what was given."""
    try:
        with _opened(options) as here:
            return here.management.project(options.project)
    except UnknownProject:
        if re.fullmatch(r"[0-9]{1,20}(\.[0-9]{1,20})?", options.project, re.ASCII):
            return str(options.project)
        raise


def _import(here: _Here, options: argparse.Namespace) -> None:
    """Store the annotations of a JSON export."""
    from backend.labelstudio import annotations, wire

    ref = wire.parse_project_ref(options.project)
    assert ref is not None
    try:
        tasks = json.loads(options.data.read_text(encoding="utf-8"))
        items = [item for index, task in enumerate(tasks) for item in wire.parse_annotated_task(task, f"[{index}]")]
    except (OSError, ValueError, TypeError, InvalidRequest) as error:
        raise CorpusError(f"{options.data} is no JSON export of Label Studio: {error}") from error
    if not items:
        raise CorpusError(f"{options.data} holds no annotations; export the project as JSON, not as JSON-MIN")
    label_config = _label_config(here, options, ref.id)
    try:
        key = here.management.project(options.project)
    except UnknownProject:
        key = ref.key
    here.examples.save_project(annotations.project_of_ref(wire.ProjectRef(ref.id, key), label_config))
    schema = annotations.schema_of(label_config)
    changed = here.examples.put(key, [annotations.annotation_of(item, schema) for item in items])
    print(f"{len(items)} annotations in {options.data}, {changed} of them new or changed")


def _label_config(here: _Here, options: argparse.Namespace, project_id: int) -> str:
    from backend.labelstudio.client import LabelStudioClient

    settings = here.settings
    if options.label_config is not None:
        try:
            return str(options.label_config.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise CorpusError(f"cannot read {options.label_config}: {error}") from error
    if not settings.label_studio_url or not settings.label_studio_api_key:
        raise InvalidSettings(
            "a JSON export does not hold the labelling interface: give it with --label-config, or give "
            "LABEL_STUDIO_URL and LABEL_STUDIO_API_KEY, where it can be asked for"
        )
    with LabelStudioClient(settings.label_studio_url, settings.label_studio_api_key) as client:
        return client.project(project_id).label_config


def _versions(options: argparse.Namespace) -> int:
    with _opened(options) as here:
        management = here.management
        keys = management.projects() if options.project is None else [management.project(options.project)]
        found = {key: (management.current(key), management.versions(key)) for key in keys}
    if options.json:
        listed = [
            {"project": key, "current": current, "versions": [asdict(info) for info in versions]}
            for key, (current, versions) in found.items()
        ]
        print(json.dumps(listed, indent=2, ensure_ascii=False))
        return 0
    for key, (current, versions) in found.items():
        print(f"project {key}: {current}")
        for info in versions:
            print(_version_lines(info, current))
    if not found:
        print("no project is known here yet")
    return 0


def _version_lines(info: "VersionInfo", current: str) -> str:
    return "\n".join(
        [
            f"  {'*' if info.version == current else ' '} {info.version}   {info.status}, {info.created_at}, "
            f"from {info.parent}, {len(info.examples)} examples, {info.seconds:.0f} s",
            f"      {info.reason}",
            f"      {_figures(info.scores)}",
        ]
    )


def _figures(scores: dict[str, float]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in scores.items())


def _promote(options: argparse.Namespace) -> int:
    with _opened(options) as here:
        key = here.management.project(options.project)
        print(f"project {key}: {here.management.promote(key, options.version)}")
    return 0


def _rollback(options: argparse.Namespace) -> int:
    with _opened(options) as here:
        key = here.management.project(options.project)
        print(f"project {key}: {here.management.rollback(key)}")
    return 0


def _sync(options: argparse.Namespace) -> int:
    from backend import worker
    from backend.labelstudio import wire

    ref = wire.parse_project_ref(options.project)
    assert ref is not None
    with _opened(options) as here:
        done = worker.synchronise(here.settings, here.examples, ref.id)
    print(
        f"project {done.project}: {done.listed} annotations in Label Studio; here {done.added} added, "
        f"{done.changed} changed, {done.removed} removed"
    )
    return 0


def _forget(options: argparse.Namespace) -> int:
    from backend.learning.jobs import TrainingQueue
    from backend.management import Wanted

    with _opened(options) as here:
        project = None if options.project is None else here.management.project(options.project)
        for removed in here.management.forget(Wanted(options.task, options.annotation), project):
            print(
                f"project {removed.project}: {len(removed.annotation_ids)} annotations and {removed.predictions} "
                "cached predictions are removed"
            )
            print(f"  versions that were trained on it: {', '.join(removed.versions) or 'none'}")
            if options.retrain:
                # what is in use may have seen it: the next version must not be trained from that
                queue = TrainingQueue(here.client, here.settings.train_after)
                print(f"  a training without it is requested: {queue.request(removed.project, from_base=True)}")
    return 0


def _train_base(options: argparse.Namespace) -> int:
    from backend.engine.checkpoint import BUNDLED, DEFAULT_MODEL
    from backend.pretraining import trainer
    from backend.pretraining.recipe import read_recipe

    recipe = read_recipe(options.recipe or BUNDLED / DEFAULT_MODEL / "recipe.json")
    trainer.train(recipe, options.data, options.out, device=options.device, stop_after_s=options.stop_after_s)
    return 0


def _evaluate(options: argparse.Namespace) -> int:
    from backend.evaluation import accuracy

    if options.predictions is not None:
        print(accuracy.evaluate_predictions(options.predictions, options.tokenizer))
        return 0
    accuracy.evaluate_checkpoint(
        options.checkpoint,
        options.data,
        only=options.corpus,
        split=options.split,
        limit=options.limit,
        device=options.device,
        dtype=options.dtype,
        save_scores=options.save_scores,
    )
    return 0


def _benchmark(options: argparse.Namespace) -> int:
    from backend.evaluation import decoding_speed

    batch_sizes = _numbers("--batch", options.batch)
    decoding_speed.benchmark(
        data=options.data,
        corpus=options.corpus,
        models=[model.strip() for model in options.models.split(",")],
        batch_sizes=batch_sizes,
        sentences=options.sentences,
        device=options.device,
        dtype=options.dtype,
        window=options.window,
        draft_threshold=options.draft_threshold,
        out=options.out,
    )
    return 0


def _numbers(name: str, text: str) -> list[int]:
    try:
        return [int(number) for number in text.split(",")]
    except ValueError:
        raise InvalidSettings(f"{name} {text!r}: expected numbers with commas between") from None


def _learning_curve(options: argparse.Namespace) -> int:
    from backend.evaluation import learning_curve

    learning_curve.learning_curve(
        model=options.model,
        data=options.data,
        corpus=options.corpus,
        kept=options.kept,
        sizes=_numbers("--sizes", options.sizes),
        device=options.device,
        out=options.out,
    )
    return 0


@contextmanager
def _only_backend_of(model_dir: Path) -> Iterator[None]:
    """Hold MODEL_DIR's lock: two backends over one folder would overwrite each other."""
    try:
        model_dir.mkdir(parents=True, exist_ok=True)
        lock = (model_dir / "lock").open("w")
    except OSError as error:
        raise InvalidSettings(f"MODEL_DIR={str(model_dir)!r} cannot be used: {error}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InvalidSettings(
                f"MODEL_DIR={str(model_dir)!r} is in use by another backend; give this one its own with --model-dir"
            ) from None
        yield


if __name__ == "__main__":
    sys.exit(main())
