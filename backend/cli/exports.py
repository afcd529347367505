"""A JSON export of Label Studio -> examples of a project."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from backend.cli.workspace import Workspace
from backend.errors import CorpusError, InvalidRequest, InvalidSettings, UnknownProject

if TYPE_CHECKING:
    from backend.labelstudio import wire


def import_export(here: Workspace, options: argparse.Namespace) -> None:
    """Store the annotations of `--data`. Raises CorpusError, InvalidSettings, InvalidLabelConfig, StoreUnavailable."""
    from backend.labelstudio import annotations, schema, wire

    ref = wire.parse_project_ref(options.project)
    assert ref is not None
    items = _read(options.data)
    label_schema = schema.parse(_label_config(here, options, ref.id))
    try:
        key = here.management.project(options.project)
    except UnknownProject:
        key = ref.key
    here.examples.save_project(annotations.project_of_ref(wire.ProjectRef(ref.id, key), label_schema))
    changed = here.examples.put(key, [annotations.annotation_of(item, label_schema) for item in items])
    print(f"{len(items)} annotations in {options.data}, {changed} of them new or changed")


def _read(path: Path) -> "list[wire.AnnotatedTask]":
    from backend.labelstudio import wire

    try:
        tasks = json.loads(path.read_text(encoding="utf-8"))
        items = [item for index, task in enumerate(tasks) for item in wire.parse_annotated_task(task, f"[{index}]")]
    except (OSError, ValueError, TypeError, InvalidRequest) as error:
        raise CorpusError(f"{path} is not a JSON export of Label Studio: {error}") from error
    if not items:
        raise CorpusError(f"{path} holds no annotations; export the project as JSON, not as JSON-MIN")
    return items


def _label_config(here: Workspace, options: argparse.Namespace, project_id: int) -> str:
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
            "LABEL_STUDIO_URL and LABEL_STUDIO_API_KEY, to have it fetched"
        )
    with LabelStudioClient(settings.label_studio_url, settings.label_studio_api_key) as client:
        return client.project(project_id).label_config
