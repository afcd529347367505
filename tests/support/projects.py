"""The three kinds of project, Text, HyperText and Paragraphs, and the text that a stored region covers in each."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.support.browser import Browser
from tests.support.label_studio import LabelStudio
from tests.support.texts import config, samples

Json = Any

# The background colours in label_config.xml and samples/*_config.xml.
RGB = {"Person": (0xE7, 0x6F, 0x51), "Organization": (0x2A, 0x9D, 0x8F), "Location": (0x43, 0x61, 0xEE)}


@dataclass(frozen=True, slots=True)
class Entity:
    """A stored region as its text and label. `position` orders the entities of a task."""

    position: tuple[int, int]
    text: str
    label: str


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of object tag.

    `covered(browser, task data, region value)` is the text that a region covers, found without the backend's code.
    """

    name: str
    label_config: str
    tasks: list[Json]
    value_key: str
    covered: Callable[[Browser, Json, Json], str]

    def entities(self, browser: Browser, task: Json) -> list[Entity]:
        """The regions of the task's one stored prediction, in the order of the text."""
        (prediction,) = task["predictions"]
        entities = []
        for region in prediction["result"]:
            value = region["value"]
            (label,) = value[self.value_key]
            assert region["type"] == self.value_key
            entities.append(Entity(_position(value), self.covered(browser, task["data"], value), label))
        return sorted(entities, key=lambda entity: entity.position)


def _position(value: Json) -> tuple[int, int]:
    return (int(value["start"]), value["startOffset"]) if "startOffset" in value else (value["start"], 0)


def _in_text(_: Browser, data: Json, value: Json) -> str:
    """Text: code points, as Python counts them."""
    text: str = data["text"]
    assert 0 <= value["start"] < value["end"] <= len(text), value
    return text[value["start"] : value["end"]]


def _in_hypertext(browser: Browser, data: Json, value: Json) -> str:
    """HyperText: code points over the text that a browser finds in the HTML."""
    text = browser.text_of_html(data["html"])
    assert 0 <= value["start"] < value["end"] <= len(text), value
    return text[value["start"] : value["end"]]


def _in_paragraphs(browser: Browser, data: Json, value: Json) -> str:
    """Paragraphs: UTF-16 units of one phrase, whose index is a string."""
    assert isinstance(value["start"], str)
    assert value["start"] == value["end"]
    phrase: str = data["dialogue"][int(value["start"])]["text"]
    assert 0 <= value["startOffset"] < value["endOffset"] <= len(phrase.encode("utf-16-le")) // 2, value
    return browser.utf16_slice(phrase, value["startOffset"], value["endOffset"])


TEXT = Kind("text", config("label_config.xml"), samples("tasks.json"), "labels", _in_text)
HYPERTEXT = Kind(
    "hypertext",
    config("samples/hypertext_config.xml"),
    samples("hypertext.json"),
    "hypertextlabels",
    _in_hypertext,
)
PARAGRAPHS = Kind(
    "paragraphs",
    config("samples/paragraphs_config.xml"),
    samples("paragraphs.json"),
    "paragraphlabels",
    _in_paragraphs,
)


def pre_annotated(label_studio: LabelStudio, backend_url: str, title: str, label_config: str, tasks: list[Json]) -> int:
    """A project with the backend connected, the tasks imported and their predictions retrieved; its id."""
    project = label_studio.create_project(title, label_config)
    label_studio.connect(project, backend_url)
    label_studio.import_tasks(project, tasks)
    label_studio.retrieve_predictions(project)
    return project
