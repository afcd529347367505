"""Spans <-> regions. Expected texts and offsets were seen in the editor of Label Studio 1.23.2."""

import base64
import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from label_studio_sdk.label_interface.interface import LabelInterface

from backend.labelstudio import regions, schema
from backend.labelstudio.regions import Problem, passage_of_html
from backend.labelstudio.schema import Control
from backend.ner import segment
from backend.ner.spans import Passage, Span

FORMS = [
    ("Labels", "Text"),
    ("HyperTextLabels", "Text"),
    ("Labels", "HyperText"),
    ("HyperTextLabels", "HyperText"),
    ("Labels", "Paragraphs"),
    ("ParagraphLabels", "Paragraphs"),
]


def config_of(tag: str, labelled: str, attributes: str = "", value: str = "$text") -> str:
    return (
        f'<View><{tag} name="label" toName="text"><Label value="Person"/><Label value="GPE" alias="place"/></{tag}>'
        f'<{labelled} name="text" value="{value}" {attributes}/></View>'
    )


def control_of(tag: str, labelled: str, attributes: str = "", value: str = "$text") -> Control:
    (control,) = schema.parse(config_of(tag, labelled, attributes, value)).controls
    return control


TEXT = control_of("Labels", "Text")
HYPERTEXT = control_of("HyperTextLabels", "HyperText")
PARAGRAPHS = control_of("ParagraphLabels", "Paragraphs")


def text_drawn(control: Control, data: dict[str, Any]) -> str:
    (passage,) = regions.passages(control, data)
    return passage.text


# texts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "drawn"),
    [
        ("  as it\r\nis\t ", "  as it\r\nis\t "),
        ("<b>&amp;</b>", "<b>&amp;</b>"),
        ("שלום e\u0301 😀", "שלום e\u0301 😀"),
        (None, ""),
        ("", ""),
        (12345, "12345"),
        (0, "0"),
        (-1.5, "-1.5"),
        (2.0, "2"),
        (-0.0, "0"),
        (1e-7, "1e-7"),
        (0.000001, "0.000001"),
        (1.25e-9, "1.25e-9"),
        (123.456, "123.456"),
        (1e20, "100000000000000000000"),
        (1.5e21, "1.5e+21"),
        (12345678901234567890, "12345678901234567000"),
        (10**400, "Infinity"),
        (True, "true"),
        (["a", "b"], "a,b"),
        ([1, None, "b", ["c", 2.5]], "1,,b,c,2.5"),
        ({"a": 1}, "[object Object]"),
        ("a\ud800b", "a\ufffdb"),
        ("\udc00\ud800", "\ufffd\ufffd"),
        ("NUL \0 Here", "NUL  Here"),
    ],
)
def test_text_as_drawn(value: object, drawn: str) -> None:
    assert text_drawn(TEXT, {"text": value}) == drawn
    drawn.encode()


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_are_drawn_with_all_their_digits(number: float) -> None:
    drawn = text_drawn(TEXT, {"text": number})
    assert float(drawn) == number
    assert ("e" in drawn) == (number != 0 and not 1e-6 <= abs(number) < 1e21)


@pytest.mark.parametrize(
    ("value", "data", "drawn"),
    [
        ("$text", {}, ""),
        ("$a.b", {"a": {"b": "x"}}, "x"),
        ("$a.b[0]", {"a": {"b": ["x", "y"]}}, "x"),
        ("$a.b[2]", {"a": {"b": ["x", "y"]}}, ""),
        ("$a.b", {"a.b": "x", "a": {"b": "y"}}, "x"),
        ("$a.b", {"a": "no object"}, ""),
        ("Title: $title", {"title": "x"}, "Title: x"),
        ("$a $b", {"a": 1}, "1 undefined"),
        ("fixed", {}, "fixed"),
    ],
)
def test_value_expressions(value: str, data: dict[str, Any], drawn: str) -> None:
    assert text_drawn(control_of("Labels", "Text", value=value), data) == drawn


@pytest.mark.parametrize(
    ("encoding", "value", "drawn"),
    [
        ("base64unicode", base64.b64encode("Bob é".encode()).decode(), "Bob é"),
        ("base64", base64.b64encode("Bob é".encode()).decode(), "Bob Ã©"),
        ("base64", "é", ""),
        ("base64", "abc", ""),
    ],
)
def test_encoded_texts(encoding: str, value: str, drawn: str) -> None:
    assert text_drawn(control_of("Labels", "Text", f'encoding="{encoding}"'), {"text": value}) == drawn


# (html, text over the nodes of a document, the same for inline="true")
HTML: list[tuple[str, str, str]] = [
    (given_html, document, document if inline is None else inline)
    for given_html, document, inline in [
        ("<p>Hello <b>World</b></p>", "Hello World", None),
        ("a<br>b<br/>c</br>d", "a\nb\nc\nd", None),
        ("😀 x &amp; y&nbsp;&#x1F600;&copy;&notit;&ampx", "😀 x & y\xa0😀©¬it;&x", None),
        ("  \n<p>a</p>\r\n<p>b</p>\n", "a\nb\n", "  \na\nb\n"),
        ("  lead <b> x </b> ", "lead  x  ", "  lead  x  "),
        ("\n", "", "\n"),
        ("line\r\ntwo\rthree", "line\ntwo\nthree", None),
        ("<h1>T</h1> \t<h2>U</h2>", "T \tU", None),
        ("<!doctype html><html><head><title>T</title></head>\n<body> b </body></html>\n", " b \n", "T\n b \n"),
        ("<style>x{}</style>a<style>y{}</style>b", "ay{}b", "x{}ay{}b"),
        ("<title>t</title>a", "a", "ta"),
        ("a<script>var x = '<b>';</script>b", "ab", None),
        ("a<iframe>inner</iframe>b", "ab", None),
        ("a<textarea>T &amp; x</textarea>b", "aT & xb", None),
        ("<select><option>one</option> <option>two</option></select>z", "one twoz", None),
        ("a<noscript>plain</noscript>b", "aplainb", None),
        ("a<!-- c -->b<?php y ?>c<![CDATA[x]]>d", "abcd", None),
        ("<template>t</template>u", "u", None),
        ("<pre>\nfirst</pre><pre>\n\nsecond</pre>", "first\nsecond", None),
        ("<table>foo<tr><td>bar</td> baz</tr></table>q", "foo bazbarq", None),
        ("<table>\n <tr>\n <td>x</td>\n </tr>\n</table>", "\n \n x\n \n", None),
        ("<p>a<p>b<div>c</p>d", "abcd", None),
        ("<b>x<i>y</b>z</i>", "xyz", None),
        ("<td>cell</td>", "cell", None),
        ("x < y && z > w", "x < y && z > w", None),
        ("<a title='>'>l</a>", "l", None),
        ("a\0b", "ab", None),
        ("\ufeffbom", "bom", "\ufeffbom"),
        ("<svg><text>in svg</text><title>s</title></svg>", "in svgs", None),
        ("<frameset><frame></frameset>", "", None),
        ("<body class=x>hello</body> after", "hello after", None),
        ("e\u0301 שלום 漢字 \U0001f468\u200d\U0001f469", "e\u0301 שלום 漢字 \U0001f468\u200d\U0001f469", None),
        ("", "", None),
        ("<p>unclosed <b>bold", "unclosed bold", None),
    ]
]


@pytest.mark.parametrize(("given_html", "document", "inline"), HTML)
def test_text_of_html(given_html: str, document: str, inline: str) -> None:
    assert passage_of_html(given_html, inline=False).text == document
    assert passage_of_html(given_html, inline=True).text == inline


@pytest.mark.parametrize(
    ("given_html", "text"),
    [
        # Label Studio's sanitizer acts before the browser's parser: comments go, &#13; becomes a line end
        ("<pre><!-- c -->\nx</pre>", "x"),
        ("<pre>a<!-- c -->\nx</pre>", "a\nx"),
        ("a&#13;&#10;b&#13;c", "a\nb\nc"),
    ],
)
def test_text_of_html_after_sanitizing(given_html: str, text: str) -> None:
    assert passage_of_html(given_html, inline=False).text == passage_of_html(given_html, inline=True).text == text


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
COUNTING_PAGE = """<!doctype html><meta charset="utf-8"><body><script>
const decoded = new TextDecoder().decode(Uint8Array.from(atob("%s"), c => c.charCodeAt(0)));
// as Label Studio's DomManager counts; its sanitizer has removed scripts and frames before
function textOf(root) {
  let text = "";
  const walker = root.ownerDocument.createTreeWalker(root, NodeFilter.SHOW_ALL);
  for (let node = root; node; node = walker.nextNode()) {
    if (node.parentElement && ["SCRIPT", "IFRAME"].includes(node.parentElement.nodeName)) continue;
    if (node.nodeType === Node.TEXT_NODE) text += node.textContent;
    if (node.nodeName === "BR") text += "\\n";
  }
  return text;
}
(async () => {
  const found = [];
  for (const html of JSON.parse(decoded)) {
    const frame = document.createElement("iframe");
    frame.sandbox = "allow-same-origin allow-scripts allow-presentation";
    frame.srcdoc = html;
    await new Promise(resolve => { frame.onload = resolve; document.body.append(frame); });
    const div = document.createElement("div");
    div.innerHTML = html;
    found.push([textOf(frame.contentDocument.body), textOf(div)]);
    frame.remove();
  }
  const result = document.createElement("pre");
  result.id = "found";
  result.textContent = btoa(String.fromCharCode(...new TextEncoder().encode(JSON.stringify(found))));
  document.body.append(result);
})();
</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium to compare with")
def test_text_of_html_is_the_browsers(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    snippets = json.dumps([given_html for given_html, _, _ in HTML])
    page.write_text(COUNTING_PAGE % base64.b64encode(snippets.encode()).decode(), encoding="utf-8")
    dumped = subprocess.run(
        [
            str(CHROMIUM),
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--no-first-run",
            "--disable-background-networking",
            "--virtual-time-budget=30000",
            f"--user-data-dir={tmp_path / 'profile'}",
            "--dump-dom",
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stdout
    result = re.search(r'<pre id="found">([^<]*)</pre>', dumped)
    assert result, dumped[-500:]
    found = json.loads(base64.b64decode(result[1]))
    assert [tuple(texts) for texts in found] == [(document, inline) for _, document, inline in HTML]


def test_phrases_of_a_dialogue() -> None:
    control = control_of("ParagraphLabels", "Paragraphs", 'textKey="said"')
    data = {"text": [{"said": "😀 Hi\r\nBob"}, {"said": 5}, {"said": None}, {}, {"said": ["x"]}, "odd", {"said": "z"}]}
    assert regions.passages(control, data) == tuple(
        Passage(text) for text in ["😀 Hi\r\nBob", "5", "", "", "", "", "z"]
    )


@pytest.mark.parametrize("value", [None, "one text", 5, {"a": 1}, []])
def test_a_dialogue_that_is_no_list_is_not_drawn(value: object) -> None:
    assert regions.passages(PARAGRAPHS, {"text": value}) == ()


def test_context_scroll_draws_phrases_by_their_start() -> None:
    control = control_of("ParagraphLabels", "Paragraphs", 'contextScroll="true"')
    times = [5, 1.5, None, 3, 0]
    data = {"text": [{"text": str(time), "start": time} for time in times]}
    assert [passage.text for passage in regions.passages(control, data)] == ["1.5", "3", "5", "None", "0"]
    assert [passage.text for passage in regions.passages(PARAGRAPHS, data)] == ["5", "1.5", "None", "3", "0"]


# regions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("control", "data", "passage", "span", "value"),
    [
        (
            TEXT,
            {"text": "😀\r\nBarack Obama"},
            0,
            Span(3, 15, "Person", 0.5),
            {"start": 3, "end": 15, "text": "Barack Obama", "labels": ["Person"]},
        ),
        (
            HYPERTEXT,
            {"text": "<p>😀 a&amp;b<br>to <i>Ro<b>me</b></i></p>"},
            0,
            Span(9, 13, "place", 0.5),
            {"start": 9, "end": 13, "text": "Rome", "hypertextlabels": ["place"]},
        ),
        (
            PARAGRAPHS,
            {"text": [{"text": "x"}, {"text": "😀 Hi\r\nBob"}]},
            1,
            Span(6, 9, "Person", 0.5),
            {
                "start": "1",
                "end": "1",
                "startOffset": 7,
                "endOffset": 10,
                "text": "Bob",
                "paragraphlabels": ["Person"],
            },
        ),
    ],
)
def test_region_of_each_object(
    control: Control, data: dict[str, Any], passage: int, span: Span, value: dict[str, Any]
) -> None:
    found = regions.passages(control, data)
    (region,) = regions.render(control, found, [[span] if i == passage else [] for i in range(len(found))])
    region_id = region.pop("id")
    assert re.fullmatch(r"[0-9a-f]{10}", region_id)
    assert region == {"from_name": "label", "to_name": "text", "type": control.type, "value": value, "score": 0.5}


def test_region_ids_are_fresh() -> None:
    passages = regions.passages(TEXT, {"text": "Bob Bob"})
    spans = [[Span(0, 3, "Person", 1.0), Span(4, 7, "Person", 1.0)]]
    ids = [region["id"] for _ in range(3) for region in regions.render(TEXT, passages, spans)]
    assert len(set(ids)) == 6


@pytest.mark.parametrize("score", [1.0000001, -1e-9, 0.25])
def test_scores_stay_within_what_label_studio_accepts(score: float) -> None:
    (region,) = regions.render(TEXT, [Passage("Bob")], [[Span(0, 3, "Person", score)]])
    assert region["score"] == pytest.approx(score, abs=1e-6)
    assert 0 <= region["score"] <= 1


@pytest.mark.parametrize("span", [Span(0, 4, "Person", 1.0), Span(-1, 2, "Person", 1.0), Span(2, 2, "Person", 1.0)])
def test_bounds_are_checked_by_us(span: Span) -> None:
    with pytest.raises(AssertionError):
        regions.render(TEXT, [Passage("Bob")], [[span]])


PIECES = [
    "Bob",
    "Bob ",
    "😀",
    "\r\n",
    "e\u0301",
    "שלום ",
    "漢字",
    "\U0001f468\u200d\U0001f469",
    " ",
    "\ufffd",
    "<&>",
    "x",
]
TEXTS = st.lists(st.sampled_from(PIECES) | st.text(st.characters(codec="utf-8"), max_size=3), max_size=12).map("".join)


@st.composite
def spans_in(draw: st.DrawFn, text: str) -> list[Span]:
    """Spans that may touch, overlap or repeat."""
    spans = []
    for _ in range(draw(st.integers(0, 4)) if text else 0):
        start = draw(st.integers(0, len(text) - 1))
        end = draw(st.integers(start + 1, len(text)))
        spans.append(Span(start, end, draw(st.sampled_from(["Person", "place"])), 1.0))
    return spans


@pytest.mark.parametrize(("tag", "labelled"), FORMS)
@given(data=st.data())
def test_parse_inverts_render(tag: str, labelled: str, data: st.DataObject) -> None:
    config = config_of(tag, labelled, 'inline="true"')
    (control,) = schema.parse(config).controls
    texts = data.draw(st.lists(TEXTS, min_size=1, max_size=1 if labelled != "Paragraphs" else 4))
    value: object = texts[0]
    if labelled == "HyperText":
        value = "<p>" + html.escape(texts[0]) + "</p>"
    elif labelled == "Paragraphs":
        value = [{"author": "A", "text": text} for text in texts]
    passages = regions.passages(control, {"text": value})
    spans = tuple(tuple(data.draw(spans_in(passage.text))) for passage in passages)

    rendered = json.loads(json.dumps(regions.render(control, passages, spans)))

    assert regions.parse(control, passages, rendered) == regions.ParsedRegions(spans, ())
    interface: Any = LabelInterface(config)
    assert interface.validate_prediction({"result": rendered, "score": 0.5}, return_errors=True) == []
    placed = [(passage, span) for passage, of_passage in zip(passages, spans, strict=True) for span in of_passage]
    for region, (passage, span) in zip(rendered, placed, strict=True):
        assert region["value"]["text"] == passage.text[span.start : span.end]
        if labelled == "Paragraphs":
            utf16 = passage.text.encode("utf-16-le")
            start, end = region["value"]["startOffset"], region["value"]["endOffset"]
            assert utf16[2 * start : 2 * end].decode("utf-16-le") == passage.text[span.start : span.end]


@given(TEXTS)
def test_text_of_escaped_html_is_the_text(text: str) -> None:
    drawn = text.replace("\r\n", "\n").replace("\r", "\n").replace("\0", "")
    assert passage_of_html(f"<p>{html.escape(text)}</p>", inline=True).text == drawn
    assert passage_of_html(f"<p>{html.escape(text)}</p>", inline=False).text == drawn


@given(st.text())
def test_any_string_is_drawn_and_can_be_encoded(text: str) -> None:
    for control in (TEXT, HYPERTEXT):
        text_drawn(control, {"text": text}).encode()
    (passage,) = regions.passages(PARAGRAPHS, {"text": [{"text": text}]})
    passage.text.encode()
    assert len(passage.text) == len(text)


def region(control: Control, **value: Any) -> dict[str, Any]:
    return {
        "id": "r1",
        "from_name": "label",
        "to_name": "text",
        "type": control.type,
        "origin": "manual",
        "value": {control.type: ["Person"], **value},
    }


def test_hypertext_as_annotators_make_it() -> None:
    passages = regions.passages(HYPERTEXT, {"text": "<p>a <b>Bob</b> went</p>😀 to <i>Rome</i>"})
    found = regions.parse(
        HYPERTEXT,
        passages,
        [
            region(
                HYPERTEXT,
                start="/i[1]/text()[1]",
                end="/i[1]/text()[1]",
                startOffset=0,
                endOffset=4,
                globalOffsets={"start": 15, "end": 19},
                text="Rome",
                hypertextlabels=["place"],
            ),
            region(HYPERTEXT, start=2, end=5),
        ],
    )
    assert found.problems == ()
    assert found.spans == ((Span(15, 19, "place", 1.0), Span(2, 5, "Person", 1.0)),)


def test_texts_of_regions_are_not_trusted() -> None:
    found = regions.parse(TEXT, [Passage("a  Bob\nBob")], [region(TEXT, start=7, end=10, text="nothing like it")])
    assert found.spans == ((Span(7, 10, "Person", 1.0),),)


def test_a_region_over_several_phrases_is_split() -> None:
    passages = [Passage("one Here"), Passage(""), Passage("mid"), Passage("😀 two")]
    whole = region(PARAGRAPHS, start="0", end="3", startOffset=4, endOffset=2)
    found = regions.parse(PARAGRAPHS, passages, [whole])
    assert found == regions.ParsedRegions(
        (
            (Span(4, 8, "Person", 1.0),),
            (),
            (Span(0, 3, "Person", 1.0),),
            (Span(0, 1, "Person", 1.0),),
        ),
        (),
    )


def test_a_region_with_several_labels_gives_a_span_for_each_known_one() -> None:
    found = regions.parse(TEXT, [Passage("Bob")], [region(TEXT, start=0, end=3, labels=["Person", "Old", "place"])])
    assert found.spans == ((Span(0, 3, "Person", 1.0), Span(0, 3, "place", 1.0)),)
    assert found.problems == (Problem("r1", "unknown_label", "'Old' is no label of 'label'"),)


PASSAGES = {
    "labels": [Passage("😀 Bob")],
    "hypertextlabels": [Passage("Bob")],
    "paragraphlabels": [Passage("😀 Bob")],
}


@pytest.mark.parametrize(
    ("control", "given_region", "kind"),
    [
        (TEXT, region(TEXT, start=0, end=3) | {"from_name": "other"}, "other_control"),
        (TEXT, region(TEXT, start=0, end=3) | {"to_name": "other"}, "other_control"),
        (TEXT, {"type": "relation", "from_id": "a", "to_id": "b"}, "other_control"),
        (TEXT, region(TEXT, start=0, end=3) | {"type": "choices"}, "other_type"),
        (TEXT, region(TEXT, start=0, end=3) | {"value": None}, "other_type"),
        (TEXT, "no region", "other_type"),
        (TEXT, region(TEXT, start=0, end=3, labels=[]), "unknown_label"),
        (TEXT, region(TEXT, start=0, end=3, labels=None), "unknown_label"),
        (TEXT, region(TEXT, start=0, end=3, labels=[["x"]]), "unknown_label"),
        (TEXT, region(TEXT, start=0, end=6), "out_of_bounds"),
        (TEXT, region(TEXT, start=-1, end=2), "out_of_bounds"),
        (TEXT, region(TEXT, start=2, end=2), "out_of_bounds"),
        (TEXT, region(TEXT, start=True, end=2), "no_offsets"),
        (TEXT, region(TEXT, start=0.5, end=2), "no_offsets"),
        (TEXT, region(TEXT, start=float("nan"), end=2), "no_offsets"),
        (TEXT, region(TEXT), "no_offsets"),
        (HYPERTEXT, region(HYPERTEXT, start="/p[1]/text()[1]", end="/p[1]", startOffset=0, endOffset=2), "no_offsets"),
        (HYPERTEXT, region(HYPERTEXT, start=0, end=2, globalOffsets=[1]), "no_offsets"),
        (PARAGRAPHS, region(PARAGRAPHS, start="0", end="0"), "no_offsets"),
        (PARAGRAPHS, region(PARAGRAPHS, start="x", end="0", startOffset=0, endOffset=1), "no_offsets"),
        (PARAGRAPHS, region(PARAGRAPHS, start="0", end="1", startOffset=0, endOffset=1), "out_of_bounds"),
        (PARAGRAPHS, region(PARAGRAPHS, start="0", end="0", startOffset=0, endOffset=99), "out_of_bounds"),
        (PARAGRAPHS, region(PARAGRAPHS, start="0", end="0", startOffset=1, endOffset=3), "out_of_bounds"),  # in 😀
        (PARAGRAPHS, region(PARAGRAPHS, start="0", end="0", startOffset=3, endOffset=3), "out_of_bounds"),
    ],
)
def test_what_gives_no_span_is_reported(control: Control, given_region: Any, kind: str) -> None:
    found = regions.parse(control, PASSAGES[control.type], [given_region])
    assert found.spans == ((),)
    assert [problem.kind for problem in found.problems] == [kind]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 9) | st.floats() | st.text(max_size=2),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=5,
)


@given(
    control=st.sampled_from([TEXT, HYPERTEXT, PARAGRAPHS]),
    value=st.fixed_dictionaries(
        {},
        optional=dict.fromkeys(
            ["start", "end", "startOffset", "endOffset", "globalOffsets", "labels", "hypertextlabels"], JSON
        ),
    ),
)
def test_no_region_can_raise(control: Control, value: dict[str, Any]) -> None:
    found = regions.parse(
        control, PASSAGES[control.type], [region(control, **value), value, region(control) | {"id": None}]
    )
    for span in found.spans[0]:
        assert 0 <= span.start < span.end <= len(PASSAGES[control.type][0].text)


def test_blocks_break_words_where_no_white_space_does() -> None:
    passage = passage_of_html(
        "<table><tr><td>Ivan <b>Pet</b>rov</td><td>Plovdiv</td></tr></table><p>Paris</p>", inline=True
    )
    assert passage.text == "Ivan PetrovPlovdivParis"
    assert passage.breaks == (11, 18)
    assert [word.text for word in segment.words(passage.text, passage.breaks)] == ["Ivan", "Petrov", "Plovdiv", "Paris"]


def test_inline_elements_do_not_break() -> None:
    assert passage_of_html("<p>un<em>believ</em>able<br>news</p>", inline=False).breaks == ()
