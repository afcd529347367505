"""Spans <-> regions of Text, HyperText and Paragraphs. The only home of the offset rules.

Measured against Label Studio 1.23.2 in a browser. A passage's text is what the editor draws, and its offsets are
what the editor counts:

- Text: Unicode code points; "\\r\\n" counts two. NULs are not drawn, and not counted.
- HyperText: code points over all text nodes of the document's body (of the fragment, if inline="true") after
  the browser's own HTML parsing, plus one for each <br>. <script> and <iframe> are removed before; <style>,
  <textarea>, <option> and <noscript> in the body do count.
- Paragraphs: UTF-16 units within one phrase; a phrase is named by its index, as a string. Each phrase is a passage.

Offsets are trusted, texts are never searched. All labels here are stored labels.
"""

import base64
import binascii
import functools
import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from selectolax.lexbor import LexborHTMLParser, LexborNode

from backend.labelstudio.schema import Control
from backend.ner.spans import Passage, Span

Region = dict[str, Any]
ProblemKind = Literal["other_control", "other_type", "no_offsets", "out_of_bounds", "unknown_label"]

_LONE_SURROGATE = re.compile(r"[\ud800-\udfff]")
_VARIABLE = re.compile(r"\$[\w\[\].{}]+", re.ASCII)  # as the editor's parseValue reads them
# Elements that a browser draws as blocks of their own.
_BLOCKS = frozenset({
    "address", "article", "aside", "blockquote", "caption", "center", "dd", "details", "dialog", "dir", "div", "dl",
    "dt", "fieldset", "figcaption", "figure", "footer", "form", "h1", "h2", "h3", "h4", "h5", "h6", "header", "hgroup",
    "hr", "legend", "li", "main", "menu", "nav", "ol", "optgroup", "option", "p", "pre", "search", "section", "select",
    "summary", "table", "tbody", "td", "tfoot", "th", "thead", "tr", "ul",
})  # fmt: skip
_MAX_EXACT_INTEGER = 2**53  # the editor reads JSON numbers as doubles


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a region gave no span, or not all of its labels."""

    region_id: str
    kind: ProblemKind
    detail: str


@dataclass(frozen=True, slots=True)
class ParsedRegions:
    """What `parse` found. spans[i] belong to passages[i], in the order of the regions."""

    spans: tuple[tuple[Span, ...], ...]
    problems: tuple[Problem, ...]


def passages(control: Control, data: Mapping[str, Any]) -> tuple[Passage, ...]:
    """What `control` labels in a task's data; a missing or null text is drawn empty.

    Text and HyperText give exactly one passage, Paragraphs one per phrase: none if the data is not a list.
    All texts can be encoded: a lone surrogate is replaced by U+FFFD, which has its length.
    """
    value = _resolve(control.task_key, data)
    if control.object_type == "Paragraphs":
        items = value if isinstance(value, list) else []
        if control.by_start_time:
            items = sorted(items, key=functools.cmp_to_key(_compare_start_time))
        return tuple(Passage(_without_surrogates(_phrase(item, control))) for item in items)
    text = _without_surrogates(_decoded(_drawn(value), control))
    if control.object_type == "HyperText":
        return (passage_of_html(text, inline=control.inline),)
    return (Passage(text.replace("\0", "")),)


def render(control: Control, passages: Sequence[Passage], spans: Sequence[Sequence[Span]]) -> list[Region]:
    """The regions of a prediction: spans[i] are the spans of passages[i]."""
    return [
        _region(control, passage, index, span)
        for index, (passage, of_passage) in enumerate(zip(passages, spans, strict=True))
        for span in of_passage
    ]


def _region(control: Control, passage: Passage, index: int, span: Span) -> Region:
    assert 0 <= span.start < span.end <= len(passage.text), f"{span} outside a text of {len(passage.text)}"
    phrase = index if control.object_type == "Paragraphs" else None
    return {
        "id": uuid.uuid4().hex[:10],
        "from_name": control.name,
        "to_name": control.object_name,
        "type": control.type,
        "value": {
            **_position(passage.text, phrase, span.start, span.end),
            "text": passage.text[span.start : span.end],
            control.type: [span.label],
        },
        "score": min(1.0, max(0.0, span.score)),  # a product of floats may be above 1
    }


def parse(control: Control, passages: Sequence[Passage], regions: Sequence[Any]) -> ParsedRegions:
    """The spans of an annotation's regions; the inverse of `render`. Never raises on a region.

    A region with several labels gives a span for each; one that runs over several phrases is split into a span
    per phrase. Each span has score 1, since a person made it. `problems` lists what cannot be used.
    """
    labels = control.labels.labels
    spans: list[list[Span]] = [[] for _ in passages]
    problems: list[Problem] = []
    for region in regions:
        found = _pieces(control, passages, region)
        if isinstance(found, Problem):
            problems.append(found)
            continue
        for label in region["value"][control.type]:
            if label not in labels:
                problems.append(_problem(region, "unknown_label", f"{label!r} is no label of {control.name!r}"))
                continue
            for piece in found:
                spans[piece.passage].append(Span(piece.start, piece.end, label, score=1.0))
    return ParsedRegions(spans=tuple(map(tuple, spans)), problems=tuple(problems))


def passage_of_html(html: str, *, inline: bool) -> Passage:
    """What Label Studio counts offsets over: all text nodes in order, and "\\n" for each <br>.

    `inline` HTML is set into an element of the page, other HTML is a document of its own, where white space before
    the body's first content vanishes. Not covered: markup inside <noscript>, <textarea> and <xmp>, which
    Label Studio's sanitizer rewrites and then counts as text. The passage's breaks are where block elements, such as
    paragraphs and table cells, begin and end.
    """
    node = _first_node(html, inline)
    texts: list[str] = []
    length = 0
    breaks: set[int] = set()
    entered: list[LexborNode] = []  # the elements we are in, from the outside in
    while node is not None or entered:
        if node is None:
            left = entered.pop()
            breaks.update([length] if left.tag in _BLOCKS else [])
            node = left.next
            continue
        if node.is_text_node or node.tag == "br":
            texts.append(_text_of_node(node) if node.is_text_node else "\n")
            length += len(texts[-1])
        elif node.tag not in ("script", "iframe") and node.first_child is not None:
            breaks.update([length] if node.tag in _BLOCKS else [])
            entered.append(node)
            node = node.first_child
            continue
        node = node.next
    return Passage("".join(texts), breaks=tuple(sorted(breaks - {0, length})))


def _first_node(html: str, inline: bool) -> LexborNode | None:
    if inline:
        return LexborHTMLParser(html, is_fragment=True, scripting=True).root
    # a byte-order mark at the start of a document is not content
    body = LexborHTMLParser(html.removeprefix("\ufeff"), scripting=True).body
    return body.first_child if body else None


def _text_of_node(node: LexborNode) -> str:
    # carriage returns can only come from &#13;: the sanitizer writes them out, the browser then reads line ends
    text = (node.text_content or "").replace("\r\n", "\n").replace("\r", "\n")
    before, parent = node.prev, node.parent
    if text.startswith("\n") and parent is not None and parent.tag in ("pre", "listing") and before is not None:
        while before is not None and before.is_comment_node:
            before = before.prev
        if before is None:  # with the comment gone, this is the line end that <pre> swallows
            return text[1:]
    return text


@dataclass(frozen=True, slots=True)
class _Piece:
    """The part of a region that lies in passages[passage], in code points."""

    passage: int
    start: int
    end: int


def _pieces(control: Control, passages: Sequence[Passage], region: Any) -> list[_Piece] | Problem:
    if not isinstance(region, dict):
        return Problem("", "other_type", f"{region!r} is not a region")
    if (region.get("from_name"), region.get("to_name")) != (control.name, control.object_name):
        return _problem(region, "other_control", f"{region.get('from_name')!r} on {region.get('to_name')!r}")
    value = region.get("value")
    if region.get("type") != control.type or not isinstance(value, dict):
        return _problem(region, "other_type", f"type {region.get('type')!r}, expected {control.type!r} with a value")
    labels = value.get(control.type)
    if not isinstance(labels, list) or not labels:
        return _problem(region, "unknown_label", f"labels {labels!r}, expected a list with at least one")
    if control.object_type == "Paragraphs":
        return _pieces_of_phrases(passages, region, value)
    return _piece_of_text(passages[0], region, value)


def _piece_of_text(passage: Passage, region: Region, value: dict[str, Any]) -> list[_Piece] | Problem:
    # XPaths depend on the DOM; the code points beside them were computed from it
    offsets = value.get("globalOffsets", value)
    start, end = (_integer(offsets.get(key)) for key in ("start", "end")) if isinstance(offsets, dict) else (None, None)
    if start is None or end is None:
        return _problem(region, "no_offsets", f"start {value.get('start')!r}, end {value.get('end')!r}: no integers")
    length = len(passage.text)
    if not 0 <= start < end <= length:
        return _problem(region, "out_of_bounds", f"{start} to {end} in a text of {length}")
    return [_Piece(0, start, end)]


def _pieces_of_phrases(phrases: Sequence[Passage], region: Region, value: dict[str, Any]) -> list[_Piece] | Problem:
    first, last = _integer(value.get("start")), _integer(value.get("end"))
    utf16_start, utf16_end = _integer(value.get("startOffset")), _integer(value.get("endOffset"))
    if first is None or last is None or utf16_start is None or utf16_end is None:
        return _problem(region, "no_offsets", "start, end, startOffset and endOffset must be integers")
    if not 0 <= first <= last < len(phrases):
        return _problem(region, "out_of_bounds", f"phrases {first} to {last} of {len(phrases)}")
    start, end = _code_points(phrases[first].text, utf16_start), _code_points(phrases[last].text, utf16_end)
    if start is None or end is None or (first == last and start >= end):
        return _problem(region, "out_of_bounds", f"{utf16_start} in phrase {first} to {utf16_end} in phrase {last}")
    pieces = [
        _Piece(index, start if index == first else 0, end if index == last else len(phrases[index].text))
        for index in range(first, last + 1)
    ]
    return [piece for piece in pieces if piece.start < piece.end]


def _position(text: str, phrase: int | None, start: int, end: int) -> dict[str, int | str]:
    if phrase is None:
        return {"start": start, "end": end}
    return {
        "start": str(phrase),
        "end": str(phrase),
        "startOffset": _utf16_units(text, start),
        "endOffset": _utf16_units(text, end),
    }


def _utf16_units(text: str, index: int) -> int:
    """Code points -> UTF-16 units."""
    return len(text[:index].encode("utf-16-le")) // 2


def _code_points(text: str, utf16_index: int) -> int | None:
    """UTF-16 units -> code points; None outside of the text, or between the halves of a surrogate pair."""
    encoded = text.encode("utf-16-le")
    if not 0 <= 2 * utf16_index <= len(encoded):
        return None
    try:
        return len(encoded[: 2 * utf16_index].decode("utf-16-le"))
    except UnicodeDecodeError:
        return None


def _integer(value: object) -> int | None:
    """An offset as JSON brings it: an int, a float without fraction, or digits (phrase indices are strings)."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 10:
        return int(value)
    return None


def _problem(region: Region, kind: ProblemKind, detail: str) -> Problem:
    return Problem(region_id=str(region.get("id", "")), kind=kind, detail=detail)


def _resolve(task_key: str, data: Mapping[str, Any]) -> Any:
    """The value of an object: of any JSON type for "$key", a string for a template with variables in it."""
    if _VARIABLE.fullmatch(task_key):
        return _lookup(data, task_key[1:])
    # the editor's String.replace writes `undefined` for a missing value
    return _VARIABLE.sub(lambda match: _drawn(_lookup(data, match[0][1:]), missing="undefined"), task_key)


def _lookup(data: Mapping[str, Any], path: str) -> Any:
    """`a.b[0]` -> data["a"]["b"][0]; a key that equals the whole path comes first. None if there is no such value."""
    if path in data:
        return data[path]
    value: Any = data
    for key in re.findall(r"[^.\[\]]+", path):
        if isinstance(value, Mapping):
            value = value.get(key)
        elif isinstance(value, list) and (index := _integer(key)) is not None and index < len(value):
            value = value[index]
        else:
            return None
    return value


def _drawn(value: Any, missing: str = "") -> str:
    """A JSON value as JavaScript's String() writes it, which is what the editor draws."""
    if value is None:
        return missing
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return _drawn_number(value)
    if isinstance(value, list):
        return ",".join(_drawn(item) for item in value)
    return "[object Object]"


def _drawn_number(value: int | float) -> str:
    """Number::toString of ECMA-262: shortest digits, an exponent from 1e21 and below 1e-6."""
    if isinstance(value, int) and abs(value) <= _MAX_EXACT_INTEGER:
        return str(value)
    try:
        shortest = repr(float(value))
    except OverflowError:
        return "Infinity" if value > 0 else "-Infinity"
    if shortest in ("inf", "-inf", "nan"):  # json.loads reads these, though JSON has no such numbers
        return {"inf": "Infinity", "-inf": "-Infinity", "nan": "NaN"}[shortest]
    sign, digits, exponent = _decimal(shortest)
    if not digits:
        return "0"
    point = len(digits) + exponent  # where the decimal point stands, counted from the first digit
    if len(digits) <= point <= 21:
        return sign + digits.ljust(point, "0")
    if 0 < point <= 21:
        return f"{sign}{digits[:point]}.{digits[point:]}"
    if -6 < point <= 0:
        return f"{sign}0.{'0' * -point}{digits}"
    mantissa = digits if len(digits) == 1 else f"{digits[0]}.{digits[1:]}"
    return f"{sign}{mantissa}e{point - 1:+d}"


def _decimal(shortest: str) -> tuple[str, str, int]:
    """A Python float literal as (sign, digits without zeros at the ends, exponent of the last digit)."""
    sign = "-" if shortest.startswith("-") else ""
    mantissa, _, exponent = shortest.removeprefix("-").partition("e")
    whole, _, fraction = mantissa.partition(".")
    digits = (whole + fraction).rstrip("0")
    trailing_zeros = len(whole + fraction) - len(digits)
    return sign, digits.lstrip("0"), int(exponent or 0) - len(fraction) + trailing_zeros


def _decoded(text: str, control: Control) -> str:
    """The text behind the object's `encoding`. Anything else than base64 is drawn empty."""
    if control.encoding == "none":
        return text
    try:
        content = base64.b64decode(text, validate=False)
    except (binascii.Error, ValueError):  # ValueError: characters beyond ASCII
        return ""
    return content.decode("latin-1") if control.encoding == "base64" else content.decode("utf-8", errors="replace")


def _phrase(item: Any, control: Control) -> str:
    """The text of one item of a dialogue; React draws strings and numbers only."""
    text = item.get(control.text_key) if isinstance(item, Mapping) else None
    return _drawn(text) if isinstance(text, str | int | float) and not isinstance(text, bool) else ""


def _compare_start_time(a: Any, b: Any) -> int:
    """The editor's own comparison for contextScroll, quirks included: items that start at 0 or never go last."""
    a_times, b_times = _start_and_end(a), _start_and_end(b)
    if not a_times[0]:
        return 1
    if not b_times[0]:
        return -1
    return (a_times > b_times) - (a_times < b_times)


def _start_and_end(item: Any) -> tuple[float, float]:
    fields = item if isinstance(item, Mapping) else {}
    times = {key: time for key, time in fields.items() if isinstance(time, int | float)}
    start = times.get("start", 0)
    return start, times.get("end") or (start + times["duration"] if "duration" in times else 0)


def _without_surrogates(text: str) -> str:
    return _LONE_SURROGATE.sub("\ufffd", text)
