"""Who leads, with a real etcd that is killed, stopped, cut off and emptied."""

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import pytest
from tests.capabilities import need
from tests.service.cut_proxy import CutProxy
from tests.service.etcd import EtcdServer

from woodfrog.coordination import Election, Leader, Session, Term, leaders, operations
from woodfrog.errors import Aborted, Unavailable

pytestmark = need("etcd")
WAIT_S = 60.0
KEY = "leader"


@asynccontextmanager
async def candidate(session: Session, name: str, ttl_s: int = 1) -> AsyncIterator[Election]:
    """Campaigns from entering to leaving, which resigns."""
    election = Election(session, KEY, name.encode(), ttl_s)
    running = asyncio.create_task(election.run())
    try:
        yield election
    finally:
        running.cancel()
        (outcome,) = await asyncio.gather(running, return_exceptions=True)
        assert isinstance(outcome, asyncio.CancelledError | Unavailable), outcome


async def won(election: Election) -> Term:
    return await asyncio.wait_for(election.won(), WAIT_S)


async def test_one_of_five_leads_and_each_follows_when_it_resigns(session: Session) -> None:
    tokens = []
    async with contextlib.AsyncExitStack() as stack:
        exits, elections = [], []
        for name in "abcde":
            own = contextlib.AsyncExitStack()
            elections.append(await own.enter_async_context(candidate(session, name, ttl_s=60)))
            exits.append(await stack.enter_async_context(own))
        left = dict(zip(elections, exits, strict=True))
        while left:
            leader = await _first(list(left))
            term = leader.term
            assert term
            assert [each for each in left if each.term] == [leader]
            tokens.append(term.token)
            await left.pop(leader).aclose()  # at once, for all its ttl of a minute
            assert not term.leads
            assert term.lost.is_set()
    assert tokens == sorted(set(tokens))
    assert len(tokens) == 5
    assert await session.get(KEY) is None


async def test_leaders_tells_who_leads(session: Session) -> None:
    await session.put(KEY + "ship", b"not a leader")
    async with aclosing(leaders(session, KEY)) as seen:
        assert await anext(seen) is None
        async with candidate(session, "a") as first:
            token = (await won(first)).token
            assert await asyncio.wait_for(anext(seen), WAIT_S) == Leader(b"a", token)
            await session.put(KEY + "ship", b"still not")
        assert await asyncio.wait_for(anext(seen), WAIT_S) is None


async def test_only_a_term_that_stands_writes(session: Session) -> None:
    async with candidate(session, "a", ttl_s=60) as election:
        term = await won(election)
        first = await term.write("plan", b"1", 0)
        second = await term.write("plan", b"2", first)
        with pytest.raises(Aborted) as changed:
            await term.write("plan", b"3", first)
        assert changed.value.reason == "KEY_CHANGED"
        assert term.leads
        await session.delete(KEY)  # by hand; its own word is not needed to refuse the next write
        with pytest.raises(Aborted) as over:
            await term.write("plan", b"3", second)
        assert over.value.reason == "LEADERSHIP_LOST"
        assert not term.leads
        after = await _next(election, term)
        assert after.token > term.token
        assert await after.write("plan", b"4", second) > second


@asynccontextmanager
async def term_alone(session: Session) -> AsyncIterator[Term]:
    """Without the election's own watch, so that nothing but what the test sends is on the way."""
    async with aclosing(await session.grant(60)) as lease:
        token = await session.create(KEY, b"a", lease.id)
        yield Term(session, KEY, token, lease)


async def test_a_write_whose_answer_is_lost_is_found_by_its_second_try(
    etcd: EtcdServer, session: Session
) -> None:
    async with (
        CutProxy(etcd.endpoint) as proxy,
        Session([proxy.endpoint]) as cut,
        term_alone(cut) as term,
    ):
        revision = 0
        for i in range(3):
            proxy.cut_after = 1
            revision = await term.write("plan", str(i).encode(), revision)
            item = await session.get("plan")
            assert item
            assert (item.value, item.mod_revision) == (str(i).encode(), revision)
        assert proxy.cuts == 3


async def test_a_write_whose_answer_was_lost_with_the_term_is_uncertain(
    etcd: EtcdServer, session: Session
) -> None:
    async with (
        CutProxy(etcd.endpoint) as proxy,
        Session([proxy.endpoint]) as cut,
        term_alone(cut) as term,
    ):
        proxy.refuse()
        proxy.cut_after = 1
        writing = asyncio.create_task(term.write("plan", b"1", 0))
        async with asyncio.timeout(WAIT_S):
            while await session.get("plan") is None:
                await asyncio.sleep(0.01)
        await session.delete(KEY)
        proxy.redirect(etcd.endpoint)
        with pytest.raises(Unavailable) as caught:
            await writing
        assert caught.value.reason == "WRITE_UNCERTAIN"
        assert not term.leads


async def test_a_key_deleted_by_hand_ends_the_term(session: Session) -> None:
    async with candidate(session, "a", ttl_s=60) as election:
        term = await won(election)
        await session.delete(KEY)
        await asyncio.wait_for(term.lost.wait(), WAIT_S)
        assert (await _next(election, term)).token > term.token


async def test_who_is_cut_off_knows_before_another_leads(
    etcd: EtcdServer, session: Session
) -> None:
    async with CutProxy(etcd.endpoint) as proxy, Session([proxy.endpoint]) as cut:
        async with candidate(cut, "cut", ttl_s=2) as first:
            term = await won(first)
            async with candidate(session, "rival", ttl_s=2) as second:
                proxy.silence()
                proxy.refuse()
                rival = asyncio.create_task(won(second))
                await asyncio.wait_for(term.lost.wait(), WAIT_S)
                assert not rival.done()
                assert first.term is None
                assert (await rival).token > term.token
                with pytest.raises(Aborted):
                    await term.write("plan", b"late", 0)
                proxy.redirect(etcd.endpoint)
            assert (await _next(first, term)).leads  # the rival left
            assert await session.get("plan") is None


async def test_a_restart_of_etcd_does_not_end_a_term(etcd: EtcdServer, session: Session) -> None:
    async with candidate(session, "a", ttl_s=5) as election:
        term = await won(election)
        async with candidate(session, "b", ttl_s=5):
            etcd.kill9()
            await etcd.start()
            await term.write("plan", b"1", 0)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(term.lost.wait(), 3.0)
            assert term.leads


async def test_an_etcd_that_stood_still_ends_the_term_and_the_campaign_goes_on(
    etcd: EtcdServer, session: Session
) -> None:
    async with candidate(session, "a") as election:
        term = await won(election)
        etcd.pause()
        await asyncio.wait_for(term.lost.wait(), WAIT_S)
        etcd.resume()
        assert (await _next(election, term)).token > term.token


async def test_an_etcd_without_its_data_ends_the_term_and_the_old_token_writes_nothing(
    tmp_path: Path,
) -> None:
    """The trap: in the new etcd the key may be made at the very revision that the old term has as its token."""
    old, new = EtcdServer(tmp_path), EtcdServer(tmp_path / "new")
    async with old, new, CutProxy(old.endpoint) as proxy, Session([proxy.endpoint]) as session:
        async with candidate(session, "a", ttl_s=3) as election:
            term = await won(election)
            async with Session([new.endpoint]) as other, candidate(other, "b") as rival:
                assert (await won(rival)).token == term.token
                proxy.redirect(new.endpoint)
                late = await session.txn(term.guards, [operations.write("plan", b"late")])
                assert not late.succeeded
                await asyncio.wait_for(term.lost.wait(), WAIT_S)
            assert (await _next(election, term)).leads


async def test_a_held_term_outlives_five_ttls_and_a_stopped_holder_is_fenced_off(
    etcd: EtcdServer, session: Session
) -> None:
    """The holder is a process that writes without a pause and without a look at its clock; stopped past its ttl, it
    goes on where it was, and etcd refuses what it then sends.
    """
    async with _holder(etcd.endpoint) as holder:
        first = await holder.line()
        async with candidate(session, "rival", ttl_s=2) as election:
            held_until = time.monotonic() + 10.0
            while time.monotonic() < held_until:
                line = await holder.line()
                assert line["succeeded"]
                assert line["leads"]
                assert line["token"] == first["token"]
            assert election.term is None
            os.kill(holder.pid, signal.SIGSTOP)
            term = await won(election)
            assert term.token > first["token"]
            plan = await session.get("plan")
            assert plan
            revision = await term.write("plan", b"rival", plan.mod_revision)
            os.kill(holder.pid, signal.SIGCONT)
            refused = await holder.until(lambda line: not line["succeeded"])
            assert refused["token"] == first["token"]
            assert not refused["leads"]
            assert term.leads
            item = await session.get("plan")
            assert item
            assert (item.value, item.mod_revision) == (b"rival", revision)


class _Holder:
    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.pid = process.pid
        self._process = process

    async def line(self) -> dict[str, int]:
        assert self._process.stdout
        line = await asyncio.wait_for(self._process.stdout.readline(), WAIT_S)
        return dict(json.loads(line))

    async def until(self, condition: Callable[[dict[str, int]], bool]) -> dict[str, int]:
        async with asyncio.timeout(WAIT_S):
            while not condition(line := await self.line()):
                pass
        return line


@asynccontextmanager
async def _holder(endpoint: str) -> AsyncIterator[_Holder]:
    process = await asyncio.create_subprocess_exec(
        *("setpriv", "--pdeathsig", "KILL", sys.executable),
        *("-m", "tests.service.holder_process", endpoint, KEY),
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        yield _Holder(process)
    finally:
        process.kill()
        await process.wait()


async def _first(elections: list[Election]) -> Election:
    waits = {asyncio.create_task(election.won()): election for election in elections}
    done, rest = await asyncio.wait(waits, timeout=WAIT_S, return_when=asyncio.FIRST_COMPLETED)
    for wait in rest:
        wait.cancel()
    return waits[next(iter(done))]


async def _next(election: Election, before: Term) -> Term:
    """The term after `before`."""
    async with asyncio.timeout(WAIT_S):
        while (term := await election.won()) is before:
            await before.lost.wait()
            await asyncio.sleep(0)
    return term
