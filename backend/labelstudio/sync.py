"""Make a project's examples equal to what Label Studio has: webhooks can be lost, and some changes send none."""

import itertools
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from backend.labelstudio import annotations, schema, wire
from backend.learning.example_store import ExampleStore

log = logging.getLogger(__name__)

_BATCH = 100


class AnnotationSource(Protocol):
    """What is needed of LabelStudioClient."""

    def project(self, project_id: int) -> wire.ProjectPayload: ...

    def annotated_tasks(self, project_id: int) -> Iterator[wire.AnnotatedTask]: ...

    def has_annotation(self, annotation_id: int) -> bool: ...


@dataclass(frozen=True, slots=True)
class Reconciled:
    """What a reconciliation did; the counts are of annotations."""

    project: str  # its key
    listed: int  # in Label Studio
    added: int
    changed: int
    removed: int


def reconcile(source: AnnotationSource, store: ExampleStore, project_id: int) -> Reconciled:
    """Add and update the annotations that Label Studio has of a project, and delete those that it no longer has.

    Annotations that arrive meanwhile are left alone, and what was forgotten on request stays forgotten. A new one
    counts as annotated under the current label config.
    Raises UnknownProject, InvalidLabelConfig, LabelStudioUnavailable, StoreUnavailable; earlier changes then stay.
    """
    project = source.project(project_id)
    label_schema = schema.parse(project.label_config)
    store.save_project(annotations.project_of(project, label_schema))
    before = {annotation.id for annotation in store.annotations(project.key)}
    listed: set[int] = set()
    added = changed = 0
    items = source.annotated_tasks(project_id)
    while batch := [annotations.annotation_of(item, label_schema) for item in itertools.islice(items, _BATCH)]:
        added += store.put(project.key, [annotation for annotation in batch if annotation.id not in before])
        changed += store.put(project.key, [annotation for annotation in batch if annotation.id in before])
        listed.update(annotation.id for annotation in batch)
    # a missing one may still exist: tasks change pages when others are deleted. A deletion here is final
    gone = [annotation_id for annotation_id in sorted(before - listed) if not source.has_annotation(annotation_id)]
    removed = store.delete_annotations(project.key, gone)
    done = Reconciled(project.key, len(listed), added, changed, removed)
    log.info("project %s is now as in Label Studio: %s", project.key, done)
    return done
