"""What an annotator sees: the words that the page highlights are the predicted ones."""

from pathlib import Path

import pytest

from tests.support.backend import Backend
from tests.support.browser import Browser, Editor, Highlight, without_line_breaks
from tests.support.label_studio import Json, LabelStudio
from tests.support.processes import wait_until
from tests.support.projects import HYPERTEXT, PARAGRAPHS, RGB, TEXT, Entity, Kind, pre_annotated
from tests.support.wiretap import Exchange, Wiretap

pytestmark = pytest.mark.e2e

MANY_ENTITIES = (
    "Angela Merkel met Barack Obama in Berlin before flying on to Brussels. "
    "Kenji Watanabe of Toyota and Christine Lagarde of the European Central Bank 🏦 joined them in Frankfurt; "
    "Reuters 📰 and the BBC had sent reporters from London and Paris."
)

# Where offsets go wrong: astral characters before the entities, line breaks, right-to-left, several spaces.
ODD_TEXTS = (
    MANY_ENTITIES,
    "👨‍👩‍👧‍👦 The Garcias moved to San Antonio 🏡; Elena 👩🏽‍⚕️ works at Methodist Hospital 🏥 now.",
    "Line one ends here.\r\nAngela Davis spoke in Oakland.\r\nThe end, says the Oakland Tribune.",
    "The hotel (فندق الأمل) in Amman belongs to Hamza Khoury and the bank al-Ahli.",
    "  Two spaces, then Barack Obama,   then three before Chicago.  ",
    "𝓕𝓪𝓷𝓬𝔂 letters: 𝐍𝐞𝐢𝐥 Young plays 𝕋𝕠𝕣𝕠𝕟𝕥𝕠 🍁 on Saturday, says Live Nation.",
    "<b>Not markup</b> &amp; not an entity: Johnson & Johnson, New Brunswick.",
    "The name 安倍晋三 is written Shinzo Abe on the plaque in Nara.",
)

KINDS = [
    Kind(TEXT.name, TEXT.label_config, [{"text": text} for text in ODD_TEXTS], TEXT.value_key, TEXT.covered),
    HYPERTEXT,
    PARAGRAPHS,
]


def highlights(entities: list[Entity]) -> list[Highlight]:
    return [Highlight(without_line_breaks(entity.text), RGB[entity.label]) for entity in entities]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_highlighted_words_are_the_predicted_ones(
    label_studio: LabelStudio, tap: Wiretap, browser: Browser, artifacts: Path, kind: Kind
) -> None:
    project = pre_annotated(label_studio, tap.url, f"Editor {kind.name}", kind.label_config, kind.tasks)
    num_seen = 0
    for number, task in enumerate(label_studio.tasks(project), start=1):
        predicted = kind.entities(browser, task)
        if predicted:
            editor = Editor(browser, label_studio, project, task["id"])
            shown = editor.wait_for_highlights(len(predicted))
            editor.screenshot(artifacts / f"{kind.name}-{number}.png")
            assert shown == highlights(predicted), task["data"]
            num_seen += 1
    assert num_seen > len(kind.tasks) / 2, "most of these tasks have entities"


def test_opening_a_task_predicts_it(label_studio: LabelStudio, tap: Wiretap, browser: Browser) -> None:
    """Nothing was retrieved before: the annotator's request waits for the backend."""
    project = label_studio.create_project("Live", TEXT.label_config)
    label_studio.connect(project, tap.url)
    (task,) = label_studio.import_tasks(project, [{"text": f"{MANY_ENTITIES} Unseen."}])
    editor = Editor(browser, label_studio, project, task)
    (stored,) = label_studio.tasks(project)
    predicted = TEXT.entities(browser, stored)
    assert predicted
    assert editor.wait_for_highlights(len(predicted)) == highlights(predicted)


def smart(label_config: str) -> str:
    return label_config.replace('<Labels name="label"', '<Labels smart="true" name="label"')


def test_auto_annotation_completes_what_the_annotator_began(
    label_studio: LabelStudio, tap: Wiretap, browser: Browser, artifacts: Path
) -> None:
    """The annotator marks one word with Auto-Annotation on; the others come from the backend, none twice."""
    # the task is opened empty: its stored predictions are not shown
    project = label_studio.create_project("Interactive", smart(TEXT.label_config), show_collab_predictions=False)
    label_studio.connect(project, tap.url, interactive=True)
    (task,) = label_studio.import_tasks(project, [{"text": MANY_ENTITIES}])
    editor = Editor(browser, label_studio, project, task)
    editor.turn_on_auto_annotation()
    editor.choose_label("Location")
    editor.double_click_word("Berlin")

    asked = wait_until("an interactive /predict", lambda: interactive_requests(tap, task), timeout_s=30)[-1]
    assert asked.status == 200
    (item,) = asked.response["results"]
    begun = {spans_of(region) for region in asked.request["params"]["context"]["result"]}
    suggested = [spans_of(region) for region in item["result"]]
    assert suggested
    assert len(set(suggested)) == len(suggested)
    assert not begun & set(suggested)

    drawn = editor.wait_for_highlights(len(suggested) + len(begun))
    editor.screenshot(artifacts / "auto-annotation.png")
    assert sorted(h.text for h in drawn) == sorted(MANY_ENTITIES[start:end] for start, end in {*begun, *suggested})


def interactive_requests(tap: Wiretap, task: int) -> list[Json]:
    return [
        exchange
        for exchange in tap.to("/predict")
        if [t["id"] for t in exchange.request["tasks"]] == [task] and exchange.request["params"].get("context")
    ]


def spans_of(region: Json) -> tuple[int, int]:
    return region["value"]["start"], region["value"]["end"]


SUBMITTED = [
    (Kind(TEXT.name, TEXT.label_config, [{"text": MANY_ENTITIES}], TEXT.value_key, TEXT.covered), "Frankfurt"),
    (
        Kind(HYPERTEXT.name, HYPERTEXT.label_config, HYPERTEXT.tasks[2:3], HYPERTEXT.value_key, HYPERTEXT.covered),
        "Lisbon",
    ),
    (
        Kind(PARAGRAPHS.name, PARAGRAPHS.label_config, PARAGRAPHS.tasks[1:2], PARAGRAPHS.value_key, PARAGRAPHS.covered),
        "Benfica",
    ),
]


@pytest.mark.parametrize(("kind", "word"), SUBMITTED, ids=lambda value: getattr(value, "name", value))
def test_what_an_annotator_submits_becomes_an_example(
    label_studio: LabelStudio, tap: Wiretap, backend: Backend, browser: Browser, kind: Kind, word: str
) -> None:
    """A word behind emoji is marked by hand: the editor's own offsets lead to that word again."""
    project = label_studio.create_project(f"Submit {kind.name}", kind.label_config, show_collab_predictions=False)
    label_studio.connect(project, tap.url)
    (task,) = label_studio.import_tasks(project, kind.tasks)
    editor = Editor(browser, label_studio, project, task)
    editor.choose_label("Location")
    editor.double_click_word(word)
    editor.wait_for_highlights(1)
    editor.submit()

    def saved() -> list[Exchange]:
        return [e for e in tap.webhooks(project) if e.request["action"] == "ANNOTATION_CREATED"]

    (exchange,) = wait_until("the webhook", saved, timeout_s=20)
    assert exchange.status == 200, exchange
    key = tap.key_of(project)
    (annotation,) = backend.accepted(key)
    spans = [(text.passage.text[span.start : span.end], span.label) for text in annotation.texts for span in text.spans]
    assert (annotation.task_id, spans, annotation.dropped) == (task, [(word, "Location")], {})
