"""What may not be asked of llama.cpp, because its other clients would wait for it."""

from typing import Any

import pytest

from woodfrog.errors import InvalidArgument
from woodfrog.llamacpp import bounds


def form(schema: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}


SELF = {"type": "array", "items": {"$ref": "#/$defs/a"}}
TWICE = {"$ref": "#/$defs/a", "$defs": {"a": {"anyOf": [SELF, SELF]}}}
ONCE = {"$ref": "#/$defs/a", "$defs": {"a": {"anyOf": [SELF, {"type": "string"}]}}}


@pytest.mark.parametrize(
    ("param", "body"),
    [
        ("grammar", {"grammar": "root ::= x"}),
        ("grammar_triggers", {"grammar_triggers": [{"type": 2, "value": "a"}]}),
        ("json_schema", {"json_schema": {"type": "integer"}}),
        ("n_probs", {"n_probs": 21}),
        ("logprobs", {"logprobs": 10**9}),
        ("top_logprobs", {"logprobs": True, "top_logprobs": 1e9}),
        ("response_format", {"response_format": form({"enum": list(range(6000))})}),
        ("response_format", {"response_format": form({"enum": list(range(101))})}),
        ("response_format", {"response_format": form({"pattern": "a" * 201})}),
        ("response_format", {"response_format": form(TWICE)}),
        ("text", {"text": {"format": form({"pattern": "(([a-z]?){7}){10}"})}}),
        ("tools", {"tools": [{"function": {"parameters": {"pattern": "(|)(|)(|)"}}}]}),
        ("tools", {"tools": [{"input_schema": {"pattern": "(?:a|)b"}}]}),
    ],
)
def test_what_holds_up_others_is_refused(param: str, body: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument) as refusal:
        bounds.check(body)
    assert refusal.value.metadata["param"] == param


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"prompt": "a", "logprobs": 5, "n_probs": 20, "grammar": ""},
        {"logprobs": True, "top_logprobs": 20},
        {"response_format": form({"enum": [f"word {n}" for n in range(100)]})},
        {"response_format": form({"type": "string", "pattern": r"^[a-z]{2,8}-\d*x?$"})},
        {"response_format": form({"type": "string", "pattern": "^(tree|common) frog$"})},
        {"response_format": form({"type": "integer", "multipleOf": 5})},
        {"response_format": form(ONCE)},
        {"response_format": form({"$ref": "#/$defs/a", "$defs": {"a": {"enum": ["x", "y"]}}})},
        {"response_format": form({"oneOf": [{"type": "array"}, {"type": "object"}]})},
        {"tools": [{"type": "function", "function": {"name": "x", "parameters": {}}}] * 50},
        {"tools": "none", "text": 5, "response_format": None},
    ],
)
def test_what_is_usual_is_not(body: dict[str, Any]) -> None:
    bounds.check(body)
