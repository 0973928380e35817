"""Another engine on the same ladder: llama.cpp is frozen, woken and cloned as the built-in one is."""

import asyncio
import mmap
from pathlib import Path

import aiohttp
import pytest

from tests.capabilities import GGUF, need
from tests.cluster.conftest import Running, descend, replica_pid, wait
from tests.cluster.replicas import control, mappings, restore_twice
from woodfrog.errors import InvalidArgument
from woodfrog.model.node import Replica

pytestmark = need("llamacpp")

NAME = "llama"
QUESTION = "Name three animals that live in a forest."
OWNED_BYTES_MAX = 48 << 20  # half of the weights


def test_llama_cpp_wakes_from_frozen_and_parked_and_its_clones_differ(running: Running) -> None:
    running.add(NAME, GGUF, engine="llamacpp", slots=4)
    cold = running.ask(QUESTION, NAME, max_tokens=24)
    assert cold.rung == "absent"
    running.freeze(NAME)
    _no_weights(running)
    woken = running.ask(QUESTION, NAME, max_tokens=24)
    assert (woken.rung, woken.fallback, woken.text) == ("frozen", "", cold.text)
    (replica,) = running.replicas(NAME)
    asyncio.run(descend(running.cluster, replica.replica_id, "parked"))
    wait(lambda: [r.state.value for r in running.replicas(NAME)] == ["parked"], "parked")
    parked = running.ask(QUESTION, NAME, max_tokens=24)
    assert (parked.rung, parked.text) == ("parked", cold.text)
    running.freeze(NAME)
    _clones_share_all_but_chance(running)
    running.remove(NAME)


def _no_weights(running: Running) -> None:
    (pointer,) = running.snapshots(NAME)
    tree = running.cluster.home / "node" / "cache" / pointer.manifest.removeprefix("sha256:")
    files = [path for path in tree.rglob("*") if path.is_file()]
    weights = GGUF.read_bytes()
    # Of tensors, not of the header with its words, which llama.cpp reads into memory of its own.
    samples = [weights[at : at + 4096] for at in range(len(weights) // 8, len(weights), 8 << 20)]
    for path in files:
        data = path.read_bytes()
        for sample in samples:
            assert sample not in data, path


def _clones_share_all_but_chance(running: Running) -> None:
    replicas = asyncio.run(restore_twice(running, NAME))
    try:
        canaries = [asyncio.run(control(replica, "canary")) for replica in replicas]
        assert canaries[0] == canaries[1]
        drawn = [asyncio.run(control(replica, "draw")) for replica in replicas]
        assert drawn[0]["openssl"] != drawn[1]["openssl"]
        assert drawn[0]["torch"] is None
        told = [asyncio.run(_told(replica)) for replica in replicas]
        assert told[0] != told[1]  # llama.cpp's own chance, too
        for replica in replicas:
            maps = mappings(replica_pid(Path(replica.socket_path)))
            weights = maps[f"/run/woodfrog/weights/{GGUF.name}"]
            assert weights["Private_Dirty"] == 0
            assert sum(area["Private_Dirty"] for area in maps.values()) < OWNED_BYTES_MAX
            assert maps["/run/woodfrog/snapshot/pages"]["Shared_Clean"] > mmap.PAGESIZE
    finally:
        for replica in replicas:
            asyncio.run(descend(running.cluster, replica.replica_id))


async def _told(replica: Replica) -> str:
    """A story without a seed."""
    connector = aiohttp.UnixConnector(path=replica.socket_path)
    body = {"prompt": "Once upon a time", "max_tokens": 24, "temperature": 1.5}
    async with aiohttp.ClientSession("http://replica", connector=connector) as client:
        async with client.post("/v1/completions", json=body) as response:
            return str((await response.json())["choices"][0]["text"])


def test_what_is_no_gguf_is_refused(running: Running, tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"GGML")
    with pytest.raises(InvalidArgument, match="does not begin as GGUF"):
        running.add("none", tmp_path / "x.gguf", engine="llamacpp")
