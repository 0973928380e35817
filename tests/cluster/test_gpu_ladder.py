"""The whole GPU ladder with every process real, but for the GPU: its memory and CUDA's checkpoints are simulated."""

import asyncio
import base64
import http.client
import json
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest
from loadtest import shapes

from tests.cluster.conftest import Running, descend, wait
from tests.cluster.test_usage import used
from tests.memory import simulated_cuda, simulated_gpu, tiny_classifiers, tiny_vision
from tests.memory.tiny_classifiers import data_url, picture
from woodfrog.cli import commands, supervisor, up
from woodfrog.cli.cluster import Cluster
from woodfrog.engine.pictures import pattern
from woodfrog.replica.client import ControlClient

GPU_BYTES = 4 << 30
PRIVATE_BYTES = 1 << 30
QUESTION = "What is the capital of France?"
AGENT = "WOODFROG_NODE_AGENT_"


@contextmanager
def simulated_gpus(numbers: str) -> Iterator[Running]:
    """A cluster whose node has these simulated GPUs, e.g. "0,1"."""
    home = Path(tempfile.mkdtemp(prefix="woodfrog-test-"))
    cuda = home / "simulated-cuda"
    cuda.mkdir()
    (cuda / "any").touch()
    settings = {
        "PYTHONPATH": str(Path(__file__).parents[2]),
        simulated_cuda.FOLDER: str(cuda),
        simulated_gpu.SIZE: str(GPU_BYTES),
        simulated_gpu.HOLD: str(home / "hold"),
        AGENT + "GPUS": numbers,
        AGENT + "ARENA_BYTES": str(1 << 29),
        AGENT + "GPU_CONTEXT_BYTES": str(64 << 20),
        AGENT + "VAULT_DEVICE": "tests.memory.simulated_gpu:SimulatedDevice",
        AGENT + "REPLICA_MEMORY": "tests.memory.simulated_gpu:SimulatedMemory",
        AGENT + "CUDA_DRIVER": "tests.memory.simulated_cuda:SimulatedDriver",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        cluster = Cluster.open(home)
        up.start(cluster)
        try:
            yield Running(cluster)
        finally:
            supervisor.stop(home)
    shutil.rmtree(home)


@pytest.fixture(scope="module")
def gpu_node() -> Iterator[Running]:
    with simulated_gpus("0") as running:
        running.add("gpu", gpu_bytes=PRIVATE_BYTES, memory_bytes=3 << 30)
        yield running


def vault(running: Running, number: int = 0) -> dict[str, Any]:
    path = running.cluster.run_dir / "vault" / f"{number}.sock"
    return asyncio.run(ControlClient(path, "the vault").call("describe", 30))


def held(running: Running) -> dict[str, bool]:
    (weights,) = vault(running)["weights"].values()
    return dict(weights)


def lowered(running: Running, rung: str, name: str = "gpu") -> str:
    wait(lambda: bool(running.snapshots(name)), "its snapshot")
    (replica,) = running.replicas(name)
    asyncio.run(descend(running.cluster, replica.replica_id, rung))
    wait(
        lambda: (
            [r.state.value for r in running.replicas(name)] == ([rung] if rung != "frozen" else [])
        ),
        f"a replica that is {rung}",
    )
    return str(replica.replica_id)


def test_a_model_answers_the_same_from_every_rung(gpu_node: Running) -> None:
    cold = gpu_node.ask(QUESTION, "gpu")
    assert cold.rung == "absent"
    assert "Paris" in cold.text
    wait(lambda: bool(gpu_node.snapshots("gpu")), "its snapshot")
    assert held(gpu_node)["device"]
    assert held(gpu_node)["host"]
    for rung in ("hot", "parked", "frozen", "hot", "frozen"):
        before = lowered(gpu_node, rung)
        answer = gpu_node.ask(QUESTION, "gpu")
        assert answer.text == cold.text
        assert answer.rung == rung
        assert (answer.replica == before) == (rung != "frozen")


def test_the_snapshot_has_neither_weights_nor_kv(gpu_node: Running) -> None:
    gpu_node.ask(QUESTION, "gpu")
    (pointer,) = gpu_node.snapshots("gpu")
    tree = gpu_node.cluster.home / "node" / "cache" / pointer.manifest.removeprefix("sha256:")
    weights = next(p for p in tree.parent.glob("*/files/model.safetensors"))
    sample = weights.read_bytes()[-(1 << 20) :][: 1 << 12]
    for path in (path for path in tree.rglob("*") if path.is_file()):
        assert sample not in path.read_bytes(), path
    assert pointer.size_bytes < weights.stat().st_size * 2


def test_what_it_holds_of_its_gpu_is_charged(gpu_node: Running) -> None:
    gpu_node.ask(QUESTION, "gpu")
    wait(lambda: bool(gpu_node.snapshots("gpu")), "its snapshot")
    (gpu,) = asyncio.run(commands.describe(gpu_node.cluster)).nodes[0].gpus
    share = gpu.promised_bytes / gpu.memory_bytes
    earliest = time.monotonic()
    first = used(gpu_node, "gpu")
    there = time.monotonic()
    gpu_node.ask(QUESTION, "gpu")
    begun = time.monotonic()
    second = used(gpu_node, "gpu")
    latest = time.monotonic()
    assert share * (begun - there) <= second.gpu_s - first.gpu_s <= share * (latest - earliest)


def test_a_vault_that_dies_takes_its_replicas_along_and_they_come_back(gpu_node: Running) -> None:
    before = gpu_node.ask(QUESTION, "gpu")
    wait(lambda: bool(gpu_node.snapshots("gpu")), "its snapshot")
    os.kill(vault_pid(gpu_node, 0), signal.SIGKILL)
    wait(lambda: not gpu_node.replicas("gpu"), "no replica without its vault")
    after = gpu_node.ask(QUESTION, "gpu")
    assert after.text == before.text
    assert after.rung == "frozen"
    assert any(line["message"] == "vault died" for line in gpu_node.log("node_agent"))


def test_an_image_model_is_drawn_the_same_after_its_wake(
    gpu_node: Running, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("pipeline") / "sdxl-tiny"
    shapes.make("sdxl-tiny", folder)
    gpu_node.add(
        "painter", folder=folder, gpu_bytes=PRIVATE_BYTES, memory_bytes=3 << 30, engine_args={}
    )

    def draw() -> tuple[str, str]:
        raw = gpu_node.client.images.with_raw_response.generate(
            model="painter", prompt="a frog", n=1, extra_body={"seed": 5, "num_inference_steps": 2}
        )
        data = raw.parse().data
        assert data is not None
        return str(data[0].b64_json), raw.headers["x-woodfrog-rung"]

    cold, rung = draw()
    assert rung == "absent"
    assert base64.b64decode(cold).startswith(b"\x89PNG")
    for rung in ("hot", "frozen"):
        lowered(gpu_node, rung, "painter")
        assert draw() == (cold, rung)
    with pytest.raises(openai.BadRequestError) as caught:
        gpu_node.client.images.generate(model="painter", prompt="a frog", size="7x7")
    assert caught.value.param == "size"
    with pytest.raises(openai.NotFoundError):
        gpu_node.ask(QUESTION, "painter")
    gpu_node.remove("painter")


@pytest.mark.parametrize("kind", ["pictures", "texts"])
def test_a_classifier_answers_the_same_after_its_wake(
    gpu_node: Running, tmp_path: Path, kind: str
) -> None:
    if kind == "pictures":
        folder, given = tiny_classifiers.of_pictures(tmp_path), data_url(picture(3))
    else:
        folder, given = tiny_classifiers.of_texts(tmp_path), "frog ice winter"
    gpu_node.add(kind, folder=folder, gpu_bytes=PRIVATE_BYTES, memory_bytes=3 << 30, engine_args={})

    def classify(value: str) -> tuple[Any, str]:
        link = http.client.HTTPConnection("127.0.0.1", gpu_node.cluster.http_port, timeout=120)
        link.request("POST", "/v1/classify", json.dumps({"model": kind, "input": value}))
        response = link.getresponse()
        answer = json.loads(response.read())
        link.close()
        return answer, response.headers.get("x-woodfrog-rung", "")

    cold, rung = classify(given)
    assert rung == "absent"
    assert cold["data"][0]["label"] in tiny_classifiers.LABELS
    for rung in ("hot", "parked", "frozen"):
        lowered(gpu_node, rung, kind)
        woken, found = classify(given)
        assert (woken["data"], found) == (cold["data"], rung)
    refused, _ = classify("https://example.org/frog.png" if kind == "pictures" else "")
    assert refused["error"]["param"] == "input"
    gpu_node.remove(kind)


def test_a_picture_is_seen_the_same_after_a_wake(
    gpu_node: Running, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tiny_vision.make(tmp_path_factory.mktemp("models") / "idefics")
    gpu_node.add("seer", folder=folder, gpu_bytes=PRIVATE_BYTES, memory_bytes=3 << 30)

    def look(url: str) -> tuple[str, str]:
        image: Any = {"type": "image_url", "image_url": {"url": url}}
        raw = gpu_node.client.chat.completions.with_raw_response.create(
            model="seer",
            messages=[{"role": "user", "content": [image, {"type": "text", "text": "what?"}]}],
            max_tokens=12,
            temperature=0,
            extra_body={"ignore_eos": True},
        )
        return str(raw.parse().choices[0].message.content), raw.headers["x-woodfrog-rung"]

    seen, rung = look(pattern(100, 90))
    assert rung == "absent"
    assert look(pattern(40, 130))[0] != seen
    for rung in ("hot", "parked", "frozen"):
        lowered(gpu_node, rung, "seer")
        assert look(pattern(100, 90)) == (seen, rung)
    with pytest.raises(openai.BadRequestError) as caught:
        look("https://example.org/frog.png")
    assert caught.value.param == "messages[0].content[0].image_url"
    gpu_node.remove("seer")


def vault_pid(running: Running, number: int) -> int:
    """The process of the vault of that GPU."""
    socket = str(running.cluster.run_dir / "vault" / f"{number}.sock").encode()
    folders = (folder for folder in Path("/proc").iterdir() if folder.name.isdigit())
    (pid,) = (int(folder.name) for folder in folders if socket in _command(folder))
    return pid


def _command(folder: Path) -> list[bytes]:
    try:
        return (folder / "cmdline").read_bytes().split(b"\0")
    except OSError:
        return []
