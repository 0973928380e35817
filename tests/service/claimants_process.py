"""`python -m tests.service.claimants_process ENDPOINTS`: twenty schedulers, each with a session of its own.

Each claims and gives back GPUs, and campaigns; who leads writes the plan. It ends when its input does. Before that it
says "ready"; after that its history, one JSON object a line:

- {"kind": "claim" | "release", "gpu", "value", "began", "ended", "outcome", "revision"}
- {"kind": "write", "value", "token", "began", "ended", "outcome", "revision"}
- {"kind": "term", "who", "token", "won"}
- {"kind": "truth", "key", "value", "revision"}, as an observer's watch told it; value is null for a deletion

Times are seconds on the machine's monotonic clock; an outcome is "ok", "refused" or "unknown"; revisions are etcd's.
"""

import asyncio
import contextlib
import json
import random
import sys
import time
from collections.abc import Awaitable
from contextlib import aclosing
from typing import Any

from woodfrog.coordination import Delete, Election, Listing, Put, Session
from woodfrog.errors import Aborted, Unavailable

SCHEDULERS = 20
GPUS = 100
TTL_S = 2
LEADER, PLAN, CLAIMS, LAST = "t/leader", "t/plan", "t/gpus/", "t/last"
FREE = b"free"

History = list[dict[str, Any]]


class Scheduler:
    def __init__(self, number: int, session: Session, history: History) -> None:
        self._who = f"s{number:02}"
        self._session = session
        self._history = history
        self._random = random.Random(number)
        self._count = 0
        self._election = Election(session, LEADER, self._who.encode(), TTL_S)

    def start(self, group: asyncio.TaskGroup) -> list[asyncio.Task[None]]:
        return [group.create_task(w) for w in (self._claim(), self._election.run(), self._lead())]

    async def _claim(self) -> None:
        """By revision and not by absence: a late duplicate of a try finds no revision again, but may find a key absent."""
        while True:
            gpu = f"{self._random.randrange(GPUS):02}"
            try:
                found = await self._session.get(CLAIMS + gpu)
            except Unavailable:
                continue
            assert found
            if found.value == FREE:
                value = self._value()
                take = self._session.replace(CLAIMS + gpu, value.encode(), found.mod_revision)
                claim = await self._try({"kind": "claim", "gpu": gpu, "value": value}, take)
                await asyncio.sleep(self._random.uniform(0.01, 0.1))
                if claim["outcome"] == "ok":
                    give = self._session.replace(CLAIMS + gpu, FREE, claim["revision"])
                    await self._try({"kind": "release", "gpu": gpu, "value": value}, give)

    async def _lead(self) -> None:
        while True:
            term = await self._election.won()
            won = {"kind": "term", "who": self._who, "token": term.token, "won": time.monotonic()}
            self._history.append(won)
            while term.leads:
                try:
                    plan = await self._session.get(PLAN)
                except Unavailable:
                    continue
                if not term.leads:
                    break
                value = self._value()
                write = term.write(PLAN, value.encode(), plan.mod_revision if plan else 0)
                line = {"kind": "write", "value": value, "token": term.token}
                await self._try(line, write)
                await asyncio.sleep(0.02)
            await term.lost.wait()
            await asyncio.sleep(0)

    async def _try(self, line: dict[str, Any], call: Awaitable[int]) -> dict[str, Any]:
        line |= {"began": time.monotonic(), "revision": None, "outcome": "unknown"}
        self._history.append(line)
        try:
            line["revision"] = await call
            line["outcome"] = "ok"
        except Aborted:
            line["outcome"] = "refused"
        except Unavailable:
            pass
        line["ended"] = time.monotonic()
        return line

    def _value(self) -> str:
        self._count += 1
        return f"{self._who}-{self._count}"


async def observe(session: Session, history: History) -> None:
    """Until LAST is put."""
    async with aclosing(session.watch("t/", 1)) as changes:
        async for change in changes:
            value: str | None
            assert not isinstance(change, Listing), "history was lost"
            match change:
                case Put(item):
                    key, value, revision = item.key, item.value.decode(), item.mod_revision
                case Delete(key, revision):
                    value = None
            history.append({"kind": "truth", "key": key, "value": value, "revision": revision})
            if key == LAST:
                return


async def main(endpoints: list[str]) -> None:
    history: History = []
    async with contextlib.AsyncExitStack() as stack:
        sessions = [
            await stack.enter_async_context(Session(endpoints)) for _ in range(SCHEDULERS + 1)
        ]
        for gpu in range(GPUS):
            await sessions[0].create(f"{CLAIMS}{gpu:02}", FREE)
        group = await stack.enter_async_context(asyncio.TaskGroup())
        observing = group.create_task(observe(sessions.pop(), history))
        tasks = []
        for number, session in enumerate(sessions):
            tasks += Scheduler(number, session, history).start(group)
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        await asyncio.to_thread(sys.stdin.read)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await sessions[0].create(LAST, b"")
        await observing
    sys.stdout.write("\n".join(json.dumps(line) for line in history))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1].split(",")))
