"""A llama.cpp that hangs is ended; one that takes its time is not, and at rest nobody looks."""

import asyncio

import pytest

from woodfrog.errors import Unavailable
from woodfrog.llamacpp import watchdog
from woodfrog.llamacpp.watchdog import Watchdog


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "_EVERY_S", 0.001)
    monkeypatch.setattr(watchdog, "_SILENT_S", 0.5)


async def test_it_ends_what_hangs(capsys: pytest.CaptureFixture[str]) -> None:
    ended = asyncio.Event()

    async def never() -> None:
        await asyncio.Event().wait()

    with Watchdog(never, ended.set).over():
        async with asyncio.timeout(60):
            await ended.wait()
    assert "without coming back; its replica ends" in capsys.readouterr().err


async def test_it_looks_while_requests_run_and_leaves_what_answers() -> None:
    asked, ended = asyncio.Queue[int](), asyncio.Event()

    async def answers() -> None:
        asked.put_nowait(1)
        if asked.qsize() % 2:
            raise Unavailable("ENGINE_BROKE_OFF", "it is going")

    dog = Watchdog(answers, ended.set)
    async with asyncio.timeout(60):
        with dog.over(), dog.over():
            while asked.qsize() < 5:
                await asyncio.sleep(0.001)
        with dog.over():
            await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == {asyncio.current_task()}, "nothing is left that looks"
    assert not ended.is_set()
