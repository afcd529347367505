"""Reconciliation with what Label Studio has; tests/e2e does it with a real one."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import redis

from backend.errors import InvalidLabelConfig, LabelStudioUnavailable, UnknownProject
from backend.labelstudio import annotations, schema, wire
from backend.labelstudio.sync import Reconciled, reconcile
from backend.learning.example_store import ExampleStore
from backend.ner.labels import PromptLabels

CONFIG = '<View><Labels name="label" toName="text"><Label value="X"/></Labels><Text name="text" value="$text"/></View>'
KEY = "2.1795333437"


def item(annotation_id: int, task_id: int = 10, at_us: int = 100, **fields: Any) -> wire.AnnotatedTask:
    known: dict[str, Any] = {
        "result": (),
        "was_cancelled": False,
        "ground_truth": False,
        "prediction": {},
    }
    annotation = wire.AnnotationPayload(id=annotation_id, task_id=task_id, updated_at_us=at_us, **(known | fields))
    return wire.AnnotatedTask(annotation, wire.Task(task_id, {"text": f"Text {task_id}"}))


@dataclass
class FakeSource:
    """Label Studio with one project. `meanwhile` is called when the list has been read."""

    items: list[wire.AnnotatedTask]
    label_config: str = CONFIG
    not_listed: set[int] = field(default_factory=set)  # annotations that are there, on a page that was missed
    meanwhile: Callable[[], object] = lambda: None

    def project(self, project_id: int) -> wire.ProjectPayload:
        if project_id != 2:
            raise UnknownProject(f"no project {project_id}")
        return wire.ProjectPayload(2, KEY, "News", self.label_config, 0)

    def annotated_tasks(self, project_id: int) -> Iterator[wire.AnnotatedTask]:
        assert project_id == 2
        yield from self.items
        self.meanwhile()

    def has_annotation(self, annotation_id: int) -> bool:
        return annotation_id in self.not_listed | {item.annotation.id for item in self.items}


@pytest.fixture
def store(valkey: redis.Redis) -> ExampleStore:
    return ExampleStore(valkey)


def ids(store: ExampleStore) -> list[int]:
    return [annotation.id for annotation in store.annotations(KEY)]


def test_a_project_that_was_never_seen(store: ExampleStore) -> None:
    source = FakeSource([item(1), item(2, 11, was_cancelled=True)])
    assert reconcile(source, store, 2) == Reconciled(KEY, listed=2, added=2, changed=0, removed=0)
    assert reconcile(source, store, 2) == Reconciled(KEY, listed=2, added=0, changed=0, removed=0)
    snapshot = store.snapshot(KEY)
    assert (snapshot.project.title, snapshot.project.controls[0].labels) == ("News", PromptLabels.of([("x", "X")]))
    assert [example.annotation_id for example in snapshot.examples] == [1]


def test_what_no_webhook_told(store: ExampleStore) -> None:
    reconcile(FakeSource([item(1), item(2), item(3)]), store, 2)
    now = FakeSource([item(1, at_us=101, ground_truth=True), item(3), item(4)])
    assert reconcile(now, store, 2) == Reconciled(KEY, listed=3, added=1, changed=1, removed=1)
    assert ids(store) == [1, 3, 4]
    assert store.annotations(KEY)[0].ground_truth


def test_a_newer_save_than_the_listed_one_stays(store: ExampleStore) -> None:
    reconcile(FakeSource([item(1, at_us=200, ground_truth=True)]), store, 2)
    assert reconcile(FakeSource([item(1, at_us=100)]), store, 2).changed == 0
    assert store.annotations(KEY)[0].ground_truth


def test_an_annotation_that_arrives_meanwhile_is_not_removed(store: ExampleStore) -> None:
    parsed = schema.parse(CONFIG)
    source = FakeSource([item(1)], meanwhile=lambda: store.put(KEY, [annotations.annotation_of(item(2), parsed)]))
    assert reconcile(source, store, 2).removed == 0
    assert ids(store) == [1, 2]


def test_an_annotation_that_slipped_from_the_list_is_not_removed(store: ExampleStore) -> None:
    reconcile(FakeSource([item(1), item(2), item(3)]), store, 2)
    assert reconcile(FakeSource([item(1)], not_listed={2}), store, 2).removed == 1
    assert ids(store) == [1, 2]


def test_what_was_deleted_or_forgotten_does_not_come_back(store: ExampleStore) -> None:
    source = FakeSource([item(1), item(2, 11), item(3, 12)])
    reconcile(source, store, 2)
    store.delete_annotations(KEY, [1])
    store.forget(KEY, task_id=11)
    assert reconcile(source, store, 2) == Reconciled(KEY, listed=3, added=0, changed=0, removed=0)
    assert ids(store) == [3]


def test_many_annotations(store: ExampleStore) -> None:
    items = [item(number, task_id=number) for number in range(250)]
    assert reconcile(FakeSource(items), store, 2).added == 250
    assert len(store.snapshot(KEY).examples) == 250
    assert reconcile(FakeSource([]), store, 2).removed == 250


def test_a_changed_label_config_is_taken_over(store: ExampleStore) -> None:
    reconcile(FakeSource([item(1)]), store, 2)
    reconcile(FakeSource([item(1)], label_config=CONFIG.replace('"X"', '"Y"')), store, 2)
    assert store.snapshot(KEY).remapping.removed_labels == ("X",)


def test_nothing_is_removed_when_the_list_breaks_off(store: ExampleStore) -> None:
    reconcile(FakeSource([item(1), item(2)]), store, 2)

    def breaks() -> None:
        raise LabelStudioUnavailable("gone")

    with pytest.raises(LabelStudioUnavailable):
        reconcile(FakeSource([], meanwhile=breaks), store, 2)
    assert ids(store) == [1, 2]


def test_projects_that_cannot_be_reconciled(store: ExampleStore) -> None:
    with pytest.raises(UnknownProject):
        reconcile(FakeSource([]), store, 3)
    with pytest.raises(InvalidLabelConfig):
        reconcile(FakeSource([], label_config="<View/>"), store, 2)
    assert store.projects() == ()
