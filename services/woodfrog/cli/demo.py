"""`woodfrog demo`: a real model is asked cold, sleeps at zero, and wakes for the next question; then the figures."""

import asyncio
import itertools
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai

from woodfrog.cli import commands, models, trace_file, up, waterfall
from woodfrog.cli.cluster import Cluster
from woodfrog.cli.import_model import find_smollm2, import_gguf
from woodfrog.cli.show import rule, size, table
from woodfrog.errors import NotFound, Unavailable
from woodfrog.model.snapshot import SnapshotPointer
from woodfrog.model.spec import ModelSpec
from woodfrog.telemetry import names

MODEL = "smollm2-135m"
QUESTIONS = ("What color is the sky?", "Name the seven days of the week.")
_PARK_S, _FREEZE_S = 1.0, 2.0
_SLEEP_TIMEOUT_S = 120.0
_TRACE_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Answer:
    text: str
    first_token_ms: float
    trace_id: str


def run(home: Path, engine: str) -> int:
    up.check_machine()
    path = find_smollm2()
    if engine == "llamacpp":
        from woodfrog.cli.requantize import to_q8

        with progress("SmolLM2-135M-Instruct as Q8_0 (once)"):
            to_q8(path, home / "models" / f"{MODEL}.Q8_0.gguf")
        path = home / "models" / f"{MODEL}.Q8_0.gguf"
    else:
        with progress("SmolLM2-135M-Instruct from its GGUF file (once)"):
            import_gguf(path, home / "models" / MODEL)  # does nothing when it is there
        path = home / "models" / MODEL
    cluster = Cluster.open(home)
    with progress("starting etcd and the five services"):
        up.start(cluster)
    try:
        asyncio.run(_fresh_model(cluster, path, engine))
        with progress(f"cold: {QUESTIONS[0]}"):
            cold = ask(cluster, QUESTIONS[0])
        print(f"  {cold.text}\n")
        with progress("the snapshot is proven and stored; then the model falls asleep"):
            pointer = asyncio.run(_asleep(cluster))
        print("  asleep: no process of the model is left\n")
        with progress(f"woken: {QUESTIONS[1]}"):
            woken = ask(cluster, QUESTIONS[1])
            owned = memory(cluster.node)
        print(f"  {woken.text}\n")
        report(cluster, cold, woken, asyncio.run(_attributes(cluster, pointer)), owned)
    except KeyboardInterrupt:
        up.down(home)
        raise
    return 0


def ask(cluster: Cluster, question: str, max_tokens: int = 48) -> Answer:
    """Through the official client, streaming; the time runs until the first token is here."""
    client = openai.OpenAI(base_url=cluster.base_url, api_key="none", max_retries=0, timeout=600)
    try:
        return _ask(client, question, max_tokens)
    except openai.APIError as error:
        raise Unavailable("NO_ANSWER", f"{MODEL} did not answer: {error}") from None


def _ask(client: openai.OpenAI, question: str, max_tokens: int) -> Answer:
    began = time.perf_counter()
    raw = client.chat.completions.with_raw_response.create(
        model=MODEL,
        messages=[{"role": "user", "content": question}],
        max_tokens=max_tokens,
        temperature=0,
        stream=True,
    )
    first, text = 0.0, ""
    for chunk in raw.parse():
        piece = chunk.choices[0].delta.content if chunk.choices else None
        if piece and not first:
            first = (time.perf_counter() - began) * 1000
        text += piece or ""
    return Answer(text.strip(), first, raw.headers["x-woodfrog-trace-id"])


def report(
    cluster: Cluster,
    cold: Answer,
    woken: Answer,
    attributes: dict[str, Any],
    owned: tuple[int, int, int],
) -> None:
    """`owned` is what `memory` found of the woken replica."""
    for title, answer in (("cold start", cold), ("wake", woken)):
        spans = stages(cluster, answer.trace_id)
        rung = spans[0]["attributes"].get(names.RUNG, "?") if spans else "?"
        print(rule(f"{title}: from {rung} to the first token in {answer.first_token_ms:.0f} ms"))
        rows = [
            (
                "  " * span["depth"] + span["name"],
                span["service"].removeprefix("woodfrog-"),
                f"{span['duration_ms']:.1f}",
            )
            for span in spans
        ]
        print(table(("stage", "in", "ms"), rows) + "\n")
    print("stages of one parent may run at the same time; `checkpoint` runs behind the answer\n")
    print(rule("figures"))
    private, pages, weights = owned
    first = sum(length for _, length in attributes["first_pages"])
    figures = [
        ("cold start, first token", f"{cold.first_token_ms:,.0f} ms"),
        ("wake, first token", f"{woken.first_token_ms:,.0f} ms"),
        ("ratio", f"{cold.first_token_ms / woken.first_token_ms:.0f} ×"),
        (
            "snapshot: CRIU image + pages file",
            f"{size(attributes['image_bytes'])} + {size(attributes['pages_bytes'])}",
        ),
        ("weights in the snapshot", size(attributes["weights_bytes"])),
        ("weights, mapped from the node's cache", size(weights)),
        ("snapshot, mapped after the answer", size(pages)),
        ("snapshot, read by a wake and a short answer", size(first)),
        ("memory that the woken replica owns", size(private)),
    ]
    width = max(len(name) for name, _ in figures)
    print("\n".join(f"{name.ljust(width)}  {value}" for name, value in figures) + "\n")
    print(rule("it stays up"))
    print(
        f"""ask it   curl {cluster.base_url}/chat/completions -H 'content-type: application/json' \\
           -d '{{"model": "{MODEL}", "messages": [{{"role": "user", "content": "Why is the sea salty?"}}],
                "temperature": 0, "max_tokens": 64}}'
look     .venv/bin/woodfrog ps   (it sleeps again {_FREEZE_S:g} s after its last answer)
traces   .venv/bin/woodfrog trace {woken.trace_id[:8]}
logs     {cluster.home}/logs
stop     make down"""
    )


def stages(cluster: Cluster, trace_id: str) -> list[dict[str, Any]]:
    """The request's spans as a tree, depth first. Waits until the root has arrived."""
    deadline = time.monotonic() + _TRACE_TIMEOUT_S
    while time.monotonic() < deadline:
        spans = trace_file.read(cluster.traces_file, trace_id)
        ids = {span["span_id"] for span in spans}
        if spans and all(s["parent_id"] in ids or not s["parent_id"] for s in spans):
            return list(waterfall.tree(spans))
        time.sleep(0.1)
    return []


def memory(node: str) -> tuple[int, int, int]:
    """Of the node's replica, bytes: what it owns, what it maps of its snapshot, what it maps of its weights."""
    private = pages = weights = 0
    for process in Path("/proc").glob("[0-9]*"):
        try:
            text = (process / "smaps").read_text()
            cgroup = (process / "cgroup").read_text()
        except OSError:
            continue
        if "/run/woodfrog/snapshot/pages" not in text or node not in cgroup:
            continue
        path = ""
        for line in text.splitlines():
            field, _, value = line.partition(":")
            if field == "Private_Dirty":
                private += int(value.split()[0]) * 1024
            elif field == "Rss":
                rss = int(value.split()[0]) * 1024
                pages += rss if path.endswith("snapshot/pages") else 0
                weights += rss if "/run/woodfrog/weights/" in path else 0
            elif "-" in field.split(" ")[0]:
                path = line.split(maxsplit=5)[5] if len(line.split(maxsplit=5)) > 5 else ""
        break
    return private, pages, weights


async def _fresh_model(cluster: Cluster, path: Path, engine: str) -> None:
    """The model as it was never served: an earlier demo's snapshot would spoil the cold start."""
    spec = ModelSpec(
        name=MODEL,
        weights="sha256:" + "0" * 64,
        weights_bytes=0,
        engine=engine,
        engine_args={"context_tokens": 2048},
        park_after_s=_PARK_S,
        freeze_after_s=_FREEZE_S,
    )
    async with models.connect(cluster) as cell:
        with suppress(NotFound):
            await models.remove(cell, MODEL)
        await models.add(cell, spec, path, lambda line: print(f"  {line}"))
    await commands.wait_known(cluster, MODEL)


async def _asleep(cluster: Cluster) -> SnapshotPointer:
    """Waits for the snapshot, and until no replica is left. Raises Unavailable when that takes too long."""
    deadline = time.monotonic() + _SLEEP_TIMEOUT_S
    async with models.connect(cluster) as cell:
        while time.monotonic() < deadline:
            pointers = await cell.catalog.list_snapshots(MODEL)
            view = await commands.describe(cluster)
            awake = any(m.replicas for m in view.models if m.model == MODEL)
            if pointers and not awake:
                return pointers[0]
            await asyncio.sleep(0.1)
    raise Unavailable(
        "NOT_ASLEEP",
        f"{MODEL} is not asleep after {_SLEEP_TIMEOUT_S:.0f} s; see {cluster.home}/logs/node_agent.log",
    )


async def _attributes(cluster: Cluster, pointer: SnapshotPointer) -> dict[str, Any]:
    async with models.connect(cluster) as cell:
        stored = await cell.store.get_manifest(pointer.manifest)
    return dict(stored.manifest.attributes)


@contextmanager
def progress(what: str) -> Iterator[None]:
    """Says what is going on, with the seconds running where somebody watches."""
    began = time.perf_counter()
    done = threading.Event()

    def tick() -> None:
        for sign in itertools.cycle("|/-\\"):
            if done.wait(0.2):
                return
            print(f"\r{sign} {what} … {time.perf_counter() - began:.0f} s", end="", flush=True)

    ticker = threading.Thread(target=tick, daemon=True)
    if sys.stdout.isatty():
        ticker.start()
    else:
        print(f"· {what} …", flush=True)
    try:
        yield
    finally:
        done.set()
        if ticker.is_alive():
            ticker.join()
            print(f"\r✓ {what}: {time.perf_counter() - began:.1f} s\033[K", flush=True)
