"""Calls whose parameters are tagged: found however the text is cut, and their values typed by the tool's schema."""

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.engine.test_calls import Read, read

from woodfrog.engine.calls import Arguments, Begun
from woodfrog.engine.formats import Schema
from woodfrog.engine.tagged_calls import reader_of
from woodfrog.engine.tool_format import ToolFormat
from woodfrog.engine.tools import ToolUse

PROPERTIES: dict[str, Any] = {
    "text": {"type": "string"},
    "count": {"type": "integer"},
    "depth": {"type": "number"},
    "wet": {"type": "boolean"},
    "frogs": {"type": "array", "items": {"type": "string"}},
    "map": {"$ref": "#/$defs/map"},
    "maybe": {"anyOf": [{"type": "string"}, {"type": "null"}]},
    "number": {"type": ["integer", "null"]},
    "kind": {"enum": ["tree", "common"]},
    "level": {"enum": [1, 2]},
    "loop": {"$ref": "#/$defs/loop"},
    "free": {},
}
POND = {
    "type": "object",
    "properties": PROPERTIES,
    "$defs": {"map": {"type": "object"}, "loop": {"anyOf": [{"$ref": "#/$defs/loop"}] * 9}},
}
TOOLS = [
    {"type": "function", "function": {"name": "pond", "description": "", "parameters": POND}},
    {"type": "function", "function": {"name": "weather", "description": "", "parameters": {}}},
]


def use(*, forced: bool = False, parallel: bool = True) -> ToolUse:
    return ToolUse(ToolFormat.TAGGED, TOOLS, Schema("", "tools") if forced else None, parallel)


def call(name: str, **parameters: str) -> str:
    inside = "".join(f"<parameter={k}>\n{v}\n</parameter>\n" for k, v in parameters.items())
    return f"<tool_call>\n<function={name}>\n{inside}</function>\n</tool_call>"


CASES: list[tuple[str, Read]] = [
    ("Hello there", ("Hello there", [])),
    ("1 < 2 and <tool", ("1 < 2 and <tool", [])),
    (call("weather"), ("", [("weather", "{}")])),
    (call("pond", text="a frog", count="3"), ("", [("pond", '{"text": "a frog", "count": 3}')])),
    ("I look.\n" + call("pond", wet="true"), ("I look.", [("pond", '{"wet": true}')])),
    (
        call("pond", text="a") + "\n" + call("weather", x="1") + "\n",
        ("", [("pond", '{"text": "a"}'), ("weather", '{"x": 1}')]),
    ),
    # Lines within a text are its own; only one at each side belongs to the tag.
    (call("pond", text='\n  a\n\n"b"\n'), ("", [("pond", '{"text": "\\n  a\\n\\n\\"b\\"\\n"}')])),
    (call("pond", text="if a < b > c: </p>"), ("", [("pond", '{"text": "if a < b > c: </p>"}')])),
    (call("pond", text=""), ("", [("pond", '{"text": ""}')])),
    # Marks that are missing.
    (
        "<function=pond>\n<parameter=wet>false</parameter></function>",
        ("", [("pond", '{"wet": false}')]),
    ),
    (
        "Well: <function=pond><parameter=text>a</parameter></function> Done.",
        ("Well: Done.", [("pond", '{"text": "a"}')]),
    ),
    (
        "<tool_call><function=pond><parameter=text>a\n<parameter=count>2</function></tool_call>",
        ("", [("pond", '{"text": "a", "count": 2}')]),
    ),
    (
        "<tool_call><function=pond><parameter=count>2</parameter></tool_call>",
        ("", [("pond", '{"count": 2}')]),
    ),
    # No calls.
    (call("toad", a="1"), (call("toad", a="1"), [])),
    ("<tool_call>{}</tool_call>", ("<tool_call>{}</tool_call>", [])),
    ("<tool_call>\n<function=pond\n<parameter", ("<tool_call>\n<function=pond\n<parameter", [])),
    ("<function=toad><function=pond></function>", ("<function=toad>", [("pond", "{}")])),
    ("<tool_call><tool_call><function=pond></function>", ("<tool_call>", [("pond", "{}")])),
    ("<tool_call>", ("<tool_call>", [])),
    # What follows in a call and belongs to none is text.
    (
        "<function=pond><parameter=count>2</parameter>oh<parameter=wet>true</parameter></function>",
        ("oh<parameter=wet>true</parameter></function>", [("pond", '{"count": 2}')]),
    ),
    # Cut by the end of the answer.
    ("<function=pond><parameter=count>2", ("", [("pond", '{"count": ')])),
    ("<function=pond><parameter=text>2", ("", [("pond", '{"text": "2')])),
]


@pytest.mark.parametrize(("text", "expected"), CASES)
def test_calls_are_found_whole_and_letter_by_letter(text: str, expected: Read) -> None:
    assert read(use(), [text]) == expected
    assert read(use(), list(text)) == expected


@pytest.mark.parametrize(("text", "expected"), CASES)
def test_where_an_answer_is_cut_makes_no_difference(text: str, expected: Read) -> None:
    for at in range(len(text)):
        assert read(use(), [text[:at], text[at:]]) == expected


@given(case=st.sampled_from(CASES), data=st.data())
def test_nor_does_how_often(case: tuple[str, Read], data: st.DataObject) -> None:
    text, expected = case
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=6)))
    pieces = [text[a:b] for a, b in itertools.pairwise([0, *cuts, len(text)])]
    assert read(use(), pieces) == expected


@pytest.mark.parametrize(
    ("name", "said", "value"),
    [
        ("text", "5", "5"),
        ("text", "null", "null"),
        ("text", '{"a": 1}', '{"a": 1}'),
        ("count", "5", 5),
        ("count", " -5 ", -5),
        ("count", "5.0", 5),
        ("count", "five", "five"),
        ("depth", "5", 5),
        ("depth", "0.25", 0.25),
        ("depth", "1e999", "1e999"),
        ("depth", "NaN", "NaN"),
        ("wet", "True", True),
        ("wet", "false", False),
        ("wet", "yes", "yes"),
        ("frogs", '["a", "b"]', ["a", "b"]),
        ("frogs", "a, b", "a, b"),
        ("frogs", "[" * 5000, "[" * 5000),
        ("map", '{"a": {"b": [1]}}', {"a": {"b": [1]}}),
        ("maybe", "null", None),
        ("maybe", "None", "None"),
        ("maybe", "5", "5"),
        ("number", "None", None),
        ("number", "7", 7),
        ("kind", "tree", "tree"),
        ("level", "2", 2),
        ("loop", "3", 3),
        ("free", "[1]", [1]),
        ("free", "True", "True"),
        ("free", "so", "so"),
        ("unknown", "1", 1),
    ],
)
def test_values_get_the_types_of_the_schema(name: str, said: str, value: object) -> None:
    text, [(_, arguments)] = read(use(), list(call("pond", **{name: said})))
    assert text == ""
    assert json.loads(arguments) == {name: value}


@given(st.text().filter(lambda text: "<" not in text))
def test_any_text_comes_through(text: str) -> None:
    said, [(_, arguments)] = read(use(), list(call("pond", text=text)))
    assert (said, json.loads(arguments)) == ("", {"text": text})


@given(
    st.lists(
        st.sampled_from(
            [
                *"a \n<>/=",
                "<tool_call>",
                "</tool_call>",
                "<function=",
                "pond>",
                "</function>",
                "<parameter=",
                "text>",
                "count>",
                "</parameter>",
                "\n",
            ]
        )
    )
)
def test_whatever_comes_cuts_make_no_difference(parts: list[str]) -> None:
    whole = read(use(), ["".join(parts)])
    assert read(use(), parts) == whole
    assert read(use(), list("".join(parts))) == whole


def test_texts_leave_as_they_come() -> None:
    reader = reader_of(use())
    assert reader.feed("<tool_call>\n<function=pond>") == [Begun("pond"), Arguments("{")]
    assert reader.feed("\n<parameter=text>") == [Arguments('"text": ')]
    assert reader.feed("\nlo") == [Arguments('"lo')]
    assert reader.feed("ng\n") == [Arguments("ng")]
    assert reader.feed("</para") == []
    assert reader.feed("meter>") == [Arguments('"')]


def test_a_forced_answer_is_one_call() -> None:
    text = call("pond", count="1").removeprefix("<tool_call>\n") + "more"
    assert read(use(forced=True), list(text)) == ("", [("pond", '{"count": 1}')])


def test_without_parallel_calls_the_first_one_counts() -> None:
    assert read(use(parallel=False), list(call("pond") * 2 + "x")) == ("", [("pond", "{}")])
