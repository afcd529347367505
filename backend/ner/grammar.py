"""The legal continuations of a GNER answer: a trie of the tags' tokens, and the BIO rule.

After each word the model writes `(tag)`. Each tag is a path of tokens through the trie. Where a node has more than one
legal child, the model decides; elsewhere the next token is forced.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from backend.errors import LabelsIndistinguishable
from backend.ner.bio import TagSet, allowed_anywhere, continuation_of, first_of, label_of, tag_names, with_tag


@dataclass(slots=True, eq=False)
class Node:
    """A node of the trie. `tags` are those whose paths pass through it."""

    tags: TagSet = 0
    children: dict[int, "Node"] = field(default_factory=dict)
    tag: int | None = None  # at a leaf, the tag that ends here


@dataclass(frozen=True, slots=True)
class Decision:
    """A free position on a path: the tokens that are legal at `offset`, and the one that the path takes."""

    offset: int
    tokens: tuple[int, ...]
    choice: int  # index into tokens


class Grammar:
    """The tags of one label set as token paths. Tags are indices into `tags`, the names: see bio.py."""

    def __init__(self, labels: Sequence[str], paths: Sequence[tuple[int, ...]]) -> None:
        """`paths[i]` are the tokens that write tag i of `tag_names(labels)`.

        Raises LabelsIndistinguishable if the tokens of two tags are equal, or if those of one begin with those of the
        other. Two labels that the tokenizer does not know may have equal tokens, for example.
        """
        self.tags = tag_names(labels)
        self.paths = tuple(paths)
        self.root = Node()
        self._decisions: dict[tuple[int, int], tuple[Decision, ...]] = {}
        self._allowed_anywhere = allowed_anywhere(len(labels))
        for tag, path in enumerate(self.paths):
            self._insert(tag, path)

    def _insert(self, tag: int, path: tuple[int, ...]) -> None:
        node = self.root
        node.tags = with_tag(node.tags, tag)
        for token in path:
            if node.tag is not None:
                raise self._clash(tag, node.tag)
            node = node.children.setdefault(token, Node())
            node.tags = with_tag(node.tags, tag)
        if node.children or node.tag is not None:
            raise self._clash(tag, first_of(node.tags))
        node.tag = tag

    def _clash(self, tag: int, other: int) -> LabelsIndistinguishable:
        return LabelsIndistinguishable(
            f"labels {label_of(self.tags[other])!r} and {label_of(self.tags[tag])!r} are the same to this checkpoint's "
            "tokenizer: give them different English names with predicted_values"
        )

    def allowed(self, previous_tag: int) -> TagSet:
        """The tags that may follow: O, every B-, and the I- of the open label."""
        return with_tag(self._allowed_anywhere, continuation_of(previous_tag))

    @staticmethod
    def options(node: Node, allowed: TagSet) -> tuple[int, ...]:
        """The legal next tokens at a node."""
        return tuple(token for token, child in node.children.items() if child.tags & allowed)

    def decisions(self, previous_tag: int, tag: int) -> tuple[Decision, ...]:
        """The free positions on the path of `tag` after a word with `previous_tag`."""
        known = self._decisions.get((previous_tag, tag))
        if known is None:
            known = self._decisions[previous_tag, tag] = tuple(self._walk(self.allowed(previous_tag), tag))
        return known

    def _walk(self, allowed: TagSet, tag: int) -> list[Decision]:
        found: list[Decision] = []
        node = self.root
        for offset, token in enumerate(self.paths[tag]):
            tokens = self.options(node, allowed)
            if len(tokens) > 1:
                found.append(Decision(offset, tokens, tokens.index(token)))
            node = node.children[token]
        return found

    @cached_property
    def decision_tokens(self) -> tuple[int, ...]:
        """Every token that a decision can be about, sorted."""
        found: set[int] = set()
        nodes = [self.root]
        while nodes:
            node = nodes.pop()
            if len(node.children) > 1:
                found.update(node.children)
            nodes.extend(node.children.values())
        return tuple(sorted(found))

    @cached_property
    def longest_path(self) -> int:
        """The number of tokens of the longest tag."""
        return max(len(path) for path in self.paths)
