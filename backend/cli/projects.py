"""train, versions, promote, rollback, sync, forget: for those who look after projects."""

import argparse
import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from backend.cli.exports import import_export
from backend.cli.flags import add_settings, read_settings
from backend.cli.workspace import opened
from backend.errors import InvalidSettings, UnknownProject

if TYPE_CHECKING:
    from backend.learning.progress import Progress
    from backend.learning.registry import VersionInfo
    from backend.learning.training import TrainingResult
    from backend.management import Removed

_PROJECT = "project's id in Label Studio, or its key"


def add_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add these subcommands."""
    _add_train(commands.add_parser("train", help="train a project here and now"))
    _add_versions(commands.add_parser("versions", help="list the trained versions and which one is current"))
    _add_promote(commands.add_parser("promote", help="use this version from now on"))
    _add_rollback(commands.add_parser("rollback", help="use the version that was current before"))
    _add_sync(commands.add_parser("sync", help="make the examples equal to Label Studio's (needs its API key)"))
    _add_forget(
        commands.add_parser(
            "forget", help="remove an example with its predictions, a trained version, or a whole project"
        )
    )


def _add_train(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--project", required=True, metavar="N", help=_PROJECT)
    parser.add_argument(
        "--data",
        type=Path,
        metavar="FILE",
        help="a JSON export of Label Studio, which is added to the project's examples; or a .conll file, which is "
        "trained on instead of them",
    )
    parser.add_argument(
        "--label-config", type=Path, metavar="FILE", help="the project's labelling interface, for a JSON export"
    )
    parser.set_defaults(run=_train)
    add_settings(parser)


def _add_versions(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--project", metavar="N", help=f"{_PROJECT}; default: all")
    parser.add_argument("--json", action="store_true", help="everything known about them, as JSON")
    parser.set_defaults(run=_versions)
    add_settings(parser)


def _add_promote(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--project", required=True, metavar="N", help=_PROJECT)
    parser.add_argument("version", metavar="VERSION", help="one of the project's versions, or the checkpoint's own")
    parser.set_defaults(run=_promote)
    add_settings(parser)


def _add_rollback(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--project", required=True, metavar="N", help=_PROJECT)
    parser.set_defaults(run=_rollback)
    add_settings(parser)


def _add_sync(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--project", required=True, metavar="N", help=_PROJECT)
    parser.set_defaults(run=_sync)
    add_settings(parser)


def _add_forget(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--project", metavar="N", help=f"{_PROJECT}; default: all that have it")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--task", type=int, metavar="ID", help="all annotations of this task")
    what.add_argument("--annotation", type=int, metavar="ID", help="this annotation")
    what.add_argument("--version", metavar="NAME", help="this trained version, which must not be the current one")
    what.add_argument("--everything", action="store_true", help="the whole project, with its trained versions")
    parser.add_argument("--retrain", action="store_true", help="train the project again, from the checkpoint")
    parser.set_defaults(run=_forget)
    add_settings(parser)


def _train(options: argparse.Namespace) -> int:
    from backend import worker

    worker.stand_back()
    of_file = options.data is not None and options.data.suffix == ".conll"
    result = _train_on_file(options) if of_file else _train_on_examples(options)
    print(f"{result.version}: {'promoted' if result.promoted else 'not promoted'}. {result.reason}")
    print(f"{_figures(result.scores)} ({result.seconds:.0f} s)")
    return 0


def _train_on_file(options: argparse.Namespace) -> "TrainingResult":
    from backend.learning import conll_snapshot, lease, training

    settings = read_settings(options)
    key = _key_for_file(options)
    snapshot = conll_snapshot.read_snapshot(options.data, key)
    return training.train_version(settings, snapshot, lease.TrainingRun(key, on_progress=_show))


def _train_on_examples(options: argparse.Namespace) -> "TrainingResult":
    from backend import worker
    from backend.learning import lease

    with opened(options) as here:
        if options.data is not None:
            import_export(here, options)
        key = here.management.project(options.project)
        with lease.training(here.client, key, _show) as run:
            return worker.train_project(here.settings, here.client, run)


def _show(progress: "Progress") -> None:
    print(progress, flush=True)


def _key_for_file(options: argparse.Namespace) -> str:
    """The project's key; of an unknown project it is what was given, since a file needs nothing stored."""
    try:
        with opened(options) as here:
            return here.management.project(options.project)
    except UnknownProject:
        if re.fullmatch(r"[0-9]{1,20}(\.[0-9]{1,20})?", options.project, re.ASCII):
            return str(options.project)
        raise


def _versions(options: argparse.Namespace) -> int:
    with opened(options) as here:
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
        print(f"project {key}: {current}", *(_version_lines(info, current) for info in versions), sep="\n")
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
    with opened(options) as here:
        key = here.management.project(options.project)
        print(f"project {key}: {here.management.promote(key, options.version)}")
    return 0


def _rollback(options: argparse.Namespace) -> int:
    with opened(options) as here:
        key = here.management.project(options.project)
        print(f"project {key}: {here.management.rollback(key)}")
    return 0


def _sync(options: argparse.Namespace) -> int:
    from backend import worker
    from backend.labelstudio import wire

    ref = wire.parse_project_ref(options.project)
    assert ref is not None
    with opened(options) as here:
        done = worker.synchronise(here.settings, here.examples, ref.id)
    print(
        f"project {done.project}: {done.listed} annotations in Label Studio; here {done.added} added, "
        f"{done.changed} changed, {done.removed} removed"
    )
    return 0


def _forget(options: argparse.Namespace) -> int:
    from backend.learning.jobs import TrainingQueue
    from backend.management import Wanted

    if options.project is None and (options.version or options.everything):
        raise InvalidSettings("--version and --everything need --project")
    with opened(options) as here:
        project = None if options.project is None else here.management.project(options.project)
        if project is not None and options.version:
            here.management.remove_version(project, options.version)
            print(f"project {project}: version {options.version} is deleted")
            return 0
        if project is not None and options.everything:
            removed = here.management.forget_project(project)
            print(f"project {project}: {_removal(removed)}; versions deleted: {', '.join(removed.versions) or 'none'}")
            return 0
        for removed in here.management.forget(Wanted(options.task, options.annotation), project):
            print(f"project {removed.project}: {_removal(removed)}")
            print(f"  versions trained on it: {', '.join(removed.versions) or 'none'}")
            if options.retrain:
                # the current version may have seen it: the next one must not be trained from that
                queue = TrainingQueue(here.client, here.settings.train_after)
                print(f"  a training without it is requested: {queue.request(removed.project, from_base=True)}")
    return 0


def _removal(removed: "Removed") -> str:
    return f"{len(removed.annotation_ids)} annotations and {removed.predictions} cached predictions are removed"
