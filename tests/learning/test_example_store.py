"""The example store on a real Valkey."""

import json
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

from backend.errors import StoreUnavailable, UnknownProject
from backend.learning.annotations import LabelledSpan, Project
from backend.learning.example_store import MAX_UNLABELLED_TASKS, ExampleStore
from backend.learning.examples import Example, LabelledText, Remapping
from backend.ner.spans import Passage, Span
from backend.store import connect
from tests.support.annotations import KEY, PROJECT, TEXT, saved, text_of


@pytest.fixture
def store(valkey: redis.Redis) -> ExampleStore:
    store = ExampleStore(valkey)
    store.save_project(PROJECT)
    return store


# annotations ----------------------------------------------------------------------------------------------------


def test_what_is_put_comes_back(store: ExampleStore) -> None:
    lone_surrogate = "a\ud800b"
    annotation = saved(
        texts=(
            text_of([(0, 3, "PER", "prediction"), (4, 7, "LOC")], breaks=(4, 9)),
            text_of(text="שלום 😀\r\n", control="other"),
        ),
        predicted_version="gner-mini-1",
        predicted=(text_of([(0, 3, "PER", "prediction")], breaks=(4, 9)), text_of(text=lone_surrogate)),
        dropped={"out_of_bounds": 2},
    )
    assert store.put(KEY, [annotation]) == 1
    assert store.annotations(KEY) == (annotation,)


STORED_ANNOTATION = (
    '{"id":1,"task":10,"us":1795333439008619,"accepted":true,"truth":false,"bare":[["label","Ann met Bob in Rome",'
    '[4,9],["PER","LOC"],[]],["other","שלום 😀",[],["PER","LOC"],[]]],"texts":[[0,[[0,3,"PER","prediction"],'
    '[4,7,"LOC","manual"]]],[1,[]]],"version":"gner-mini-1","predicted":[[0,[[0,3,"PER","prediction"]]],[1,[]]],'
    '"dropped":{"out_of_bounds":2}}'
)
STORED_TEXTS = '[["label","Ann met Bob in Rome",[4],["PER","LOC"],[]]]'
STORED_PROJECT = {
    b"updated_at_us": b"50",
    b"id": b"2",
    b"config_digest": b'"c1"',
    b"controls": b'[["label",[["person","PER"],["place","LOC"]]]]',
    b"title": '"News 😀"'.encode(),
}


def test_the_stored_form_stays_as_it_is(store: ExampleStore, valkey: redis.Redis) -> None:
    """A store that another release of the backend has filled can be read, and the other way round."""
    first, second = text_of(breaks=(4, 9)), text_of(text="שלום 😀", control="other")
    predicted = LabelledSpan(0, 3, "PER", "prediction")
    annotation = saved(
        at_us=1795333439008619,
        texts=(replace(first, spans=(predicted, LabelledSpan(4, 7, "LOC", "manual"))), second),
        predicted_version="gner-mini-1",
        predicted=(replace(first, spans=(predicted,)), second),
        dropped={"out_of_bounds": 2},
    )
    noted = (text_of(breaks=(4,)),)
    prefix = f"gner:project:{KEY}"
    store.put(KEY, [annotation])
    store.note_texts(KEY, {11: noted})
    assert valkey.hgetall(f"{prefix}:annotations") == {b"1": STORED_ANNOTATION.encode()}
    assert valkey.hgetall(f"{prefix}:texts") == {b"11": STORED_TEXTS.encode()}
    assert valkey.hgetall(f"{prefix}:project") == STORED_PROJECT
    store.delete_project(KEY)
    valkey.sadd("gner:projects", KEY)
    valkey.hset(f"{prefix}:project", mapping=STORED_PROJECT)  # type: ignore[arg-type]
    valkey.hset(f"{prefix}:annotations", "1", STORED_ANNOTATION)
    valkey.hset(f"{prefix}:texts", "11", STORED_TEXTS)
    assert store.project(KEY) == PROJECT
    assert store.annotations(KEY) == (annotation,)
    assert store.unlabelled_texts(KEY) == noted


def test_an_annotation_told_again_changes_nothing(store: ExampleStore) -> None:
    assert store.put(KEY, [saved(), saved()]) == 1
    assert store.put(KEY, [saved()]) == 0
    assert store.changes(KEY) == 1


def test_the_latest_save_stays_whatever_comes_later(store: ExampleStore) -> None:
    latest = saved(at_us=1795333439008619, texts=(text_of(),))
    assert store.put(KEY, [latest]) == 1
    assert store.put(KEY, [replace(latest, updated_at_us=1795333439008618, accepted=False)]) == 0
    assert store.annotations(KEY) == (latest,)
    later = replace(latest, updated_at_us=1795333439008620, accepted=False)
    assert store.put(KEY, [later]) == 1
    assert store.annotations(KEY) == (later,)


def test_the_api_adds_the_prediction_that_a_webhook_did_not_tell(store: ExampleStore) -> None:
    from_webhook = saved()
    from_api = saved(predicted_version="v1", predicted=(text_of(),))
    assert store.put(KEY, [from_webhook]) == 1
    assert store.put(KEY, [from_api]) == 1
    assert store.put(KEY, [from_webhook]) == 0
    assert store.annotations(KEY) == (from_api,)
    assert store.changes(KEY) == 1  # nobody annotated anything


def test_a_deleted_annotation_stays_deleted(store: ExampleStore) -> None:
    store.put(KEY, [saved(1), saved(2)])
    assert store.delete_annotations(KEY, [1, 3]) == 1
    assert store.put(KEY, [saved(1, at_us=200), saved(3)]) == 0
    assert [found.id for found in store.annotations(KEY)] == [2]
    assert store.delete_annotations(KEY, [1, 3]) == 0


def test_a_deleted_task_takes_its_annotations_along(store: ExampleStore) -> None:
    store.put(KEY, [saved(1, task_id=10), saved(2, task_id=10), saved(3, task_id=11)])
    assert store.delete_tasks(KEY, [10, 12]) == 2
    assert store.put(KEY, [saved(1, task_id=10, at_us=200), saved(4, task_id=10), saved(5, task_id=12)]) == 0
    assert [found.id for found in store.annotations(KEY)] == [3]


def test_nothing_to_do_is_no_change(store: ExampleStore) -> None:
    assert (store.put(KEY, []), store.delete_annotations(KEY, []), store.delete_tasks(KEY, [])) == (0, 0, 0)
    assert store.changes(KEY) == 0


Event = Callable[[ExampleStore], int]
TASK_OF = {1: 10, 2: 10, 3: 11, 4: 12}


def puts(annotation_id: int, at_us: int, is_told: bool) -> Event:
    annotation = saved(
        annotation_id,
        TASK_OF[annotation_id],
        at_us,
        accepted=at_us % 3 != 0,
        ground_truth=at_us % 4 == 0,
        texts=(text_of([(0, 3, "PER")] if at_us % 2 else []),),
        predicted_version="v1" if is_told else None,
        predicted=(text_of(),) if is_told else (),
    )
    return lambda store: store.put(KEY, [annotation])


def deletes(annotation_id: int) -> Event:
    return lambda store: store.delete_annotations(KEY, [annotation_id])


def deletes_task(task_id: int) -> Event:
    return lambda store: store.delete_tasks(KEY, [task_id])


EVENTS = st.one_of(
    st.builds(puts, st.sampled_from(sorted(TASK_OF)), st.integers(1, 9), st.booleans()),
    st.builds(deletes, st.sampled_from(sorted(TASK_OF))),
    st.builds(deletes_task, st.sampled_from([10, 11, 12])),
)


@pytest.fixture(scope="module")
def server_url(_valkey_url: str) -> str:
    """Of a Valkey that each example of a property empties for itself."""
    return _valkey_url


@given(data=st.data())
def test_every_order_of_the_same_events_leads_to_the_same_state(server_url: str, data: st.DataObject) -> None:
    events = data.draw(st.lists(EVENTS, max_size=12))
    # some of them told twice
    again = data.draw(st.lists(st.sampled_from(events), max_size=3)) if events else []
    orders = [events, data.draw(st.permutations([*events, *again]))]
    states = []
    with redis.Redis.from_url(server_url) as client:
        for order in orders:
            client.flushall()
            store = ExampleStore(client)
            store.save_project(PROJECT)
            for event in order:
                event(store)
            snapshot = store.snapshot(KEY)
            kept = {name: client.hgetall(f"gner:project:{KEY}:{name}") for name in ("annotations", "heads")}
            states.append((store.annotations(KEY), snapshot.examples, snapshot.remapping, kept))
            by_task = {found.task_id for found in store.annotations(KEY)}
            assert {int(task_id) for task_id in client.hkeys(f"gner:project:{KEY}:tasks")} == by_task
    assert states[0] == states[1]


def test_writers_do_not_lose_each_others_annotations(store: ExampleStore) -> None:
    def write(first_id: int) -> None:
        for annotation_id in range(first_id, first_id + 20):
            store.put(KEY, [saved(annotation_id, task_id=10)])

    threads = [threading.Thread(target=write, args=(first_id,)) for first_id in (0, 20, 40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(store.annotations(KEY)) == store.changes(KEY) == 60
    assert store.delete_tasks(KEY, [10]) == 60


# changes --------------------------------------------------------------------------------------------------------


def test_changes_count_what_matters_to_a_training(store: ExampleStore) -> None:
    store.put(KEY, [saved(1), saved(2, accepted=False)])
    assert store.changes(KEY) == 1
    store.put(KEY, [saved(1, at_us=101, accepted=False), saved(2, at_us=101, accepted=True)])
    assert store.changes(KEY) == 3
    store.delete_annotations(KEY, [1, 2])
    assert store.changes(KEY) == 4
    assert store.trained_changes(KEY) == 0
    store.note_trained(KEY, 4)
    assert store.trained_changes(KEY) == 4


def test_projects_do_not_see_each_other(store: ExampleStore) -> None:
    store.save_project(replace(PROJECT, key="3", id=3))
    store.put(KEY, [saved(1)])
    store.put("3", [saved(1, texts=())])
    store.delete_tasks("3", [10])
    assert [found.id for found in store.annotations(KEY)] == [1]
    assert store.annotations("3") == ()
    assert (store.changes(KEY), store.changes("3")) == (1, 2)


# projects -------------------------------------------------------------------------------------------------------


def test_projects(store: ExampleStore) -> None:
    bare = Project("10", 10, "", "c2", ())
    store.save_project(bare)
    assert store.projects() == (PROJECT, bare)
    assert store.project(KEY) == PROJECT
    assert store.project("4") is None


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        pytest.param({"title": "Newer", "updated_at_us": 51}, {"title": "Newer", "updated_at_us": 51}, id="newer"),
        pytest.param({"title": "Same"}, {"title": "Same"}, id="as new"),
        pytest.param({"title": "Older", "config_digest": "c0", "updated_at_us": 49}, {}, id="overtaken"),
        pytest.param(
            {"title": "", "config_digest": "c2", "updated_at_us": 0}, {"config_digest": "c2"}, id="of an ML call"
        ),
        pytest.param({"controls": ()}, {"controls": ()}, id="other controls"),
    ],
)
def test_a_project_is_saved_again(store: ExampleStore, change: dict[str, Any], expected: dict[str, Any]) -> None:
    store.save_project(replace(PROJECT, **change))
    assert store.project(KEY) == replace(PROJECT, **expected)


def test_nothing_is_left_of_a_deleted_project(store: ExampleStore, valkey: redis.Redis) -> None:
    store.save_project(replace(PROJECT, key="3"))
    store.put(KEY, [saved(1), saved(2, task_id=11), saved(3, task_id=12)])
    store.delete_annotations(KEY, [2])
    store.delete_tasks(KEY, [12])
    store.note_texts(KEY, {20: (text_of(),)})
    store.note_trained(KEY, 1)
    store.save_params(KEY, {"a": 1})
    assert len(valkey.keys(f"gner:project:{KEY}:*")) == 10
    store.delete_project(KEY)
    assert valkey.keys(f"gner:project:{KEY}:*") == []
    assert [project.key for project in store.projects()] == ["3"]


def test_params(store: ExampleStore) -> None:
    assert store.params(KEY) == {}
    store.save_params(KEY, {"train_after": 5, "note": "é"})
    assert store.params(KEY) == {"train_after": 5, "note": "é"}


# unlabelled texts -----------------------------------------------------------------------------------------------


def test_unlabelled_texts_are_of_tasks_without_an_accepted_annotation(store: ExampleStore) -> None:
    texts = {task_id: (text_of(text=f"Text {task_id}"), text_of(text=f"More {task_id}")) for task_id in (12, 9, 10, 11)}
    store.note_texts(KEY, texts)
    store.put(KEY, [saved(1, task_id=10), saved(2, task_id=11, accepted=False)])
    assert store.unlabelled_texts(KEY) == (*texts[9], *texts[11], *texts[12])
    store.delete_annotations(KEY, [1])
    store.delete_tasks(KEY, [9])
    assert store.unlabelled_texts(KEY) == (*texts[10], *texts[11], *texts[12])


def test_the_first_texts_stay_and_labelled_ones_make_room(store: ExampleStore) -> None:
    first = {task_id: (text_of(text=f"Text {task_id}"),) for task_id in range(MAX_UNLABELLED_TASKS)}
    store.note_texts(KEY, first)
    store.note_texts(KEY, {0: (text_of(text="changed"),), 1000: (text_of(text="one too many"),)})
    assert store.unlabelled_texts(KEY) == tuple(text for of_task in first.values() for text in of_task)
    store.put(KEY, [saved(1, task_id=5), saved(2, task_id=6)])
    store.note_texts(KEY, {task_id: (text_of(text=f"Text {task_id}"),) for task_id in (1000, 5, 1001, 1002)})
    noted = [text.passage.text for text in store.unlabelled_texts(KEY)]
    assert len(noted) == MAX_UNLABELLED_TASKS
    assert noted[-2:] == ["Text 1000", "Text 1001"]


def test_a_deleted_task_is_not_noted(store: ExampleStore) -> None:
    store.delete_tasks(KEY, [10])
    store.note_texts(KEY, {10: (text_of(),)})
    assert store.unlabelled_texts(KEY) == ()


# forgetting -----------------------------------------------------------------------------------------------------


def test_forgetting_a_task(store: ExampleStore) -> None:
    store.note_texts(KEY, {10: (text_of(),), 11: (text_of(),)})
    store.put(KEY, [saved(1), saved(2, texts=(text_of(text="Another text"),)), saved(3, task_id=11)])
    forgotten = store.forget(KEY, task_id=10)
    assert forgotten.annotation_ids == (1, 2)
    assert sorted(text.passage.text for text in forgotten.texts) == [TEXT, "Another text"]
    assert not any(text.spans for text in forgotten.texts)
    assert [found.id for found in store.annotations(KEY)] == [3]
    assert store.put(KEY, [saved(1, at_us=200), saved(9)]) == 0
    store.note_texts(KEY, {10: (text_of(),)})
    assert store.forget(KEY, task_id=10).texts == ()


def test_forgetting_an_annotation(store: ExampleStore) -> None:
    store.note_texts(KEY, {10: (text_of(text="noted"),)})
    store.put(KEY, [saved(1), saved(2)])
    forgotten = store.forget(KEY, annotation_id=1)
    assert forgotten.annotation_ids == (1,)
    assert [text.passage.text for text in forgotten.texts] == [TEXT, "noted"]
    assert [found.id for found in store.annotations(KEY)] == [2]
    assert store.put(KEY, [saved(1, at_us=200)]) == 0
    assert store.forget(KEY, annotation_id=1).annotation_ids == ()


def test_what_was_to_be_forgotten_is_known_and_what_was_deleted_is_not(store: ExampleStore) -> None:
    store.put(KEY, [saved(1), saved(2, task_id=11), saved(3, task_id=12)])
    store.delete_tasks(KEY, [12])
    store.forget(KEY, task_id=11)
    store.forget(KEY, annotation_id=1)
    assert store.forgotten_of(KEY, [(10, 1), (11, 2), (12, 3)]) == ("annotation 1", "task 11")
    assert store.forgotten_of(KEY, []) == ()


def test_all_texts_of_a_project(store: ExampleStore) -> None:
    store.note_texts(KEY, {20: (text_of(text="noted"),)})
    store.put(KEY, [saved(1), saved(2, texts=(text_of(text="Another text"),))])
    assert sorted(text.passage.text for text in store.texts(KEY)) == sorted([TEXT, "Another text", "noted"])
    assert not any(text.spans for text in store.texts(KEY))
    store.delete_project(KEY)
    assert store.texts(KEY) == ()


def test_finding_who_holds_a_task_or_an_annotation(store: ExampleStore) -> None:
    store.save_project(replace(PROJECT, key="3"))
    store.put(KEY, [saved(1, task_id=10)])
    store.put("3", [saved(1, task_id=11)])
    store.note_texts("3", {12: (text_of(),)})
    assert store.find(annotation_id=1) == (KEY, "3")
    assert store.find(task_id=10) == (KEY,)
    assert store.find(task_id=12) == ("3",)
    assert store.find(task_id=13) == store.find(annotation_id=10) == ()


# snapshots ------------------------------------------------------------------------------------------------------


def test_a_snapshot_of_a_project_that_nobody_saved(store: ExampleStore) -> None:
    with pytest.raises(UnknownProject, match="nothing is stored of project '5'"):
        store.snapshot("5")


def test_a_snapshot(store: ExampleStore) -> None:
    store.put(KEY, [saved(3, task_id=11, texts=(text_of(),)), saved(1), saved(2, task_id=12, accepted=False)])
    snapshot = store.snapshot(KEY)
    both = ("person", "place")
    assert snapshot.examples == (
        Example(10, 1, False, (LabelledText(Passage(TEXT), both, (Span(0, 3, "person", 1.0),)),)),
        Example(11, 3, False, (LabelledText(Passage(TEXT), both, ()),)),  # nothing in it, which is worth learning too
    )
    assert snapshot.remapping == Remapping(2, 0, 0, 0, 0, ())
    assert (snapshot.project, snapshot.changes) == (PROJECT, 2)


# the server -----------------------------------------------------------------------------------------------------


def test_values_are_compact(store: ExampleStore, valkey: redis.Redis) -> None:
    labelled = text_of([(0, 3, "PER")])
    store.put(KEY, [saved(texts=(labelled,), predicted_version="v1", predicted=(labelled,))])
    value: Any = valkey.hget(f"gner:project:{KEY}:annotations", "1")
    assert json.loads(value)
    assert value.count(TEXT.encode()) == 1
    assert b", " not in value


def test_a_store_that_is_away(tmp_path: Path) -> None:
    store = ExampleStore(connect(f"unix://{tmp_path}/nobody.sock"))
    texts = {1: (text_of(),)}
    calls: list[Callable[[], object]] = [
        lambda: store.save_project(PROJECT),
        lambda: store.projects(),
        lambda: store.project(KEY),
        lambda: store.put(KEY, [saved()]),
        lambda: store.delete_annotations(KEY, [1]),
        lambda: store.delete_tasks(KEY, [1]),
        lambda: store.snapshot(KEY),
        lambda: store.annotations(KEY),
        lambda: store.changes(KEY),
        lambda: store.trained_changes(KEY),
        lambda: store.note_trained(KEY, 1),
        lambda: store.params(KEY),
        lambda: store.save_params(KEY, {}),
        lambda: store.note_texts(KEY, texts),
        lambda: store.unlabelled_texts(KEY),
        lambda: store.forget(KEY, task_id=1),
        lambda: store.find(task_id=1),
        lambda: store.delete_project(KEY),
    ]
    for call in calls:
        with pytest.raises(StoreUnavailable, match="the store does not answer"):
            call()


def test_a_server_that_was_restarted_knows_no_scripts(store: ExampleStore, valkey: redis.Redis) -> None:
    store.put(KEY, [saved(1)])
    valkey.script_flush()
    assert store.put(KEY, [saved(2)]) == 1
