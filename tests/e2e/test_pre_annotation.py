"""Import, "Retrieve predictions", and what Label Studio has stored then."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import requests

from tests.support import labelled_sentences as labelled
from tests.support.backend import Backend, Counters
from tests.support.browser import Browser
from tests.support.label_studio import Json, LabelStudio
from tests.support.processes import wait_until
from tests.support.projects import HYPERTEXT, PARAGRAPHS, TEXT, Kind
from tests.support.wiretap import Wiretap

pytestmark = pytest.mark.e2e

# Label Studio gives up on a webhook after this long, and never tries again.
WEBHOOK_TIMEOUT_S = 1.0


def counters_at_rest(backend: Backend) -> Counters:
    """The counters once nothing is decoded any more: new tasks may be predicted in the background."""
    seen: list[Counters] = []

    def twice_the_same() -> bool:
        seen.append(backend.counters())
        return seen[-2:-1] == seen[-1:]

    wait_until("the backend to be idle", twice_the_same, timeout_s=120, poll_s=1)
    return seen[-1]


def assert_pre_annotated(label_studio: LabelStudio, project: int, kind: Kind, browser: Browser | None) -> list[Json]:
    """Every task has one prediction of the version told by /setup, of legal regions. The tasks."""
    version = label_studio.backend(project)["model_version"]
    tasks = label_studio.tasks(project)
    for task in tasks:
        (prediction,) = task["predictions"]
        assert prediction["model_version"] == version
        assert prediction["score"] is None or 0 <= prediction["score"] <= 1
        for region in prediction["result"]:
            value = region["value"]
            assert 0 <= region["score"] <= 1
            covered = kind.covered(browser, task["data"], value)  # type: ignore[arg-type]
            assert covered == covered.strip(), f"{covered!r} in task {task['data']}"
            assert value.get("text", covered) == covered, task["data"]
            (label,) = value[kind.value_key]
            assert label in {"Person", "Organization", "Location"}
    return tasks


def test_two_hundred_real_sentences(label_studio: LabelStudio, tap: Wiretap, backend: Backend) -> None:
    sentences = [s for corpus in ("broad-twitter", "wikigold") for s in labelled.sentences(corpus, "test", 100)]
    check_text_project(label_studio, tap, backend, "Corpora", [{"text": sentence.text} for sentence in sentences])


def test_two_hundred_samples(label_studio: LabelStudio, tap: Wiretap, backend: Backend) -> None:
    check_text_project(label_studio, tap, backend, "Samples", TEXT.tasks)


def check_text_project(
    label_studio: LabelStudio, tap: Wiretap, backend: Backend, title: str, tasks: list[Json]
) -> None:
    assert len(tasks) == 200
    project = label_studio.create_project(title, TEXT.label_config)
    connected = label_studio.connect(project, tap.url)
    assert connected["readable_state"] == "Connected"
    assert connected["model_version"]

    label_studio.import_tasks(project, tasks)
    assert label_studio.retrieve_predictions(project)["processed_items"] == 200
    stored = assert_pre_annotated(label_studio, project, TEXT, browser=None)
    assert [task["data"] for task in stored] == tasks
    # on any text about people and places, a model that finds nothing in most sentences is broken
    assert sum(len(task["predictions"][0]["result"]) for task in stored) > 100

    before = counters_at_rest(backend)
    label_studio.retrieve_predictions(project)
    assert len(label_studio.tasks(project)) == 200
    assert all(len(task["predictions"]) == 1 for task in label_studio.tasks(project))
    after = counters_at_rest(backend)
    assert (after.decoder_passes, after.windows_decoded) == (before.decoder_passes, before.windows_decoded)


@pytest.mark.parametrize("kind", [HYPERTEXT, PARAGRAPHS], ids=lambda kind: kind.name)
def test_regions_of_other_objects_map_to_their_text(
    label_studio: LabelStudio, tap: Wiretap, browser: Browser, kind: Kind
) -> None:
    project = label_studio.create_project(f"Offsets {kind.name}", kind.label_config)
    assert label_studio.connect(project, tap.url)["readable_state"] == "Connected"
    label_studio.import_tasks(project, kind.tasks)
    label_studio.retrieve_predictions(project)
    tasks = assert_pre_annotated(label_studio, project, kind, browser)
    assert len(tasks) == len(kind.tasks)
    assert sum(len(task["predictions"][0]["result"]) for task in tasks) >= len(tasks)


def test_repeated_predictions_do_no_model_work(backend: Backend) -> None:
    texts = [f"{task['text']} ({i})" for i, task in enumerate(TEXT.tasks + TEXT.tasks[:150])]
    tasks = [{"id": i, "data": {"text": text}} for i, text in enumerate(texts)]
    assert len(tasks) == 350

    first = backend.predict_all("350.1", TEXT.label_config, tasks, timeout_s=300)
    before = counters_at_rest(backend)
    second = backend.predict("350.1", TEXT.label_config, tasks)
    after = backend.counters()

    assert (after.decoder_passes, after.windows_decoded) == (before.decoder_passes, before.windows_decoded)
    assert after.cache_hits - before.cache_hits >= 350
    assert [spans(item) for item in second] == [spans(item) for item in first]


def test_nobody_waits_for_a_bulk_prediction(backend: Backend) -> None:
    """While hundreds of tasks are predicted, /health, webhooks and an annotator's one task are answered in time."""
    bulk = [{"id": i, "data": {"text": f"{task['text']} [{i}]"}} for i, task in enumerate(TEXT.tasks)]
    one = [{"id": 1000, "data": {"text": "Nadia Petrova is on her way from Plovdiv to Lake Ohrid."}}]
    webhook = {"action": "PROJECT_UPDATED", "project": {"id": 7, "label_config": TEXT.label_config}}
    with ThreadPoolExecutor() as threads:
        before = backend.counters()
        answers = threads.submit(backend.predict, "7.1", TEXT.label_config, bulk)
        wait_until("the bulk to be under way", lambda: backend.counters() != before, timeout_s=30)

        assert backend.health()["status"] == "UP"
        requests.post(f"{backend.url}/webhook", json=webhook, timeout=WEBHOOK_TIMEOUT_S).raise_for_status()
        (item,) = backend.predict("7.1", TEXT.label_config, one)
        assert item["result"]
        assert not answers.done(), "the bulk was too small to tell anything"
        assert len(answers.result()) == len(bulk)


def spans(item: Json) -> list[tuple[int, int, str]]:
    return [(region["value"]["start"], region["value"]["end"], *region["value"]["labels"]) for region in item["result"]]


def test_webhooks_are_answered_in_time(label_studio: LabelStudio, tap: Wiretap) -> None:
    project = label_studio.create_project("Webhooks", TEXT.label_config)
    label_studio.connect(project, tap.url)
    (task, *_) = label_studio.import_tasks(project, TEXT.tasks[:3])
    value = {"start": 0, "end": 13, "text": "Angela Merkel", "labels": ["Person"]}
    region = {"id": "r1", "from_name": "label", "to_name": "text", "type": "labels", "value": value}
    annotation = label_studio.annotate(task, [region])
    label_studio.call("PATCH", f"/api/annotations/{annotation['id']}", {"result": []})
    label_studio.call("DELETE", f"/api/annotations/{annotation['id']}")
    label_studio.call("PATCH", f"/api/projects/{project}", {"title": "Webhooks, renamed"})

    expected = {
        "TASKS_CREATED",
        "ANNOTATION_CREATED",
        "ANNOTATION_UPDATED",
        "ANNOTATIONS_DELETED",
        "PROJECT_UPDATED",
    }

    def all_came() -> bool:
        return expected <= {exchange.request["action"] for exchange in tap.webhooks(project)}

    wait_until("the webhooks", all_came, timeout_s=20)
    for exchange in tap.webhooks(project):
        assert 200 <= exchange.status < 300, exchange


def test_health_and_setup_were_always_answered(tap: Wiretap) -> None:
    """Over everything that the tests above sent through the tap; how long it took is printed, not judged."""
    for path in ("/health", "/setup"):
        exchanges = tap.to(path)
        assert exchanges
        assert all(exchange.status == 200 for exchange in exchanges)
        print(f"{path}: {len(exchanges)} calls, the slowest took {max(e.seconds for e in exchanges):.3f} s")


PEOPLE = """<View><Labels name="who" toName="text"><Label value="Person"/></Labels>
<Text name="text" value="$text"/></View>"""
PLACES = """<View><Labels name="where" toName="text"><Label value="Location" alias="LOC"/></Labels>
<Text name="text" value="$text"/></View>"""


def test_interleaved_projects_do_not_mix(label_studio: LabelStudio, tap: Wiretap) -> None:
    tasks = TEXT.tasks[:12]
    projects = {
        "who": (label_studio.create_project("People", PEOPLE), "Person"),
        "where": (label_studio.create_project("Places", PLACES), "LOC"),
    }
    for project, _ in projects.values():
        label_studio.connect(project, tap.url)
    for i in range(0, len(tasks), 4):
        for project, _ in projects.values():
            label_studio.import_tasks(project, tasks[i : i + 4])
            label_studio.retrieve_predictions(project)

    for from_name, (project, label) in projects.items():
        stored = label_studio.tasks(project)
        regions = [region for task in stored for region in task["predictions"][0]["result"]]
        assert regions
        assert {region["from_name"] for region in regions} == {from_name}
        assert {tuple(region["value"]["labels"]) for region in regions} == {(label,)}
