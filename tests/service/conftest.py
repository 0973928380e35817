"""What several services' tests begin with."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
from tests.memory.tool_templates import with_tools
from tests.service.engine_process import Engine, running
from tests.service.etcd import EtcdServer

from woodfrog.coordination import Session


@pytest_asyncio.fixture
async def etcd(tmp_path: Path) -> AsyncIterator[EtcdServer]:
    async with EtcdServer(tmp_path) as server:
        yield server


@pytest_asyncio.fixture
async def session(etcd: EtcdServer) -> AsyncIterator[Session]:
    async with Session([etcd.endpoint]) as session:
        yield session


@pytest.fixture(scope="session")
def api_engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """The text engine with the first layers of the real model, whose chat template shows tools. Every test leaves it serving."""
    folder = tmp_path_factory.mktemp("api-engine")
    with running(folder, with_tools(folder / "model"), "/v1/chat/completions") as engine:
        yield engine
