"""Label configs -> LabelSchema."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.errors import InvalidLabelConfig
from backend.labelstudio.schema import MAX_CONFIG_CHARS, MAX_CONTROLS, MAX_LABELS, Control, LabelSchema, parse, readable
from backend.ner.labels import PromptLabels

TEXT = '<Text name="text" value="$text"/>'
LABELS = '<Labels name="label" toName="text"><Label value="Person"/><Label value="Place"/></Labels>'


def view(*tags: str) -> str:
    return f"<View>{''.join(tags)}</View>"


def labels_of(*labels: str) -> list[tuple[str, str]]:
    """(prompt words, stored label) of each label of one control with these <Label> tags."""
    (control,) = parse(view(TEXT, '<Labels name="label" toName="text">', *labels, "</Labels>")).controls
    return [(entry.words, entry.label) for entry in control.labels.entries]


def test_control_of_a_plain_config() -> None:
    schema = parse(view(LABELS, TEXT))
    assert schema.controls == (
        Control(
            name="label",
            type="labels",
            object_name="text",
            object_type="Text",
            task_key="$text",
            smart=False,
            labels=PromptLabels.of([("person", "Person"), ("place", "Place")]),
        ),
    )
    assert schema.controls[0].labels.words == ("person", "place")
    assert schema.label_values == ("Person", "Place")


def many_controls(num_controls: int, num_labels: int) -> str:
    labels = "".join(f'<Label value="{number}"/>' for number in range(num_labels))
    controls = "".join(f'<Labels name="c{number}" toName="t">{labels}</Labels>' for number in range(num_controls))
    return f'<View>{controls}<Text name="t" value="$t"/></View>'


@pytest.mark.parametrize(
    ("control", "labelled", "expected"),
    [
        ("Labels", '<Text name="o" value="$a"/>', ("labels", "Text", "$a")),
        ("Labels", '<HyperText name="o" value="$a.b"/>', ("labels", "HyperText", "$a.b")),
        ("Labels", '<Paragraphs name="o" value="$a"/>', ("labels", "Paragraphs", "$a")),
        ("HyperTextLabels", '<HyperText name="o" value="$a"/>', ("hypertextlabels", "HyperText", "$a")),
        ("HyperTextLabels", '<Text name="o" value="Title: $a"/>', ("hypertextlabels", "Text", "Title: $a")),
        ("ParagraphLabels", '<Paragraphs name="o" value="$a"/>', ("paragraphlabels", "Paragraphs", "$a")),
    ],
)
def test_controls_and_objects_that_count(control: str, labelled: str, expected: tuple[str, str, str]) -> None:
    config = view(labelled, f'<{control} name="c" toName="o"><Label value="x"/></{control}>')
    (found,) = parse(config).controls
    assert (found.type, found.object_type, found.task_key) == expected


def test_attributes_of_objects() -> None:
    controls = parse(
        view(
            '<HyperText name="page" value="$html" inline="true" encoding="base64unicode"/>',
            '<Paragraphs name="talk" value="$talk" textKey="said" nameKey="who" contextScroll="true"/>',
            '<Labels name="a" toName="page" smart="true"><Label value="x"/></Labels>',
            '<ParagraphLabels name="b" toName="talk"><Label value="x"/></ParagraphLabels>',
        )
    ).controls
    assert [(c.inline, c.encoding, c.smart) for c in controls] == [
        (True, "base64unicode", True),
        (False, "none", False),
    ]
    assert [(c.text_key, c.by_start_time) for c in controls] == [("text", False), ("said", True)]


def test_several_controls_and_objects_each_with_its_own_labels() -> None:
    controls = parse(
        view(
            TEXT,
            '<Text name="title" value="$title"/>',
            '<Labels name="who" toName="text,title"><Label value="Person"/></Labels>',
            '<Labels name="where" toName="text"><Label value="Place"/></Labels>',
        )
    ).controls
    assert [(c.name, c.object_name, c.labels.words) for c in controls] == [
        ("who", "text", ("person",)),
        ("who", "title", ("person",)),
        ("where", "text", ("place",)),
    ]


def test_other_controls_are_ignored_and_nested_tags_do_not_disturb() -> None:
    schema = parse(
        view(
            TEXT,
            '<Image name="image" value="$image"/>',
            '<RectangleLabels name="box" toName="image"><Label value="Cat"/></RectangleLabels>',
            '<Labels name="on-image" toName="image"><Label value="Dog"/></Labels>',
            '<Choices name="tone" toName="text"><Choice value="Good"/></Choices>',
            '<TextArea name="note" toName="text"/>',
            '<!-- {"data": {"text": "x"}} -->',
            '<Labels name="label" toName="text"><Header value="People"/>',
            '<View><Label value="Person"/><Choice value="no label"/></View></Labels>',
        )
    )
    assert [(c.name, c.labels.words) for c in schema.controls] == [("label", ("person",))]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("Person", "person"),
        ("PERSON", "person"),
        ("CreativeWork", "creative work"),
        ("HTTPServer", "http server"),
        ("date_or_time", "date or time"),
        ("WORK_OF_ART", "work of art"),
        ("date-or-time", "date or time"),
        ("e-mail", "e-mail"),
        ("Real-life person", "real-life person"),
        ("  two   words ", "two words"),
        ("Date (past, or [future])", "date past or future"),
        ("PER", "person"),
        ("per", "person"),
        ("Org", "organization"),
        ("LOC", "location"),
        ("MISC", "miscellaneous"),
        ("GPE", "geopolitical entity"),
        ("FAC", "facility"),
        ("B2B", "b2b"),
        ("人名", "人名"),
        ("ÅngströmUnit", "ångström unit"),
        ("(,)", ""),
    ],
)
def test_readable_form(value: str, expected: str) -> None:
    assert readable(value) == expected


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (['<Label value="PER" alias="p"/>'], [("person", "p")]),
        (['<Label alias="PER"/>'], [("person", "PER")]),
        (['<Label value="Z" predicted_values="person, human being"/>'], [("person", "Z"), ("human being", "Z")]),
        (['<Label value="Z" predicted_values="PER"/>'], [("PER", "Z")]),
        (['<Label value="Z" predicted_values=" , "/>'], [("z", "Z")]),
        (['<Label value="(a)"/>', '<Label value="(,)"/>'], [("a", "(a)"), ("label 2", "(,)")]),
        (['<Label value="Person"/>', '<Label value="PER"/>'], [("person", "Person"), ("PER", "PER")]),
        (
            ['<Label value="Person"/>', '<Label value="person"/>', '<Label value="(person)"/>'],
            [("person", "Person"), ("person 2", "person"), ("person 3", "(person)")],
        ),
    ],
)
def test_prompt_labels(labels: list[str], expected: list[tuple[str, str]]) -> None:
    assert labels_of(*labels) == expected


def test_names_and_values_of_a_control() -> None:
    (control,) = parse(
        view(
            TEXT,
            '<Labels name="l" toName="text">',
            '<Label value="Z" alias="z" predicted_values="person,human"/></Labels>',
        )
    ).controls
    assert control.labels.label_of("human") == "z"
    assert control.labels.words_of("z") == "person"
    assert control.labels.words_of("Z") is None


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), min_size=1), min_size=1))
def test_prompt_names_are_distinct_and_never_hold_signs_of_the_format(values: list[str]) -> None:
    def escaped(value: str) -> str:
        return value.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")

    names_of = {value: name for name, value in labels_of(*(f'<Label value="v{escaped(v)}"/>' for v in values))}
    assert len(set(names_of.values())) == len(names_of) == len({f"v{value}" for value in names_of}) > 0
    for name in names_of.values():
        assert name == " ".join(name.split()) != ""
        assert not set(name) & set("()[]{}<>,")


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("", "not well-formed"),
        ("<View>", "not well-formed"),
        ("<View>\0</View>", "not well-formed"),
        ("<View a='\ud800'/>", "not well-formed"),
        ("<?xml version='1.0' encoding='utf-8'?><View/>", "encoding declaration"),
        ('<!DOCTYPE v [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><View>&b;</View>', "DOCTYPE"),
        ("<View>" + " " * MAX_CONFIG_CHARS + "</View>", str(MAX_CONFIG_CHARS)),
        (many_controls(MAX_CONTROLS + 1, 1), f"{MAX_CONTROLS + 1} controls; at most {MAX_CONTROLS}"),
        (many_controls(2, MAX_LABELS // 2 + 1), f"{MAX_LABELS + 2} labels; at most {MAX_LABELS}"),
        ('<View><?odd name="x" toName="y"?></View>', "cannot be read"),
        (view(TEXT), "found no control at all"),
        (view(TEXT, '<Choices name="c" toName="text"><Choice value="x"/></Choices>'), "<Choices name='c'>"),
        (
            view('<Image name="i" value="$i"/>', '<Labels name="l" toName="i"><Label value="x"/></Labels>'),
            "labels <Image name='i'>",
        ),
        (view(TEXT, '<Labels name="l" toName="text"/>'), "<Labels name='l'> has no labels"),
        (view(TEXT, '<Labels name="l" toName="text"><Choice value="x"/></Labels>'), "has no labels"),
        (view(TEXT, '<Labels name="l" toName="text" value="$labels"/>'), "from task data"),
        (view(TEXT, '<Labels name="l" toName="txt"><Label value="x"/></Labels>'), "toName 'txt'"),
        (view(LABELS, '<Text name="text" value="$text" valueType="url"/>'), "valueType=url"),
        (view(TEXT, LABELS.replace('toName="text"', 'toName="text, text"')), "toName ' text'"),
    ],
)
def test_what_is_refused_says_why(config: str, said: str) -> None:
    with pytest.raises(InvalidLabelConfig) as refused:
        parse(config)
    assert said in str(refused.value)


def test_a_dynamic_control_beside_a_usable_one_is_left_out() -> None:
    schema = parse(view(LABELS, TEXT, '<Labels name="l" toName="text" value="$labels"/>'))
    assert [control.name for control in schema.controls] == ["label"]


def digest_of(config: str) -> str:
    schema: LabelSchema = parse(config)
    return schema.digest


@pytest.mark.parametrize(
    "config",
    [
        view(LABELS, TEXT.replace("/>", ' granularity="word"/>')),
        view('<Header value="x"/>', TEXT, LABELS.replace("<Label ", '<Label hotkey="1" background="red" ')),
        view(LABELS.replace("<Labels ", '<Labels smart="true" '), TEXT),
    ],
)
def test_digest_is_blind_to_looks(config: str) -> None:
    assert digest_of(config) == digest_of(view(LABELS, TEXT))


@pytest.mark.parametrize(
    "config",
    [
        view(LABELS.replace("Place", "City"), TEXT),
        view(LABELS.replace('value="Place"', 'value="Place" alias="p"'), TEXT),
        view(LABELS.replace('value="Place"', 'value="Place" predicted_values="city"'), TEXT),
        view(LABELS.replace('name="label"', 'name="ner"'), TEXT),
        view(LABELS, TEXT.replace("$text", "$body")),
        view(LABELS, TEXT.replace("Text", "HyperText")),
        view(LABELS, TEXT.replace("Text", "HyperText").replace("/>", ' inline="true"/>')),
    ],
)
def test_digest_changes_with_what_predictions_depend_on(config: str) -> None:
    assert digest_of(config) != digest_of(view(LABELS, TEXT))
    assert digest_of(config) == digest_of(config)


def test_the_digest_of_a_config_is_the_one_that_projects_have_stored() -> None:
    config = view(
        '<HyperText name="page" value="$html" inline="true" encoding="base64unicode"/>',
        TEXT,
        '<Labels name="a" toName="page" smart="true"><Label value="PER" alias="p"/>'
        '<Label value="Z" predicted_values="person, human being"/></Labels>',
        '<Labels name="label" toName="text"><Label value="Person"/></Labels>',
    )
    assert parse(config).digest == "809743b3fc464a37f5411f921ec3641f"
