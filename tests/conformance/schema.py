"""OpenAI's published schema, and answers held against it. OPENAI_SCHEMA names another file than the cut beside this one."""

import json
import os
from pathlib import Path
from typing import Any

import jsonschema_rs
import schemathesis

_SCHEMA = Path(os.environ.get("OPENAI_SCHEMA", Path(__file__).parent / "openai_schema.json"))
_ERROR = {"$ref": "#/components/schemas/ErrorResponse"}


def _schema() -> Any:
    """OpenAI's, with what it leaves unsaid: any refusal has its error object, completions may stream, a vector may come
    as base64, as OpenAI's own clients ask for it. What streams hold is checked here, event by event.
    """
    schema = schemathesis.openapi.from_path(_SCHEMA)
    raw = schema.raw_schema
    for path, methods in raw["paths"].items():
        for operation in methods.values():
            content = {"application/json": {"schema": _ERROR}}
            operation["responses"]["default"] = {"description": "refused", "content": content}
            content = operation["responses"]["200"]["content"]
            event = content.get("text/event-stream", {}).get("schema")
            if event is not None:
                root = {**event, "components": _nullable(raw["components"])}
                EVENTS[path] = jsonschema_rs.Draft202012Validator(root)
                content["text/event-stream"] = {}
    raw["paths"]["/completions"]["post"]["responses"]["200"]["content"]["text/event-stream"] = {}
    vector = raw["components"]["schemas"]["Embedding"]["properties"]
    vector["embedding"] = {"anyOf": [vector["embedding"], {"type": "string"}]}
    return schema


def _nullable(node: Any) -> Any:
    """A copy in which `nullable`, of the schema's earlier version, is said as today's versions have it."""
    if isinstance(node, list):
        return [_nullable(each) for each in node]
    if not isinstance(node, dict):
        return node
    copy = {name: _nullable(value) for name, value in node.items()}
    return {"anyOf": [copy, {"type": "null"}]} if node.get("nullable") is True else copy


EVENTS: dict[str, jsonschema_rs.Draft202012Validator] = {}


SCHEMA = _schema()
OPERATIONS = {found.ok().label: found.ok() for found in SCHEMA.get_all_operations()}
STREAMS = ("/chat/completions", "/completions", "/responses")


def check_events(path: str, body: bytes) -> None:
    """A whole stream. Raises jsonschema_rs.ValidationError, AssertionError. Events of completions have no schema."""
    payloads = [line[6:] for line in body.splitlines() if line.startswith(b"data: ")]
    assert len(payloads) > 2
    if path in EVENTS:
        for payload in payloads:
            if payload != b"[DONE]":
                EVENTS[path].validate(json.loads(payload))


def check_whole(path: str, body: bytes) -> None:
    """The body of a good answer to POST. Raises jsonschema_rs.ValidationError."""
    _check(path, json.loads(body))


def check_response(response: Any) -> None:
    """As a whole answer has it, or an event. Raises jsonschema_rs.ValidationError."""
    _check("/responses", response)


def _check(path: str, value: Any) -> None:
    raw = SCHEMA.raw_schema
    answer = raw["paths"][path]["post"]["responses"]["200"]["content"]["application/json"]["schema"]
    root = {**answer, "components": _nullable(raw["components"])}
    jsonschema_rs.Draft202012Validator(root).validate(value)
