"""GNER's prompt and target format.

Source: Ding et al. 2024, "Rethinking Negative Instances for Generative Named Entity Recognition"
(arXiv:2402.16602), and the published checkpoints' training format. The published format is the
default; a checkpoint folder may define its own prompt in `gner.json`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

PUBLISHED_TEMPLATE = (
    "Please analyze the sentence provided, identifying the type of entity for each word on a token-by-token basis.\n"
    "Output format is: word_1(label_1), word_2(label_2), ...\n"
    "We'll use the BIO-format to label the entities, where:\n"
    "1. B- (Begin) indicates the start of a named entity.\n"
    "2. I- (Inside) is used for words within a named entity but are not the first word.\n"
    "3. O (Outside) denotes words that are not part of a named entity.\n"
    "\n"
    "Use the specific entity tags: {labels} and O.\n"
    "Sentence: {sentence}"
)
CAUSAL_WRAPPER = "[INST] {instruction} [/INST]"


@dataclass(frozen=True, slots=True)
class PromptFormat:
    """A checkpoint's prompt. `template` has the fields {labels} and {sentence}, `wrapper` has {instruction}."""

    template: str = PUBLISHED_TEMPLATE
    wrapper: str = "{instruction}"

    def render(self, labels: Sequence[str], words: Sequence[str]) -> str:
        """The source text: labels joined by commas, words joined by spaces."""
        # not str.format: words and labels may contain braces
        before, after = self.template.split("{sentence}")
        instruction = before.replace("{labels}", ", ".join(labels)) + " ".join(words) + after
        head, tail = self.wrapper.split("{instruction}")
        return head + instruction + tail


def target(words: Sequence[str], tags: Sequence[str]) -> str:
    """The answer that a GNER model is trained to give: `did(O) george(B-actor) clooney(I-actor)`."""
    return " ".join(f"{word}({tag})" for word, tag in zip(words, tags, strict=True))
