"""Every setting as a flag, for the subcommands that take settings."""

import argparse
import logging
import os
import sys

from backend import settings as settings_module
from backend.settings import Settings

# How a subcommand starts another one in a process of its own.
OURSELVES = (sys.executable, "-m", "backend.cli")


def add_settings(parser: argparse.ArgumentParser) -> None:
    """A flag for each setting, with its variable, its explanation and its default."""
    group = parser.add_argument_group("settings")
    for name, field in Settings.model_fields.items():
        default = "" if field.default in ("", None) else f"; default {field.default}"
        group.add_argument(
            settings_module.flag(name),
            dest=name,
            metavar=settings_module.variable(name),
            help=f"{field.description}{default}".replace("%", "%%"),
        )


def read_settings(options: argparse.Namespace) -> Settings:
    """The settings of the environment and of the flags. Raises InvalidSettings.

    Sets up logging, and that nobody else on this machine may read the files we write: they hold annotators' texts.
    """
    os.umask(0o077)
    settings = settings_module.read(**{name: getattr(options, name) for name in Settings.model_fields})
    logging.basicConfig(level=settings.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    return settings
