"""What etcd is spared: heartbeats, residency and requests."""

import asyncio
import re
import time
import urllib.request

from tests.cluster.conftest import Running, descend, wait
from woodfrog.coordination import Session

QUESTION = "Name a colour."
QUIET_S = 3.0  # residency, usage and lease renewals have gone round by then


def test_a_request_that_wakes_thaws_or_serves_a_model_writes_nothing_to_etcd(frog: Running) -> None:
    """A cold start, its snapshot and a model that is added do write; all that is over."""
    frog.freeze()
    before = _writes(frog)
    for _ in range(2):
        assert _ask(frog) == "frozen"
        assert [_ask(frog) for _ in range(3)] == ["serving"] * 3
        (replica,) = frog.replicas()
        asyncio.run(descend(frog.cluster, replica.replica_id, "parked"))
        wait(lambda: [r.state.value for r in frog.replicas()] == ["parked"], "a parked replica")
        assert _ask(frog) == "parked"
        frog.freeze()
    quiet_until = time.monotonic() + QUIET_S
    while time.monotonic() < quiet_until:
        assert _writes(frog) == before
        time.sleep(0.1)


def test_what_counts_writes_counts_them(frog: Running) -> None:
    async def write() -> None:
        async with Session([frog.cluster.address("etcd")]) as session:
            await session.put("test/etcd_writes", b"")
            await session.delete("test/etcd_writes")
            await (await session.grant(60)).aclose()

    revision, entries = _writes(frog)
    asyncio.run(write())
    after = _writes(frog)
    assert after[0] == revision + 2
    assert after[1] >= entries + 4  # the lease's grant and its end are no revisions


def _ask(frog: Running) -> str:
    return frog.ask(QUESTION, max_tokens=2).rung


def _writes(frog: Running) -> tuple[int, int]:
    """etcd's revision, and the entries of its log, which leases write too."""

    async def revision() -> int:
        async with Session([frog.cluster.address("etcd")]) as session:
            return (await session.list("test/")).revision

    metrics = f"http://{frog.cluster.address('etcd')}/metrics"
    with urllib.request.urlopen(metrics) as response:
        text = response.read().decode()
    found = re.search(r"^etcd_server_proposals_committed_total (\S+)$", text, re.M)
    assert found
    return asyncio.run(revision()), int(float(found[1]))
