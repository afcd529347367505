"""The command line: gner-backend serve · train-base · evaluate · ..."""

import argparse
import fcntl
import logging
import os
import signal
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
    return parser


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
