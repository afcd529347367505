"""The command line: `gner-backend`. Each module holds the subcommands for one audience.

A subcommand imports what it needs when it runs, so that none waits for torch in vain.
"""

import argparse
import sys
from collections.abc import Sequence

from backend.cli import corpora, projects, serving
from backend.errors import BackendError


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point. An error that a user can act on ends in one sentence and status 2."""
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
    for audience in (serving, projects, corpora):
        audience.add_commands(commands)
    return parser
