"""`woodfrog usage` over the real service: parts of several processes as one, and what is missing said in a sentence."""

import csv
import io
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from tests.capabilities import need
from tests.service.etcd import EtcdServer

from woodfrog import rpc
from woodfrog.api.metering.v1 import usages_pb2_grpc
from woodfrog.catalog import Catalog
from woodfrog.cli import usage
from woodfrog.cli.cluster import Cluster
from woodfrog.clients.usages import SERVICE, UsagesServicer
from woodfrog.clock import SystemClock
from woodfrog.coordination import Session
from woodfrog.errors import InvalidArgument, Unavailable
from woodfrog.host.folders import remove_tree
from woodfrog.metering import HOUR_S, Ledger, Row, Usage
from woodfrog.model import digest
from woodfrog.model.spec import ModelSpec

pytestmark = need("etcd")
HOUR = int(SystemClock().wall() // HOUR_S) - 2
SPAN = usage.Span(HOUR - 1, HOUR + 2)
GIB = 1 << 30
ROUTED = [
    Row(
        HOUR,
        "a",
        "m",
        Usage(requests=3, wakes=1, prompt_tokens=30, completion_tokens=9, slot_s=6.0),
    ),
    Row(HOUR, "b", "m", Usage(requests=1, failed=1, slot_s=2.0)),
    Row(HOUR - 10, "a", "m", Usage(requests=99)),
]
HELD = [Row(HOUR, "", "m", Usage(host_byte_s=0.5 * GIB * HOUR_S))]
HELD_TOO = [Row(HOUR, "", "n", Usage(gpu_s=20.0)), Row(HOUR + 1, "", "m", Usage(host_byte_s=1.0))]


@asynccontextmanager
async def serving(rows: list[Row], listen: str = "127.0.0.1:0") -> AsyncIterator[int]:
    ledger = Ledger(None)
    ledger.add(rows)
    async with rpc.Server(listen) as server:
        usages_pb2_grpc.add_UsagesServicer_to_server(UsagesServicer(ledger), server.grpc)  # type: ignore[no-untyped-call]
        await server.start(SERVICE)
        yield server.port


@pytest.fixture
async def cluster(tmp_path: Path, etcd: EtcdServer) -> AsyncIterator[Cluster]:
    """Of a router and two nodes, with a model that was added before the span."""
    async with Session([etcd.endpoint]) as session:
        spec = ModelSpec("m", digest.of_bytes(b""), 7, memory_bytes=GIB, create_time=1.0)
        await Catalog(session).add_model(spec)
    async with AsyncExitStack() as stack:
        one, two = [await stack.enter_async_context(serving(rows)) for rows in (HELD, HELD_TOO)]
        port = int(etcd.endpoint.rpartition(":")[2])
        ports = {"etcd": port, "node_agent": one, "node_agent-2": two}
        cluster = Cluster(tmp_path, 0, ports, node_count=2)
        await stack.enter_async_context(serving(ROUTED, cluster.operators("router")))
        stack.callback(remove_tree, cluster.operators_dir)
        yield cluster


async def printed(
    cluster: Cluster, by: str | None, capsys: pytest.CaptureFixture[str]
) -> dict[tuple[str, ...], dict[str, str]]:
    await usage.usage(cluster, SPAN, by, as_csv=True)
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    names = ("tenant", "model") if by is None else (by,)
    return {tuple(row[name] for name in names): row for row in rows}


async def test_what_nobodys_replicas_held_is_of_who_asked(
    cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = await printed(cluster, None, capsys)
    assert rows.keys() == {("a", "m"), ("b", "m"), ("-", "m"), ("-", "n")}
    first = rows["a", "m"]
    assert (first["requests"], first["wakes"], first["completion_tokens"]) == ("3", "1", "9")
    held = {key: float(row["host_byte_s"]) / GIB / HOUR_S for key, row in rows.items()}
    assert held["a", "m"] == pytest.approx(0.375)
    assert held["b", "m"] == pytest.approx(0.125)
    assert float(rows["-", "n"]["gpu_s"]) == 20.0
    always = {key: float(row["always_on_host_byte_s"]) / GIB / HOUR_S for key, row in rows.items()}
    assert always["a", "m"] == pytest.approx(0.75)
    assert always["-", "m"] == pytest.approx(2.0)
    assert always["-", "n"] == 0.0


async def test_sums_by_each_name(cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    assert (await printed(cluster, "tenant", capsys)).keys() == {("-",), ("a",), ("b",)}
    by_model = await printed(cluster, "model", capsys)
    assert by_model["m",]["requests"] == "4"
    assert float(by_model["m",]["always_on_host_byte_s"]) == pytest.approx(3 * GIB * HOUR_S)
    assert len(await printed(cluster, "hour", capsys)) == 3
    await usage.usage(cluster, SPAN, "model", as_csv=False)
    *_, last = capsys.readouterr().out.splitlines()
    words = last.split()
    assert words[:6] == ["total", "4", "1", "1", "30", "9"]
    assert last.endswith("2.50 of 3.00 (83.3%)")


async def test_what_a_model_held_that_is_gone_lessens_nothing_that_was_saved(
    capsys: pytest.CaptureFixture[str], cluster: Cluster
) -> None:
    held = [Row(HOUR, "", "gone", Usage(host_byte_s=8.0 * GIB * HOUR_S)), *HELD]
    async with serving(held) as port:
        other = replace(cluster, ports={**cluster.ports, "node_agent": port})
        await usage.usage(other, SPAN, "model", as_csv=False)
    _, gone, kept, _, last = capsys.readouterr().out.splitlines()
    assert gone.split()[0] == "gone"
    assert gone.endswith("8.00  -")
    assert kept.endswith("2.50 of 3.00 (83.3%)")
    assert last.endswith("8.50  2.50 of 3.00 (83.3%)")


async def test_what_does_not_answer_is_named_and_the_rest_shown(
    cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # nobody listens
        ports = {**cluster.ports, "node_agent-2": closed.getsockname()[1]}
        with pytest.raises(Unavailable) as failure:
            await usage.usage(replace(cluster, ports=ports), SPAN, None, as_csv=True)
    name = cluster.nodes[1].name
    assert failure.value.message.startswith(f"usage is not complete: node {name} does not tell its")
    assert "\n" not in failure.value.message
    assert capsys.readouterr().out.count("\n") == 4  # a header and three rows


async def test_where_the_first_router_does_not_answer_another_is_asked(
    cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    three = replace(cluster, home=cluster.home / "three", router_count=3)
    try:
        async with serving(ROUTED, three.operators("router-2")):
            rows = await printed(three, "model", capsys)
            assert rows["m",]["requests"] == "4"
            async with serving(ROUTED, three.operators("router-3")):
                assert await printed(three, "model", capsys) == rows  # it tells the same
        with pytest.raises(Unavailable, match="not complete: the router does not tell its part"):
            await printed(three, "model", capsys)
    finally:
        remove_tree(three.operators_dir)


async def test_without_etcd_usage_is_shown_all_the_same(
    cluster: Cluster, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(usage, "_TIMEOUT_S", 1.0)
    alone = replace(cluster, ports={**cluster.ports, "etcd": 1})
    with pytest.raises(Unavailable, match="what always-on would have held is not known"):
        await usage.usage(alone, SPAN, "model", as_csv=False)
    assert "0.50  -" in capsys.readouterr().out


def test_a_span_is_of_whole_hours_and_of_whole_days_where_hours_are_gone() -> None:
    now = (24 * 20_000 + 7.5) * HOUR_S
    assert usage.Span.of(None, None, 24, now) == usage.Span(24 * 19_999 + 7, 24 * 20_000 + 8)
    ago = now - 100 * 24 * HOUR_S
    assert usage.Span.of(ago, ago + 1, 24, now) == usage.Span(24 * 19_900, 24 * 19_901)
    assert usage.Span.of(ago, now * 2, 24, now).until_hour == 24 * 20_000 + 8
    with pytest.raises(InvalidArgument, match="ends before it begins"):
        usage.Span.of(now, now - 1, 24, now)
