"""A real router that samples one trace in a hundred, and a real collector: what is sampled arrives whole, and nothing is lost."""

import asyncio
import urllib.request
from collections import Counter
from pathlib import Path

from tests.capabilities import need
from tests.service import router_process
from tests.service.processes import free_addresses

from woodfrog.cli import trace_file
from woodfrog.telemetry import names

CONNECTIONS, REQUESTS = 16, 250  # of each connection; 4,000 in all, a hundredth of which is 40
ROOT = "POST /v1/completions"
BODY = b'{"model": "m", "prompt": "hi", "max_tokens": 1}'
ASKED = b"POST /v1/completions HTTP/1.1\r\nhost: h\r\ncontent-length: %d\r\n\r\n%b" % (
    len(BODY), BODY,
)  # fmt: skip


@need("etcd")
async def test_one_trace_in_a_hundred_is_whole_and_no_span_is_lost(tmp_path: Path) -> None:
    collector, metrics = free_addresses(2)
    file = tmp_path / "traces.jsonl"
    server = await trace_file.serve(file, collector)
    settings = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{collector}",
        "OTEL_EXPORTER_OTLP_INSECURE": "true",
        "OTEL_TRACES_SAMPLER": "parentbased_traceidratio",
        "OTEL_TRACES_SAMPLER_ARG": "0.01",
        "WOODFROG_ROUTER_METRICS_LISTEN": metrics,
    }
    try:
        async with router_process.opened(tmp_path, "m", 256, settings) as router:
            await asyncio.gather(*(ask(router.http) for _ in range(CONNECTIONS)))
            told = await asyncio.to_thread(spans_told, metrics)
    finally:
        await server.stop(1.0)  # behind the router, which sends what it still has
    spans = trace_file.read(file)
    requests = [span for span in spans if span["name"] == ROOT]
    assert 8 < len(requests) < 100  # of 4,000; five standard deviations and more
    assert {told["dropped"], told["failed"]} == {0.0}
    ids = {span["span_id"] for span in spans}
    assert all(span["parent_id"] in ids for span in spans if span["name"] != ROOT)
    seen = Counter(span["trace_id"] for span in spans)
    for request in requests:
        assert seen[request["trace_id"]] == 3, names.ROUTER_FIRST_TOKEN
        assert request["attributes"][names.GENAI_OUTPUT_TOKENS] == 1


async def ask(address: str) -> None:
    host, _, port = address.partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    for _ in range(REQUESTS):
        writer.write(ASKED)
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200")
        (length,) = [
            line for line in head.lower().splitlines() if line.startswith(b"content-length")
        ]
        await reader.readexactly(int(length.split()[1]))
    writer.close()


def spans_told(address: str) -> dict[str, float]:
    """How many, by outcome."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=30) as response:
        lines = response.read().decode().splitlines()
    found = [line for line in lines if line.startswith("woodfrog_router_spans_total{")]
    return {line.split('"')[1]: float(line.split()[-1]) for line in found}
