"""Label config (XML) -> LabelSchema, through label_studio_sdk's LabelInterface.

What counts: every Labels, HyperTextLabels and ParagraphLabels control that is bound to a Text, HyperText or
Paragraphs object whose text lies in the task data. One Control per (control, object) pair.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import regex
from label_studio_sdk._legacy.exceptions import LabelStudioXMLSyntaxErrorSentryIgnored
from label_studio_sdk.label_interface.control_tags import ControlTag
from label_studio_sdk.label_interface.interface import LabelInterface
from label_studio_sdk.label_interface.object_tags import ObjectTag

from backend.errors import InvalidLabelConfig
from backend.ner.labels import PromptLabels

ControlType = Literal["labels", "hypertextlabels", "paragraphlabels"]
ObjectType = Literal["Text", "HyperText", "Paragraphs"]

MAX_CONFIG_CHARS = 1_000_000
MAX_CONTROLS = 100  # each labels its text once more
MAX_LABELS = 1_000  # of all controls together; no checkpoint's context holds more

CONTROL_TYPES: Mapping[str, ControlType] = {
    "labels": "labels",
    "hypertextlabels": "hypertextlabels",
    "paragraphlabels": "paragraphlabels",
}
OBJECT_TYPES: Mapping[str, ObjectType] = {"text": "Text", "hypertext": "HyperText", "paragraphs": "Paragraphs"}

# Tag sets that label with abbreviations: CoNLL-2003, OntoNotes 5, ACE 2005, MultiNERD, MultiCoNER, GMB.
ABBREVIATIONS: Mapping[str, str] = {
    "PER": "person",
    "PERS": "person",
    "LOC": "location",
    "ORG": "organization",
    "MISC": "miscellaneous",
    "GPE": "geopolitical entity",
    "FAC": "facility",
    "NORP": "nationality or religious or political group",
    "PROD": "product",
    "EVT": "event",
    "WOA": "work of art",
    "VEH": "vehicle",
    "WEA": "weapon",
    "ANIM": "animal",
    "CEL": "celestial body",
    "DIS": "disease",
    "EVE": "event",
    "INST": "instrument",
    "MYTH": "mythological entity",
    "VEHI": "vehicle",
    "CORP": "corporation",
    "CW": "creative work",
    "GRP": "group",
    "GEO": "geographical entity",
    "TIM": "time",
    "NAT": "natural phenomenon",
}

_NEEDED = (
    "at least one <Labels>, <HyperTextLabels> or <ParagraphLabels> with <Label> children is needed, "
    "whose toName names a <Text>, <HyperText> or <Paragraphs>"
)
_CAMEL_BOUNDARY = regex.compile(r"(?<=\p{Ll})(?=\p{Lu})|(?<=\p{Lu})(?=\p{Lu}\p{Ll})")
_KEBAB_HYPHEN = regex.compile(r"(?<=\w\w)-(?=\w\w)")  # not the hyphen of e-mail or x-ray
_FORMAT_SIGNS = regex.compile(r"[()\[\]{}<>,]")


@dataclass(frozen=True, slots=True)
class Control:
    """A labelling control bound to one object."""

    name: str  # from_name
    type: ControlType  # the region's type, and the key of its labels
    object_name: str  # to_name
    object_type: ObjectType
    task_key: str  # the object's value: "$text", "$a.b[0]" or a template such as "Title: $title"
    smart: bool  # offered for interactive pre-annotation
    labels: PromptLabels  # stored is a label's alias if it has one, else its value
    text_key: str = "text"  # Paragraphs: the phrase's key in each item
    by_start_time: bool = False  # Paragraphs with contextScroll: drawn in the order of `start`
    inline: bool = False  # HyperText: part of the page, instead of a document of its own
    encoding: Literal["none", "base64", "base64unicode"] = "none"


@dataclass(frozen=True, slots=True)
class LabelSchema:
    """What a label config asks us to label. `digest` changes when predictions could."""

    controls: tuple[Control, ...]
    digest: str

    @property
    def label_values(self) -> tuple[str, ...]:
        """All stored labels, each once, in the config's order."""
        return tuple(dict.fromkeys(label for control in self.controls for label in control.labels.labels))


def parse(label_config: str) -> LabelSchema:
    """The schema of a label config.

    Raises InvalidLabelConfig if it is too long, has a DOCTYPE, is not XML, has a control without labels or with
    an unknown toName, has nothing that we can label, or too much.
    """
    interface = _interface(label_config)
    objects = {tag.name: tag for tag in interface.objects}
    controls: list[Control] = []
    unusable: list[str] = []
    for tag in interface.controls:
        control_type = CONTROL_TYPES.get(_tag_name(tag))
        if control_type is None:
            unusable.append(f"<{tag.tag} name={tag.name!r}>, which labels no spans of text")
            continue
        for object_name in tag.to_name or ():  # not stripped: Label Studio refuses "a, b" too
            if object_name not in objects:
                raise InvalidLabelConfig(
                    f"toName {object_name!r} of <{tag.tag} name={tag.name!r}> names no object that has a value; "
                    f"objects: {sorted(objects)}"
                )
            found = objects[object_name]
            reason = _why_unusable(tag, found)
            if reason:
                unusable.append(f"<{tag.tag} name={tag.name!r}> {reason}")
            else:
                controls.append(_control(tag, control_type, found))
    if not controls:
        raise InvalidLabelConfig(f"no usable control: found {'; '.join(unusable) or 'no control at all'}; {_NEEDED}")
    _check_numbers(controls)
    return LabelSchema(controls=tuple(controls), digest=_digest(controls))


def _check_numbers(controls: Sequence[Control]) -> None:
    num_labels = sum(len(control.labels.labels) for control in controls)
    for number, most, what in ((len(controls), MAX_CONTROLS, "controls"), (num_labels, MAX_LABELS, "labels")):
        if number > most:
            raise InvalidLabelConfig(f"label config with {number} {what}; at most {most} are predicted")


def readable(value: str) -> str:
    """A label value as words: "CreativeWork" -> "creative work", "PER" -> "person", "Date (past)" -> "date past".

    Empty if the value has only signs of the output format.
    """
    stripped = value.strip()
    if stripped.upper() in ABBREVIATIONS:
        return ABBREVIATIONS[stripped.upper()]
    if len(stripped.split()) == 1:  # an identifier, not a phrase
        stripped = _CAMEL_BOUNDARY.sub(" ", _KEBAB_HYPHEN.sub(" ", stripped))
    return _without_format_signs(stripped.replace("_", " ")).lower()


def _interface(label_config: str) -> LabelInterface:
    if len(label_config) > MAX_CONFIG_CHARS:
        raise InvalidLabelConfig(f"label config of {len(label_config)} characters; at most {MAX_CONFIG_CHARS} are read")
    # refused before any parser sees it: entities are declared in a DOCTYPE only
    if "<!doctype" in label_config.lower():
        raise InvalidLabelConfig("label config with a DOCTYPE; expected plain XML without entity declarations")
    try:
        return LabelInterface(label_config)
    except LabelStudioXMLSyntaxErrorSentryIgnored as error:
        raise InvalidLabelConfig(f"label config is not well-formed XML: {error}") from error
    # lxml refuses NULs and encoding declarations with ValueError; LabelInterface
    # fails in other ways on processing instructions and on tags without the attributes that it expects
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise InvalidLabelConfig(f"label config cannot be read: {error}") from error


def _tag_name(tag: ControlTag | ObjectTag) -> str:
    return str(tag.tag).lower()


def _why_unusable(tag: ControlTag, labelled: ObjectTag) -> str | None:
    """Why this control on this object is of no use to us, or None. Raises InvalidLabelConfig if it has no labels."""
    if _tag_name(labelled) not in OBJECT_TYPES:
        return f"labels <{labelled.tag} name={labelled.name!r}>, which is not text"
    if str(labelled.get_attr("valueType", "")).lower() == "url":
        return f"labels <{labelled.tag} name={labelled.name!r}> with valueType=url: its text is not in the task data"
    if _label_attributes(tag):
        return None
    if tag.dynamic_value:
        return "takes its labels from task data, which is not supported"
    raise InvalidLabelConfig(f"<{tag.tag} name={tag.name!r}> has no labels; add <Label value=...> children")


def _control(tag: ControlTag, control_type: ControlType, labelled: ObjectTag) -> Control:
    encoding = str(labelled.get_attr("encoding", "none")).lower()
    # LabelInterface lists no tag without them
    assert tag.name
    assert labelled.name
    assert labelled.value
    return Control(
        name=tag.name,
        type=control_type,
        object_name=labelled.name,
        object_type=OBJECT_TYPES[_tag_name(labelled)],
        task_key=labelled.value,
        smart=_is_true(tag.get_attr("smart")),
        labels=_prompt_labels(_label_attributes(tag)),
        text_key=str(labelled.get_attr("textKey", "text")),
        by_start_time=_is_true(labelled.get_attr("contextScroll")),
        inline=_is_true(labelled.get_attr("inline")),
        encoding=encoding if encoding in ("base64", "base64unicode") else "none",  # type: ignore[arg-type]
    )


def _is_true(attribute: object) -> bool:
    return str(attribute).lower() == "true"


def _label_attributes(tag: ControlTag) -> dict[str, Mapping[str, str]]:
    """Stored value -> attributes of each <Label>, in order. LabelInterface also lists <Choice> and <Relation>."""
    labels = tag.labels_attrs or {}
    return {value: label.attr for value, label in labels.items() if label.tag == "Label" and value.strip()}


def _prompt_labels(labels: Mapping[str, Mapping[str, str]]) -> PromptLabels:
    """Distinct prompt words for the labels of one control, even if their readable forms are the same."""
    taken: dict[str, str] = {}  # prompt words -> stored label
    for position, (label, attributes) in enumerate(labels.items(), start=1):
        raw = attributes.get("value") or label
        predicted = [_without_format_signs(words) for words in attributes.get("predicted_values", "").split(",")]
        ways = [words for words in predicted if words] or [readable(raw) or f"label {position}"]
        for words in dict.fromkeys(ways):
            taken[_first_free(words, _without_format_signs(raw), taken)] = label
    return PromptLabels.of(taken.items())


def _first_free(words: str, raw: str, taken: Iterable[str]) -> str:
    """`words`, else the label as written, else `words 2`, `words 3`, ..."""
    if words not in taken:
        return words
    if raw and raw not in taken:
        return raw
    number = 2
    while f"{words} {number}" in taken:
        number += 1
    return f"{words} {number}"


def _without_format_signs(text: str) -> str:
    """The output format needs brackets and commas for itself: `word(label)`, labels joined by commas."""
    return " ".join(_FORMAT_SIGNS.sub(" ", text).split())


def _digest(controls: Iterable[Control]) -> str:
    """Hex digest over everything but `smart`, which says when to predict and not what.

    Projects store it: other keys here would make every project's stored digest outdated.
    """
    content = [
        {
            "name": control.name,
            "type": control.type,
            "object_name": control.object_name,
            "object_type": control.object_type,
            "task_key": control.task_key,
            "prompt_labels": [{"name": entry.words, "value": entry.label} for entry in control.labels.entries],
            "text_key": control.text_key,
            "by_start_time": control.by_start_time,
            "inline": control.inline,
            "encoding": control.encoding,
        }
        for control in controls
    ]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]
