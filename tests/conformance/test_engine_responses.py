"""Every event of the built-in engine's responses, and the response in its last one, held against OpenAI's schema."""

from typing import Any

import jsonschema_rs
import pytest

from tests.conformance.schema import EVENTS, check_response
from tests.unit.engine.test_responses import rendered, renderer
from woodfrog.engine.request import Piece, TokenLogprob
from woodfrog.errors import Unavailable

CALL = '<tool_call>{"name": "pond", "arguments": {"a": 1}}</tool_call>'


def with_logprobs() -> list[dict[str, Any]]:
    entry = TokenLogprob(65, -0.5, [(66, -0.7)])
    return renderer(logprobs=1).events(0, Piece("A", [entry], 1, "stop"))


def that_fails() -> list[dict[str, Any]]:
    render = renderer()
    begun = render.events(0, Piece("he", [], 1, None))
    return begun + render.failure(Unavailable("ENGINE_FAILED", "the engine died"))


def with_tools() -> list[dict[str, Any]]:
    said = {"tools": [{"type": "function", "name": "pond"}], "tool_choice": "none"}
    return renderer(said=said).events(0, Piece("he", [], 1, "stop"))


@pytest.mark.parametrize(
    "events",
    [
        pytest.param(rendered("he", "llo"), id="a text"),
        pytest.param(rendered("he", reason="length"), id="a text that was cut"),
        pytest.param(rendered(), id="nothing"),
        pytest.param(rendered("I look.", CALL, tools=True), id="a text and a call"),
        pytest.param(with_logprobs(), id="log-probabilities"),
        pytest.param(that_fails(), id="a failure in the middle"),
        pytest.param(with_tools(), id="tools as short as they may be"),
    ],
)
def test_events_are_of_the_schema(events: list[dict[str, Any]]) -> None:
    for event in events:
        EVENTS["/responses"].validate(event)
    check_response(events[-1]["response"])


def test_the_schema_refuses_what_is_no_event() -> None:
    delta = next(e for e in rendered("he") if e["type"] == "response.output_text.delta")
    for wrong in ({"type": "response.frog"}, {"delta": 1}, {"sequence_number": "first"}):
        with pytest.raises(jsonschema_rs.ValidationError):
            EVENTS["/responses"].validate(delta | wrong)
