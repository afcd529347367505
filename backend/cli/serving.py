"""serve, web, worker, work-horse: for those who run the backend."""

import argparse
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from backend.cli.flags import OURSELVES, add_settings, read_settings
from backend.cli.workspace import only_backend_of
from backend.errors import InvalidSettings, StoreUnavailable
from backend.processes import Children
from backend.settings import Settings, without_password

if TYPE_CHECKING:
    from backend.engine.checkpoint import Checkpoint


_BUNDLED_NOTE = (
    "  gner-mini is small and made for English. With a GPU, the published checkpoints are better:",
    "    gner-backend serve --model dyyyyyyyy/GNER-T5-base   (or -large, -xl, -xxl, GNER-LLaMA-7B)",
)


def add_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add these subcommands."""
    serve = commands.add_parser("serve", help="run the backend", formatter_class=argparse.RawDescriptionHelpFormatter)
    serve.description = "Run the backend. Every setting is a flag and an environment variable; the flag wins."
    serve.set_defaults(run=_serve)
    web = commands.add_parser("web", help="run the web process alone, over a running store (serve starts it)")
    web.set_defaults(run=_web)
    worker = commands.add_parser("worker", help="train what is requested, over a running store (serve starts one)")
    worker.set_defaults(run=_worker)
    horse = commands.add_parser("work-horse", help="do one job of a running worker (worker starts it)")
    for name in ("worker", "job", "execution"):
        horse.add_argument(f"of_{name}", metavar=name.upper())
    horse.set_defaults(run=_work_horse)
    for parser in (serve, web, worker, horse):
        add_settings(parser)


def _web(options: argparse.Namespace) -> int:
    from backend import web  # torch takes seconds to import: only who needs it waits

    web.run(read_settings(options))
    return 0


def _serve(options: argparse.Namespace) -> int:
    """Store, banner, web process; until Ctrl-C or SIGTERM, or until the web process ends by itself."""
    from backend.engine import checkpoint as checkpoints

    settings = read_settings(options)
    checkpoint = checkpoints.resolve(settings.model)
    device = checkpoints.pick_device(settings.device)
    with ExitStack() as stack:
        lock = stack.enter_context(only_backend_of(settings.model_dir))
        _check_address(settings.host, settings.port)
        url, where = stack.enter_context(_store(settings))
        # Only the children read this: the user's REDIS_URL, empty or not, has been resolved here.
        children = Children({**os.environ, **settings.environment(), "REDIS_URL": url}, [lock])
        print(_banner(settings, checkpoint, str(device), where), flush=True)
        if settings.worker == "on":
            stack.enter_context(children.kept_running("worker", [*OURSELVES, "worker"]))
        return children.supervise([*OURSELVES, "web"])


@contextmanager
def _store(settings: Settings) -> Iterator[tuple[str, str]]:
    """The store's URL, and what the banner says of it. An embedded store runs for as long as this is entered."""
    from backend import store

    if settings.redis_url:
        store.connect(settings.redis_url)  # raises InvalidSettings for a wrong URL
        yield settings.redis_url, without_password(settings.redis_url)
        return
    with store.embedded(settings.store_dir) as url:
        yield url, f"embedded Valkey in {settings.store_dir}"


def _check_address(host: str, port: int) -> None:
    """Raises InvalidSettings if nothing can listen there, before anything is started."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with socket.create_server((host, port), family=family):
            pass
    except OSError as error:
        raise InvalidSettings(f"cannot listen on {host}:{port} (GNER_HOST, PORT): {error.strerror or error}") from error


def _banner(settings: Settings, checkpoint: "Checkpoint", device: str, store: str) -> str:
    f1 = ", ".join(f"{corpus} {score:.2f}" for corpus, score in checkpoint.scores.items()) or "not measured"
    rows = [
        ("Label Studio", f"add http://<this machine>:{settings.port} as the project's model (Settings > Model)", ""),
        ("checkpoint", f"{checkpoint.name} (version {checkpoint.version}; span F1: {f1})", "--model"),
        ("device", device, "--device"),
        ("store", store, "--redis-url"),
        ("training", _training_line(settings), "--train-after, --worker"),
        ("access", _access_line(settings), ""),
        ("data", str(settings.model_dir.resolve()), "--model-dir"),
    ]
    lines = [f"  {key:<13} {value}" + (f"   [{switch}]" if switch else "") for key, value, switch in rows]
    note = _BUNDLED_NOTE if checkpoint.name == "gner-mini" else ()
    end = "  Press Ctrl-C to stop; --help lists all settings."
    return "\n".join(["", "GNER backend for Label Studio", *lines, *note, end, ""])


def _training_line(settings: Settings) -> str:
    when = f"after {settings.train_after} changed annotations, or on request" if settings.train_after else "on request"
    return when + (", by a worker on this machine" if settings.worker == "on" else ", by workers started elsewhere")


def _access_line(settings: Settings) -> str:
    if settings.auth is not None:
        return f"with the password of {settings.basic_auth_user}"
    if settings.host in ("127.0.0.1", "::1", "localhost"):
        return "from this machine, without a password"
    return (
        f"WARNING: whoever reaches port {settings.port} may use it: set BASIC_AUTH_USER and BASIC_AUTH_PASS, "
        "or GNER_HOST=127.0.0.1"
    )


def _worker(options: argparse.Namespace) -> int:
    from backend import worker

    settings = read_settings(options)
    os.environ.update(settings.environment())  # for the process of each job
    if not settings.redis_url:
        _check_embedded_store(settings)
    return 0 if worker.run(settings, [*OURSELVES, "work-horse"]) else 1


def _work_horse(options: argparse.Namespace) -> int:
    from backend import worker

    worker.work_horse(read_settings(options), options.of_worker, options.of_job, options.of_execution)
    return 0


def _check_embedded_store(settings: Settings) -> None:
    from backend import store

    url = store.embedded_url(settings.store_dir)
    with store.connect(url) as client:
        if not store.answers(client):
            raise StoreUnavailable(
                f"no backend is running over MODEL_DIR={str(settings.model_dir)!r}; start one with "
                "`gner-backend serve`, or give the REDIS_URL that it uses"
            )
