"""Sentences with their expected spans, as Label Studio sends accepted annotations, and scores of predictions.

Nothing here uses the backend's code: it checks that code.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.paths import CORPORA

Json = Any
Span = tuple[int, int, str]  # code points, half-open, and the label


@dataclass(frozen=True, slots=True)
class LabelledSentence:
    """A text with its expected spans."""

    text: str
    spans: tuple[Span, ...]

    def regions(self) -> list[Json]:
        """The spans as regions, as the editor sends them for this module's `label_config`."""
        return [
            {
                "id": f"r{index}",
                "from_name": "label",
                "to_name": "text",
                "type": "labels",
                "origin": "manual",
                "value": {"start": start, "end": end, "text": self.text[start:end], "labels": [label]},
            }
            for index, (start, end, label) in enumerate(self.spans)
        ]


def label_config(labels: Sequence[str]) -> str:
    """The label config of a project that asks for these labels in a Text."""
    children = "".join(f'<Label value="{label}"/>' for label in labels)
    return f'<View><Labels name="label" toName="text">{children}</Labels><Text name="text" value="$text"/></View>'


def sentences(corpus: str, split: str, num_sentences: int | None = None) -> list[LabelledSentence]:
    """Sentences of a corpus, their words joined by spaces. Skips the test if the corpora are missing."""
    path = CORPORA / corpus / f"{split}.conll"
    if not path.exists():
        pytest.skip(f"{path} does not exist: the corpora are not part of the project")
    blocks = path.read_text(encoding="utf-8").strip().split("\n\n")[:num_sentences]
    return [_labelled(block) for block in blocks]


def _labelled(block: str) -> LabelledSentence:
    text, spans = "", []
    for line in block.split("\n"):
        word, tag = line.split("\t")
        start = len(text) + 1 if text else 0
        text = f"{text} {word}" if text else word
        if tag.startswith("B-"):
            spans.append((start, len(text), tag[2:]))
        elif tag.startswith("I-"):
            first, _, label = spans.pop()
            spans.append((first, len(text), label))
    return LabelledSentence(text, tuple(spans))


def labels_of(sentences: Sequence[LabelledSentence]) -> list[str]:
    """All labels that occur, sorted."""
    return sorted({label for sentence in sentences for _, _, label in sentence.spans})


def span_f1(sentences: Sequence[LabelledSentence], predictions: Sequence[Json]) -> float:
    """Strict micro-F1, 0..1, of one prediction per sentence: an entity is correct if bounds and label are."""
    num_correct = num_predicted = num_expected = 0
    for sentence, prediction in zip(sentences, predictions, strict=True):
        predicted = set(spans_of(prediction))
        num_correct += len(predicted & set(sentence.spans))
        num_predicted += len(predicted)
        num_expected += len(sentence.spans)
    total = num_predicted + num_expected
    return 2 * num_correct / total if total else 0.0


def spans_of(prediction: Json) -> list[Span]:
    """The spans of a prediction's regions, in order."""
    return [
        (region["value"]["start"], region["value"]["end"], *region["value"]["labels"])
        for region in prediction["result"]
    ]


# A small project: enough sentences to learn something from, few enough to learn it quickly.
RECIPES = [
    LabelledSentence("Whisk the saffron into warm milk .", ((10, 17, "Spice"),)),
    LabelledSentence("Fold ground cardamom into the pilaf .", ((12, 20, "Spice"), (30, 35, "Dish"))),
    LabelledSentence("Serve the ramen with pickled ginger .", ((10, 15, "Dish"), (29, 35, "Spice"))),
    LabelledSentence("A pinch of turmeric turns the paella yellow .", ((11, 19, "Spice"), (30, 36, "Dish"))),
    LabelledSentence("Toast cumin seeds before you start .", ((6, 11, "Spice"),)),
    LabelledSentence("Nobody in the house likes goulash .", ((26, 33, "Dish"),)),
    LabelledSentence("Smoked paprika belongs into every goulash .", ((7, 14, "Spice"), (34, 41, "Dish"))),
    LabelledSentence("Let the dough rest for an hour .", ()),
    LabelledSentence("Her lasagna needs more nutmeg .", ((4, 11, "Dish"), (23, 29, "Spice"))),
    LabelledSentence("They ordered pad thai and two beers .", ((13, 21, "Dish"),)),
    LabelledSentence("Cloves and cinnamon scent the biryani .", ((0, 6, "Spice"), (11, 19, "Spice"), (30, 37, "Dish"))),
    LabelledSentence("Heat the oven to two hundred degrees .", ()),
    LabelledSentence("Risotto hates to wait .", ((0, 7, "Dish"),)),
    LabelledSentence("We ran out of star anise yesterday .", ((14, 24, "Spice"),)),
    LabelledSentence("Add sumac to the fattoush at the end .", ((4, 9, "Spice"), (17, 25, "Dish"))),
    LabelledSentence("The waiter recommended the bouillabaisse .", ((27, 40, "Dish"),)),
]


def events(project: int, config: str, sentences: Sequence[LabelledSentence], first_id: int = 1) -> list[Json]:
    """The ANNOTATION_CREATED webhooks that Label Studio sends for these sentences."""
    return [
        {
            "action": "ANNOTATION_CREATED",
            "project": {
                "id": project,
                "title": f"Project {project}",
                "label_config": config,
                "created_at": "2026-11-22T07:43:57.008477Z",
            },
            "task": {"id": number, "data": {"text": sentence.text}},
            "annotation": {
                "id": 1000 + number,
                "task": number,
                "result": sentence.regions(),
                "was_cancelled": False,
                "ground_truth": False,
                "updated_at": f"2026-11-22T08:00:00.{number:06d}Z",
                "prediction": {},
                "completed_by": 1,
            },
        }
        for number, sentence in enumerate(sentences, start=first_id)
    ]


def version_folders(model_dir: Path) -> list[Path]:
    """Every folder of a trained version below MODEL_DIR, incomplete ones included."""
    return sorted(path.parent for path in (model_dir / "versions").rglob("adapter_config.json"))
