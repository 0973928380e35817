"""Replicas that ended without a word on their connections, as on a machine that hangs."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import openai
import pytest
from tests.service.router_bench import Bench

TEXT = "once upon a pond there sat a frog"
HOLD = {"simulate": {"hold": True}}


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with Bench.open(tmp_path) as bench:
        yield bench


@pytest.mark.parametrize("stream", [False, True])
async def test_who_has_no_byte_yet_asks_another(bench: Bench, stream: bool) -> None:
    hung = await bench.ready("a")
    asking = asyncio.create_task(bench.ask(stream=stream, extra_body=HOLD))
    await hung.until_active(1)
    (await bench.ready("b")).let_go()
    await bench.scheduler.end("a")
    await bench.scheduler.end("a")  # as another scheduler would
    answer = await asking
    if stream:
        pieces = [c.choices[0].delta.content or "" async for c in answer if c.choices]
        assert "".join(pieces) == TEXT
    else:
        assert answer.choices[0].message.content == TEXT
    await hung.until_active(0)  # should it go on, it computes for nobody
    assert [len(bench.engines[name].requests) for name in "ab"] == [1, 1]


async def test_what_is_only_offered_no_more_is_waited_for(bench: Bench) -> None:
    """Its node drains, or its model is removed: what it runs may end."""
    leaving = await bench.ready("a")
    asking = asyncio.create_task(bench.ask(extra_body=HOLD))
    await leaving.until_active(1)
    await bench.ready("b")
    await bench.scheduler.withdraw("a")
    await bench.until(lambda: "a" not in bench.replicas.ids)
    leaving.let_go()
    assert (await asking).choices[0].message.content == TEXT
    assert not bench.engines["b"].requests


async def test_an_answer_that_began_is_not_asked_for_again(bench: Bench) -> None:
    engine = await bench.ready("a")
    stream = await bench.ask(stream=True, extra_body={"simulate": {"hold": "mid"}})
    chunks = aiter(stream)
    await anext(chunks)
    await bench.ready("b")
    await bench.scheduler.end("a")
    await bench.until(lambda: "a" not in bench.replicas.ids)
    engine.let_go()
    assert [chunk async for chunk in chunks]
    assert not bench.engines["b"].requests


async def test_three_that_end_are_enough(bench: Bench) -> None:
    for name in "abcd":
        await bench.ready(name)
    asking = asyncio.create_task(bench.ask(extra_body=HOLD))
    for name in "abc":
        await bench.engines[name].until_active(1)
        await bench.scheduler.end(name)
    with pytest.raises(openai.InternalServerError) as failure:
        await asking
    assert failure.value.code == "replica_lost"
    assert not bench.engines["d"].requests
