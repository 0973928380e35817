"""What several services' tests begin with."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio
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
