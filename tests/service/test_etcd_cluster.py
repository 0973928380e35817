"""Twenty schedulers on three etcd members whose leader is cut off: the history is checked by a model of what may be."""

import asyncio
import json
import sys
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from tests.capabilities import need
from tests.service import claimants_process as claimants
from tests.service.etcd_cluster import EtcdCluster

pytestmark = need("root", "etcd")
WAIT_S = 60.0
RESUMED_S = 5.0

History = list[dict[str, Any]]


@pytest_asyncio.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[EtcdCluster]:
    async with EtcdCluster(tmp_path) as cluster:
        yield cluster


async def test_no_gpu_is_claimed_twice_and_one_leads_while_etcds_leader_is_cut_off(
    cluster: EtcdCluster,
) -> None:
    process = await asyncio.create_subprocess_exec(
        *("nsenter", f"--net={cluster.hub_file}", "setpriv", "--pdeathsig", "KILL"),
        *(sys.executable, "-m", "tests.service.claimants_process"),
        ",".join(cluster.endpoints),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout
        ready = await asyncio.wait_for(process.stdout.readline(), WAIT_S)
        assert ready == b"ready\n"
        clock = asyncio.get_running_loop().time  # the same clock as theirs
        cuts = []
        for _ in range(2):
            await asyncio.sleep(1.5)
            leader = await cluster.leader()
            cluster.cut(leader)
            cuts.append(clock())
            await asyncio.sleep(RESUMED_S)
            cluster.heal(leader)
        await asyncio.sleep(1.5)
        output, _ = await asyncio.wait_for(process.communicate(b""), WAIT_S)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0
    history = [json.loads(line) for line in output.splitlines()]
    check_truth(history)
    check_claims(history)
    check_terms(history)
    for cut in cuts:
        after = [line for line in history if line.get("outcome") == "ok" and line["began"] > cut]
        assert min(line["ended"] for line in of(after, "claim")) - cut < RESUMED_S
        assert of(after, "write"), "nobody led after the cut"


def test_the_model_finds_what_must_not_be() -> None:
    """Each of these histories is right but for one line."""
    leader, plan, gpu = claimants.LEADER, claimants.PLAN, claimants.CLAIMS + "00"
    truth = [(leader, "a", 1), (plan, "p", 2), (leader, None, 3), (leader, "b", 4), (plan, "q", 5)]
    lines: History = [{"kind": "truth", "key": k, "value": v, "revision": r} for k, v, r in truth]
    lines += [
        {"kind": "term", "who": "a", "token": 1, "won": 1.0},
        {"kind": "term", "who": "b", "token": 4, "won": 4.0},
        {"kind": "write", "value": "p", "token": 1, "began": 2.0, "outcome": "ok", "revision": 2},
        {"kind": "write", "value": "q", "token": 4, "began": 5.0, "outcome": "ok", "revision": 5},
    ]
    check_truth(lines)
    check_terms(lines)
    faults: list[tuple[Callable[[History], None], int, dict[str, Any]]] = [
        (check_truth, 4, {"revision": 6}),  # a write that is not where its writer was told
        (check_truth, 1, {"revision": 4}),  # told out of order
        (check_truth, 7, {"outcome": "refused"}),  # refused, and there all the same
        (check_terms, 8, {"token": 1}),  # written under an old token
        (check_terms, 2, {"value": "c"}),  # elected over another
        (check_terms, 6, {"won": 1.5}),  # leads while another believes that it leads
    ]
    for check, number, fault in faults:
        broken = [line | fault if i == number else line for i, line in enumerate(lines)]
        with pytest.raises(AssertionError):
            check(broken)
    twice = [(gpu, "free", 1), (gpu, "x", 2), (gpu, "y", 3)]
    with pytest.raises(AssertionError):
        check_claims([{"kind": "truth", "key": k, "value": v, "revision": r} for k, v, r in twice])


def of(history: History, kind: str) -> History:
    return [line for line in history if line["kind"] == kind]


def check_truth(history: History) -> None:
    """The observer was told each change once, in order, and of each write what its writer was told."""
    truth = of(history, "truth")
    assert [t["revision"] for t in truth] == sorted(t["revision"] for t in truth)
    assert len({(t["key"], t["revision"]) for t in truth}) == len(truth)
    put = {t["value"]: t["revision"] for t in truth if t["value"] is not None}
    for line in of(history, "claim") + of(history, "write"):
        if line["outcome"] == "ok":
            assert put[line["value"]] == line["revision"], line
        elif line["outcome"] == "refused":
            assert line["value"] not in put, line


def check_claims(history: History) -> None:
    """In etcd a GPU is free before it is claimed; by the clock nobody believes to have one that another believes to have."""
    free = claimants.FREE.decode()
    holders: dict[str, str] = {}
    for line in of(history, "truth"):
        gpu = line["key"].removeprefix(claimants.CLAIMS)
        if gpu != line["key"]:
            assert line["value"] is not None
            assert free in (holders.get(gpu, free), line["value"]), line
            holders[gpu] = line["value"]
    released = {line["value"]: line["began"] for line in of(history, "release")}
    held = defaultdict(list)
    for line in of(history, "claim"):
        if line["outcome"] == "ok":
            until = released.get(line["value"], float("inf"))
            held[line["gpu"]].append((line["ended"], until))
    assert len(held) > claimants.GPUS / 2
    for spans in held.values():
        check_disjoint(spans)


def check_terms(history: History) -> None:
    """Terms follow each other, in etcd and by the clock; what is written under a token is written within its term."""
    truth = of(history, "truth")
    tokens = {w["value"]: w["token"] for w in of(history, "write")}
    token = 0  # of who leads, as etcd has it; 0 for nobody
    for line in truth:
        if line["key"] == claimants.LEADER:
            assert (line["value"] is None) == (token > 0), line
            token = line["revision"] if line["value"] is not None else 0
        elif line["key"] == claimants.PLAN:
            assert tokens[line["value"]] == token, line
    terms = of(history, "term")
    assert terms, "nobody led"
    spans = []
    for term in terms:
        began = [w["began"] for w in of(history, "write") if w["token"] == term["token"]]
        spans.append((term["won"], max(began, default=term["won"])))  # it believed so at each write
    assert len({term["token"] for term in terms}) == len(terms)
    check_disjoint(spans)
    assert [t["token"] for t in sorted(terms, key=lambda t: t["won"])] == sorted(
        t["token"] for t in terms
    )


def check_disjoint(spans: list[tuple[float, float]]) -> None:
    for (_, end), (start, _) in pairwise(sorted(spans)):
        assert end < start, f"one until {end}, the next from {start}"
