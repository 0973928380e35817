"""Other people's clients before a gateway with a SIMULATED engine: what their users do works."""

from pathlib import Path

import pytest

from tests.capabilities import need
from tests.conformance import clients_run
from tests.service.router_bench import Bench

ROUTES = ("chat", "completions", "embeddings", "responses", "images", "tools")


@need("clients")
@pytest.mark.parametrize("name", clients_run.NAMES)
async def test_client(tmp_path: Path, name: str) -> None:
    async with Bench.open(tmp_path) as bench:
        await bench.ready("a")
        said = await clients_run.run(name, f"http://{bench.http}/v1", "m", *ROUTES)
        assert said == clients_run.expected(name)
