"""Calls in an answer's text, in the three ways in which models write them, however the text is cut."""

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from woodfrog.engine.calls import Arguments, Begun
from woodfrog.engine.formats import Schema
from woodfrog.engine.tagged_calls import reader_of
from woodfrog.engine.tool_format import ToolFormat
from woodfrog.engine.tools import ToolUse

TOOLS = [
    {"type": "function", "function": {"name": name, "description": "", "parameters": {}}}
    for name in ("weather", "pond")
]
HERMES, LLAMA, MISTRAL = ToolFormat.HERMES, ToolFormat.LLAMA, ToolFormat.MISTRAL
NAMED, TAGGED = ToolFormat.NAMED, ToolFormat.TAGGED
Read = tuple[str, list[tuple[str, str]]]  # text, and calls with their arguments


def use(known: ToolFormat, *, forced: bool = False, parallel: bool = True) -> ToolUse:
    return ToolUse(known, TOOLS, Schema("{}", "tools") if forced else None, parallel)


def read(used: ToolUse, pieces: list[str]) -> Read:
    reader = reader_of(used)
    text = ""
    calls: list[tuple[str, str]] = []
    for some in [*(told for piece in pieces for told in reader.feed(piece)), *reader.flush()]:
        match some:
            case Begun(name):
                calls.append((name, ""))
            case Arguments(more):
                calls[-1] = (calls[-1][0], calls[-1][1] + more)
            case _:
                text += some
    assert reader.count == len(calls)
    return text, calls


ONE = '{"city": "Pa}ri\\"s"}'
CASES: list[tuple[ToolFormat, str, Read]] = [
    (HERMES, "Hello there", ("Hello there", [])),
    (HERMES, "1 < 2 and <tool", ("1 < 2 and <tool", [])),
    (
        HERMES,
        f'<tool_call>\n{{"name": "weather", "arguments": {ONE}}}\n</tool_call>',
        ("", [("weather", ONE)]),
    ),
    (
        HERMES,
        f'I look.\n<tool_call>{{"name": "weather", "arguments": {ONE}}}</tool_call>\n'
        '<tool_call>{"name": "pond", "arguments": {}}</tool_call>',
        ("I look.", [("weather", ONE), ("pond", "{}")]),
    ),
    (HERMES, '<tool_call>{"arguments": {"a": 1}, "name": "pond"}', ("", [("pond", '{"a": 1}')])),
    (HERMES, '<tool_call>{"name": "pond", "arguments": "{}"}', ("", [("pond", "{}")])),
    (HERMES, '<tool_call>{"name": "pond"}', ("", [("pond", "{}")])),
    (HERMES, '<tool_call>{"name": "pond", "arguments": {"a": [1, ', ("", [("pond", '{"a": [1, ')])),
    (HERMES, "<tool_call>pond", ("<tool_call>pond", [])),
    (HERMES, '<tool_call>{"name": ', ('<tool_call>{"name": ', [])),
    (LLAMA, '{"name": "pond", "parameters": {"a": 1}}', ("", [("pond", '{"a": 1}')])),
    (LLAMA, f'<|python_tag|>{{"name": "weather", "parameters": {ONE}}}', ("", [("weather", ONE)])),
    (
        LLAMA,
        '{"name": "pond", "parameters": {}}; {"name": "weather", "parameters": {"a": {}}}',
        ("", [("pond", "{}"), ("weather", '{"a": {}}')]),
    ),
    (LLAMA, '{"name": "toad", "age": 3} is JSON', ('{"name": "toad", "age": 3} is JSON', [])),
    (LLAMA, 'So {"name": "pond", "parameters": {}}', ('So {"name": "pond", "parameters": {}}', [])),
    (
        MISTRAL,
        '[TOOL_CALLS] [{"name": "pond", "arguments": {}}, {"name": "weather", "arguments": {"a": 1}}]',
        ("", [("pond", "{}"), ("weather", '{"a": 1}')]),
    ),
    (MISTRAL, "[1, 2] and [TOOL", ("[1, 2] and [TOOL", [])),
    (NAMED, f"[TOOL_CALLS]weather[ARGS]{ONE}", ("", [("weather", ONE)])),
    (
        NAMED,
        f"I look. [TOOL_CALLS]pond[ARGS]{{}}[TOOL_CALLS] weather [ARGS] {ONE}",
        ("I look.", [("pond", "{}"), ("weather", ONE)]),
    ),
    (
        NAMED,
        '[TOOL_CALLS]pond[CALL_ID]a1B2c3D4e[ARGS]{"a": {"b": {}}}',
        ("", [("pond", '{"a": {"b": {}}}')]),
    ),
    (NAMED, '[TOOL_CALLS]pond{"a": "]"}', ("", [("pond", '{"a": "]"}')])),
    (NAMED, '[TOOL_CALLS]pond[ARGS]{"a": [1, ', ("", [("pond", '{"a": [1, ')])),
    (NAMED, "[TOOL_CALLS]pond[ARGS]{} and more", (" and more", [("pond", "{}")])),
    (NAMED, "[TOOL_CALLS]toad[ARGS]{}", ("[TOOL_CALLS]toad[ARGS]{}", [])),
    (NAMED, "[TOOL_CALLS]pond[ARGS]", ("[TOOL_CALLS]pond[ARGS]", [])),
    (NAMED, "[TOOL_CALLS]", ("[TOOL_CALLS]", [])),
    (NAMED, "[TOOL_CALLS]pond, or not", ("[TOOL_CALLS]pond, or not", [])),
    (NAMED, "[TOOL_CALLS]pond[ARGS][1, 2]", ("[TOOL_CALLS]pond[ARGS][1, 2]", [])),
    (
        NAMED,
        "[TOOL_CALLS]toad[ARGS]{}[TOOL_CALLS]pond[ARGS]{}",
        ("[TOOL_CALLS]toad[ARGS]{}", [("pond", "{}")]),
    ),
]


@pytest.mark.parametrize(("known", "text", "expected"), CASES)
def test_calls_are_found_whole_and_letter_by_letter(
    known: ToolFormat, text: str, expected: Read
) -> None:
    assert read(use(known), [text]) == expected
    assert read(use(known), list(text)) == expected


@given(case=st.sampled_from(CASES), data=st.data())
def test_how_an_answer_is_cut_makes_no_difference(
    case: tuple[ToolFormat, str, Read], data: st.DataObject
) -> None:
    known, text, expected = case
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=6)))
    ends = [0, *cuts, len(text)]
    pieces = [text[a:b] for a, b in itertools.pairwise(ends)]
    assert read(use(known), pieces) == expected


@pytest.mark.parametrize("known", [HERMES, LLAMA, MISTRAL])
def test_an_unknown_name_is_no_call(known: ToolFormat) -> None:
    text = '{"name": "toad", "arguments": {}}'
    said, calls = read(use(known), [text if known is LLAMA else f"{use(known).marks[0]}{text}"])
    assert calls == []
    assert text in said


def test_arguments_leave_as_they_come() -> None:
    reader = reader_of(use(HERMES))
    assert reader.feed('<tool_call>{"name": "pond", "arguments": ') == []
    assert reader.feed('{"a": "lo') == [Begun("pond"), Arguments('{"a": "lo')]
    assert reader.feed('ng"}') == [Arguments('ng"}')]
    assert reader.feed("}</tool_call>") == []


@pytest.mark.parametrize(
    ("known", "text"),
    [
        (HERMES, '{"name": "pond", "arguments": {"a": 1}}'),
        (LLAMA, '{"name": "pond", "parameters": {"a": 1}}'),
        (MISTRAL, '[{"name": "pond", "arguments": {"a": 1}}]'),
    ],
)
def test_a_forced_answer_is_the_call_itself(known: ToolFormat, text: str) -> None:
    assert read(use(known, forced=True), list(text)) == ("", [("pond", '{"a": 1}')])


def test_without_parallel_calls_the_first_one_counts() -> None:
    text = '<tool_call>{"name": "pond", "arguments": {}}</tool_call>' * 2 + "more"
    assert read(use(HERMES, parallel=False), list(text)) == ("", [("pond", "{}")])


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=8,
    ),
    st.booleans(),
)
def test_any_arguments_come_through(value: object, ascii_only: bool) -> None:
    arguments = json.dumps({"value": value}, ensure_ascii=ascii_only)
    text = f'<tool_call>\n{{"name": "pond", "arguments": {arguments}}}\n</tool_call>'
    assert read(use(HERMES), list(text)) == ("", [("pond", arguments)])
