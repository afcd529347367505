"""The command line: gner-backend serve · train-base · evaluate · ..."""

import argparse
import fcntl
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType

from backend import settings as settings_module
from backend.errors import BackendError, InvalidSettings
from backend.settings import Settings

_STOP_TIMEOUT_S = 20


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
    _add_train_base(
        commands.add_parser("train-base", help="train the bundled checkpoint from corpora, or go on with it")
    )
    _add_evaluate(
        commands.add_parser("evaluate", help="measure span F1 of a checkpoint, or of the paper's predictions")
    )
    _add_benchmark(commands.add_parser("benchmark", help="time every way of decoding on the same sentences"))
    return parser


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
    parser.add_argument("--sure", type=float, default=0.6, help="a draft of less probability ends the window")
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
    for name, field in Settings.model_fields.items():
        default = "" if field.default in ("", None) else f"; default {field.default}"
        parser.add_argument(
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
        return _supervise([sys.executable, "-m", "backend.cli", "web"], child_environment)


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


def _train_base(options: argparse.Namespace) -> int:
    from backend.engine.checkpoint import BUNDLED, DEFAULT_MODEL
    from backend.learning import pretrain
    from backend.learning.recipe import read_recipe

    recipe = read_recipe(options.recipe or BUNDLED / DEFAULT_MODEL / "recipe.json")
    pretrain.train(recipe, options.data, options.out, device=options.device, stop_after_s=options.stop_after_s)
    return 0


def _evaluate(options: argparse.Namespace) -> int:
    from backend.learning import evaluation

    if options.predictions is not None:
        print(evaluation.evaluate_predictions(options.predictions, options.tokenizer))
        return 0
    evaluation.evaluate_checkpoint(
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
    from backend.learning import speed

    try:
        batch_sizes = [int(size) for size in options.batch.split(",")]
    except ValueError:
        raise InvalidSettings(f"--batch {options.batch!r}: expected numbers with commas between") from None
    speed.benchmark(
        data=options.data,
        corpus=options.corpus,
        models=[model.strip() for model in options.models.split(",")],
        batch_sizes=batch_sizes,
        sentences=options.sentences,
        device=options.device,
        dtype=options.dtype,
        window=options.window,
        sure=options.sure,
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


def _supervise(command: Sequence[str], environment: dict[str, str]) -> int:
    """Run a child until it ends or we are told to stop. 0 only if we were told."""
    told: list[int] = []
    # a session of its own: Ctrl-C must reach it through us, once, and the store last
    child = subprocess.Popen(command, env=environment, start_new_session=True)

    def stop(signum: int, frame: FrameType | None) -> None:  # noqa: ARG001
        told.append(signum)
        child.terminate()

    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, stop)
    while True:
        try:
            status = child.wait(_STOP_TIMEOUT_S if told else None)
        except subprocess.TimeoutExpired:
            child.kill()
            continue
        return 0 if told else status or 1


if __name__ == "__main__":
    sys.exit(main())
