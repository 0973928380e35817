"""Requests made up from OpenAI's published schema, before a gateway with a SIMULATED engine; answers must be of the schema.

What is tested of the schema's good answers is in part the simulated engine; of refusals, of lists of models, of methods and
of what reaches the engine it is the gateway.
"""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, reject, seed, settings
from hypothesis.strategies import DrawFn, composite
from schemathesis import Case, GenerationMode, checks
from schemathesis.core.errors import UnsupportedSchema

from tests.conformance.schema import EVENTS, OPERATIONS, STREAMS, check_events
from tests.service.router_bench import Bench

_CHECKS: Sequence[Any] = (
    checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
)  # fmt: skip


def test_the_schema_has_the_routes() -> None:
    assert OPERATIONS.keys() >= {
        "POST /chat/completions",
        "POST /completions",
        "POST /embeddings",
        "POST /images/generations",
        "POST /responses",
        "GET /models",
        "GET /models/{model}",
    }
    assert EVENTS.keys() >= {"/chat/completions", "/responses"}


@pytest.mark.parametrize(
    ("label", "mode"),
    [
        pytest.param(label, mode, id=f"{label} {mode.value}")
        for label, operation in OPERATIONS.items()
        for mode in GenerationMode
        if operation.body or mode is GenerationMode.POSITIVE  # else nothing can be wrong with it
    ],
)
async def test_answers_are_of_the_schema(tmp_path: Path, label: str, mode: GenerationMode) -> None:
    operation = OPERATIONS[label]
    async with Bench.open(tmp_path) as bench:
        engine = await bench.ready("a")
        statuses: list[int] = []
        streamed: list[str] = []
        base_url = f"http://{bench.http}/v1"
        await asyncio.to_thread(_ask, operation, mode, base_url, statuses, streamed)
    if mode is GenerationMode.POSITIVE:
        assert bool(streamed) == (operation.path in STREAMS)
        assert set(statuses) == ({200} if operation.body or label == "GET /models" else {200, 404})
    asked = [request.json for request in engine.requests]
    assert all(request["model"] == "m" for request in asked)
    assert len(asked) == (statuses.count(200) if operation.body else 0)
    assert len(statuses) >= (10 if operation.body else 1)  # of 20; few can't be drawn


def _ask(
    operation: Any, mode: GenerationMode, base_url: str, statuses: list[int], streamed: list[str]
) -> None:
    @seed(0)
    @settings(
        max_examples=20, deadline=None, database=None, suppress_health_check=list(HealthCheck),
        phases=(Phase.generate,),
    )  # fmt: skip
    @given(case=_drawn(operation, mode))
    def ask(case: Case[Any]) -> None:
        _name_model(case, always=mode is GenerationMode.POSITIVE)
        body: Any = case.body
        if mode is GenerationMode.POSITIVE and operation.path in STREAMS:
            body["stream"] = len(statuses) % 2 == 0
        response = case.call(base_url=base_url)
        statuses.append(response.status_code)
        case.validate_response(response, checks=[*_CHECKS])
        if response.headers["content-type"][0].startswith("text/event-stream"):
            streamed.append(case.path)
            check_events(case.path, response.content)

    ask()


@composite
def _drawn(draw: DrawFn, operation: Any, mode: GenerationMode) -> Case[Any]:
    """Wrong values, but for those, one in a thousand, whose schema schemathesis cannot make values of."""
    try:
        drawn: Case[Any] = draw(operation.as_strategy(mode))
    except UnsupportedSchema:
        reject()
    return drawn


def _name_model(case: Case[Any], *, always: bool) -> None:
    """Names in bodies are that of a model that exists, of made-up names in paths about a half."""
    if isinstance(case.body, dict) and (always or isinstance(case.body.get("model"), str)):
        case.body["model"] = "m"
    if "model" in (case.path_parameters or {}) and len(case.path_parameters["model"]) % 2:
        case.path_parameters["model"] = "org/m"
