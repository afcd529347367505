"""A CoNLL file -> a snapshot to train on, without annotations from Label Studio."""

import hashlib
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

from backend.errors import CorpusError
from backend.learning.annotations import AnnotatedText, Annotation, ControlLabels, LabelledSpan, Project
from backend.learning.examples import Snapshot, examples_of
from backend.ner import bio, conll
from backend.ner.bio import Sentence
from backend.ner.labels import PromptLabels
from backend.ner.spans import Passage

_CONTROL = "label"


def read_snapshot(path: Path, project: str) -> Snapshot:
    """All sentences of a file, with the labels that occur in it. Raises CorpusError."""
    sentences = conll.read_conll(path)
    labels = conll.label_set(sentences)
    if not labels:
        raise CorpusError(f"{path} has no labels: all tags of its {len(sentences)} sentences are O")
    return snapshot_of(sentences, labels, project, path.name)


def snapshot_of(sentences: Sequence[Sentence], labels: tuple[str, ...], project: str, title: str) -> Snapshot:
    """Sentences as the examples of a project with this key, one task per sentence."""
    known = Project(
        key=project,
        id=int(project.partition(".")[0]),
        title=title,
        config_digest=hashlib.sha256("\n".join(labels).encode()).hexdigest(),
        controls=(ControlLabels(_CONTROL, PromptLabels.of((label, label) for label in labels)),),
    )
    annotations = [_annotation(number, sentence, labels) for number, sentence in enumerate(sentences, start=1)]
    examples, remapping = examples_of(known, annotations)
    return Snapshot(known, examples, remapping, changes=0)


def _annotation(number: int, sentence: Sentence, labels: tuple[str, ...]) -> Annotation:
    text = " ".join(sentence.words)
    starts = [0, *accumulate(len(word) + 1 for word in sentence.words)]
    spans = tuple(
        LabelledSpan(starts[found.start], starts[found.end] - 1, found.label, "manual")
        for found in bio.mentions(sentence.tags)
    )
    return Annotation(
        id=number,
        task_id=number,
        updated_at_us=0,
        accepted=True,
        ground_truth=False,
        texts=(AnnotatedText(_CONTROL, Passage(text), labels, spans),),
        predicted_version=None,
        predicted=(),
        dropped={},
    )
