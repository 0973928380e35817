"""What must survive: any process killed, a snapshot damaged, input that is wrong."""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import openai
import pytest
from safetensors.numpy import save_file

from tests.capabilities import MODEL
from tests.cluster.conftest import Running, descend, replica_pid, wait
from woodfrog.cli import commands, models, supervisor, up
from woodfrog.cli.cluster import SERVICES, Cluster
from woodfrog.clients.ingest import build_manifest, ingest
from woodfrog.clients.node_agent import NodeAgentClient
from woodfrog.errors import FailedPrecondition
from woodfrog.host import ports
from woodfrog.model.manifest import Kind
from woodfrog.model.rung import Rung
from woodfrog.model.snapshot import SnapshotPointer

QUESTION = "Name three animals that live in a forest."


@pytest.mark.parametrize("child", ["etcd", *SERVICES])
def test_a_killed_process_comes_back_and_nothing_is_lost(frog: Running, child: str) -> None:
    expected = frog.ask(QUESTION).text
    before = frog.snapshots()
    frog.kill9(child)
    assert frog.snapshots() == before
    assert [model.id for model in frog.client.models.list()] == ["smollm2"]
    assert frog.ask(QUESTION).text == expected
    frog.freeze()
    answer = frog.ask(QUESTION)
    assert (answer.rung, answer.text) == ("frozen", expected)


@pytest.mark.parametrize("child", SERVICES)
def test_a_process_killed_in_the_middle_of_a_wake_loses_nothing(frog: Running, child: str) -> None:
    expected = frog.ask(QUESTION).text
    frog.freeze()
    before = frog.snapshots()
    with ThreadPoolExecutor(1) as client:
        waking = client.submit(frog.ask, QUESTION)
        wait(lambda: waking.done() or bool(frog.replicas()), "a climb under way")
        frog.kill9(child)
        with suppress(openai.APIError):  # when it was cut off, the client asks again
            assert waking.result(timeout=100).text == expected
    assert frog.ask(QUESTION).text == expected
    assert frog.snapshots() == before
    frog.freeze()
    assert frog.ask(QUESTION).rung == "frozen"


def test_a_replica_killed_while_it_answers_is_replaced(frog: Running) -> None:
    expected = frog.ask(QUESTION)
    stream = frog.client.chat.completions.create(
        model="smollm2",
        messages=[{"role": "user", "content": "Tell a very long story."}],
        max_tokens=900,
        stream=True,
    )
    next(iter(stream))
    sandbox = next(path for path in frog.cluster.run_dir.glob("*/engine.sock"))
    os.kill(replica_pid(sandbox), signal.SIGKILL)
    with pytest.raises(openai.APIError, match="the replica went away in the middle of its answer"):
        for _ in stream:
            pass
    answer = frog.ask(QUESTION)
    assert answer.text == expected.text
    assert answer.replica != expected.replica
    assert not sandbox.exists()


def test_a_replica_killed_while_nobody_looks_is_replaced_without_an_error(frog: Running) -> None:
    expected = frog.ask(QUESTION)
    sandbox = next(path for path in frog.cluster.run_dir.glob("*/engine.sock"))
    os.kill(replica_pid(sandbox), signal.SIGKILL)
    answer = frog.ask(QUESTION)
    assert answer.text == expected.text
    assert answer.replica != expected.replica


def test_a_stuck_replica_is_ended_and_its_requests_go_to_another(frog: Running) -> None:
    expected = frog.ask(QUESTION)
    sandbox = next(path for path in frog.cluster.run_dir.glob("*/engine.sock"))
    os.kill(replica_pid(sandbox), signal.SIGSTOP)
    answer = frog.ask(QUESTION)
    assert answer.text == expected.text
    assert answer.replica != expected.replica
    assert not sandbox.exists()


def test_a_model_with_too_little_memory_says_so(frog: Running) -> None:
    frog.add("tight", memory_bytes=64 << 20)
    with pytest.raises(openai.APIStatusError, match="needs more than its 67108864 bytes of memory"):
        frog.ask(QUESTION, "tight")
    frog.remove("tight")


def test_weights_that_are_not_the_model_s_are_refused(frog: Running, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(MODEL, folder)
    save_file({"a": np.zeros(4, np.float32)}, folder / "model.safetensors")
    assert _woodfrog(frog, "models", "add", "hollow", str(folder)).returncode == 0
    with pytest.raises(
        openai.APIStatusError, match=r"the weights lack \d+ tensors of LlamaForCausalLM"
    ):
        frog.ask(QUESTION, "hollow")
    frog.remove("hollow")


@pytest.mark.parametrize("sleeps", [True, False])
def test_a_removed_model_leaves_no_bytes(sleeps: bool, frog: Running) -> None:
    before = _manifests(frog)
    frog.add("gone", memory_bytes=3 << 30)  # another manifest than smollm2's
    frog.ask(QUESTION, "gone")
    if sleeps:
        frog.freeze("gone")
    wait(lambda: bool(frog.snapshots("gone")), "the snapshot")
    (pointer,) = frog.snapshots("gone")
    frog.remove("gone")
    assert _manifests(frog) == before
    cache = frog.cluster.home / "node" / "cache"
    for manifest in (pointer.manifest, pointer.fingerprint.weights):
        assert not (cache / manifest.removeprefix("sha256:")).exists()


@pytest.mark.parametrize("where", ["store", "cache", "cache-images"])
def test_a_damaged_snapshot_leads_to_a_cold_start_and_a_new_snapshot(
    frog: Running, where: str
) -> None:
    expected = frog.ask(QUESTION).text
    frog.freeze()
    (pointer,) = frog.snapshots()
    digits = pointer.manifest.removeprefix("sha256:")
    tree = frog.cluster.home / "node" / "cache" / digits
    if where == "store":  # nothing on the node, so the bytes come from the store
        _evict(frog, pointer.manifest)
        for chunk in _chunks(frog, pointer.manifest):
            _flip(chunk)
    else:
        files = tree / "files"
        damaged = files / "pages" if where == "cache" else next((files / "images").glob("core-*"))
        whole = damaged.read_bytes()
        wait(lambda: _is_sealed(frog, pointer.manifest), "the seal")  # it syncs the disk first
        _flip(damaged)
    answer = frog.ask(QUESTION)
    assert answer.text == expected
    if where == "store":
        assert answer.rung == "absent"
        assert "sha256:" in answer.fallback
        spans = frog.spans(answer.trace_id)
        climb = next(span for span in spans if span["name"] == "climb")
        assert climb["attributes"]["woodfrog.fallback_reason"].startswith(answer.fallback)
        passed = [x for x in frog.log("node_agent") if x["message"] == "snapshot passed over"]
        assert passed[-1]["error"].startswith(answer.fallback)
        wait(lambda: frog.snapshots() not in ([], [pointer]), "a new snapshot")
    else:  # the damaged chunk is dropped and comes from the store again
        assert answer.rung == "stored"
        wait(lambda: damaged.read_bytes() == whole, "the file as it was")
    frog.freeze()
    assert frog.ask(QUESTION).rung == "frozen"


def test_a_descent_whose_caller_went_away_ends_all_the_same(frog: Running) -> None:
    expected = frog.ask(QUESTION)

    async def cut_off() -> None:
        async with NodeAgentClient(frog.cluster.address("node_agent")) as agent:
            task = asyncio.create_task(agent.descend(expected.replica, Rung.FROZEN))
            await asyncio.sleep(0.005)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    wait(lambda: bool(frog.snapshots()), "a snapshot")
    asyncio.run(cut_off())
    wait(lambda: not frog.replicas(), "no replica")
    assert frog.ask(QUESTION).text == expected.text


def test_a_snapshot_that_restores_to_nonsense_is_given_up_at_the_second_time(frog: Running) -> None:
    frog.ask(QUESTION)
    frog.freeze()
    (pointer,) = frog.snapshots()
    bad = _with_broken_images(frog, pointer)
    reasons = []
    for _ in range(2):
        answer = frog.ask(QUESTION)
        assert answer.rung == "absent"
        reasons.append(answer.fallback)
        if frog.snapshots() == [bad]:
            for replica in frog.replicas():
                asyncio.run(descend(frog.cluster, replica.replica_id))
            wait(lambda: not frog.replicas(), "no replica")
    assert all("criu restore ended" in reason for reason in reasons)
    wait(lambda: frog.snapshots() not in ([], [bad]), "a new snapshot")
    frog.freeze()
    assert frog.ask(QUESTION).rung == "frozen"


def test_a_snapshot_of_another_engine_is_passed_over_with_the_reason(frog: Running) -> None:
    frog.ask(QUESTION)
    frog.freeze()
    (pointer,) = frog.snapshots()
    engine = {**pointer.fingerprint.engine, "torch": "1.0"}
    other = replace(pointer, fingerprint=replace(pointer.fingerprint, engine=engine))

    async def exchange() -> None:
        async with models.connect(frog.cluster) as cell:
            await cell.store.hold(other.manifest, other.holder)
            await cell.catalog.put_snapshot(other)
            await cell.catalog.remove_snapshot(pointer)

    asyncio.run(exchange())
    wait(lambda: frog.snapshots() == [other], "the other snapshot alone")
    answer = frog.ask(QUESTION)
    assert answer.rung == "absent"
    assert answer.fallback.startswith("engine torch is ")
    wait(lambda: frog.snapshots() not in ([], [other]), "a snapshot that fits, and no other")
    assert len(frog.snapshots()) == 1


def test_a_model_that_has_no_room_gets_that_of_an_idle_one(frog: Running) -> None:
    frog.ask(QUESTION)
    (node,) = asyncio.run(commands.describe(frog.cluster)).nodes
    frog.add("large", memory_bytes=node.memory_bytes - (1 << 30))
    assert frog.ask(QUESTION, "large").text
    assert not frog.replicas()
    (node,) = asyncio.run(commands.describe(frog.cluster)).nodes
    assert node.memory_promised_bytes <= node.memory_bytes
    frog.remove("large")
    assert frog.ask(QUESTION).text


def test_a_model_with_a_long_name_gets_a_snapshot_too(frog: Running) -> None:
    name = "neuralmagic/" + "Meta-Llama-3.1-70B-Instruct-quantized.w4a16-and-so-on-" + "x" * 40
    frog.add(name)
    frog.ask(QUESTION, name)
    wait(lambda: bool(frog.snapshots(name)), "a snapshot")
    frog.remove(name)


def test_an_empty_cache_is_filled_from_the_store(frog: Running) -> None:
    expected = frog.ask(QUESTION).text
    frog.freeze()
    (pointer,) = frog.snapshots()
    _evict(frog, pointer.manifest)
    answer = frog.ask(QUESTION)
    assert (answer.rung, answer.text) == ("stored", expected)


@pytest.mark.parametrize(
    "case", ["missing", "empty", "pickle", "truncated", "no-config", "file", "name"]
)
def test_models_add_of_what_is_no_model_says_so_and_leaves_nothing(
    frog: Running, case: str, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    name = "broken"
    for path in MODEL.iterdir():
        if path.suffix != ".safetensors":
            (folder / path.name).write_bytes(path.read_bytes())
    weights = (MODEL / "model.safetensors").read_bytes()
    match case:
        case "missing":
            folder = tmp_path / "nowhere"
        case "pickle":
            (folder / "pytorch_model.bin").write_bytes(b"\x80\x04N.")
        case "truncated":
            (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])
        case "no-config":
            (folder / "model.safetensors").write_bytes(weights)
            (folder / "config.json").unlink()
        case "file":
            folder = folder / "config.json"
        case "name":
            name = "../etc/passwd"
    before = _manifests(frog)
    done = _woodfrog(frog, "models", "add", name, str(folder))
    assert done.returncode == 1
    assert done.stderr.startswith("woodfrog: ")
    assert len(done.stderr.strip().splitlines()) == 1
    assert "Traceback" not in done.stderr
    assert _manifests(frog) == before
    assert [model.id for model in frog.client.models.list()] == ["smollm2"]


def test_a_model_that_is_there_cannot_be_added_again(frog: Running) -> None:
    done = _woodfrog(frog, "models", "add", "smollm2", str(MODEL))
    assert done.returncode == 1
    assert "already" in done.stderr
    assert frog.ask(QUESTION).text


def test_a_port_that_is_taken_is_told_at_once_and_another_can_be_chosen(
    frog: Running, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "woodfrog.cli", "--home", str(tmp_path / "home"), "up"]
    taken = subprocess.run(
        [*command, "--port", str(frog.cluster.http_port)],
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert taken.returncode == 1
    assert "choose another with --port" in taken.stderr
    assert len(taken.stderr.strip().splitlines()) == 1
    (free,) = ports.free(1)
    try:
        assert subprocess.run([*command, "--port", str(free)], timeout=100).returncode == 0
        assert Cluster.existing(tmp_path / "home").http_port == free
    finally:
        up.down(tmp_path / "home")


def test_up_again_says_that_it_is_up(frog: Running) -> None:
    pid = frog.pid("router")
    done = _woodfrog(frog, "up")
    assert done.returncode == 0
    assert "was up already" in done.stdout
    assert frog.pid("router") == pid


def test_the_commands_print_what_is_there(frog: Running) -> None:
    frog.ask(QUESTION)
    assert "serving" in _woodfrog(frog, "ps").stdout
    assert "smollm2" in _woodfrog(frog, "models", "list").stdout
    assert "smollm2" in _woodfrog(frog, "snapshots", "list").stdout
    assert _woodfrog(frog, "chat", "smollm2", "Say", "hello.").stdout.strip()
    assert _woodfrog(frog, "models", "rm", "nothing").stderr.startswith("woodfrog: ")
    assert "removed 1 snapshot(s)" in _woodfrog(frog, "snapshots", "rm", "smollm2").stdout
    assert _woodfrog(frog, "snapshots", "rm", "smollm2").stderr.startswith("woodfrog: ")
    for replica in frog.replicas():
        asyncio.run(descend(frog.cluster, replica.replica_id))
    wait(lambda: not frog.replicas(), "no replica")
    assert frog.ask(QUESTION).rung == "absent"
    wait(lambda: bool(frog.snapshots()), "a snapshot again")
    frog.add("short")
    assert _woodfrog(frog, "models", "rm", "short").stdout == "removed short\n"
    assert "short" not in _woodfrog(frog, "models", "list").stdout


@pytest.mark.parametrize("end", ["down", "ctrl-c", "kill-9"])
def test_an_end_leaves_no_process_mount_or_cgroup(end: str, tmp_path: Path) -> None:
    home = tmp_path / "home"
    cluster = Cluster.open(home)
    child: subprocess.Popen[bytes] | None = None
    if end == "ctrl-c":
        command = [sys.executable, "-m", "woodfrog.cli", "--home", str(home), "up", "--foreground"]
        child = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        asyncio.run(up.wait_ready(cluster))
    else:
        up.start(cluster)
    pid = supervisor.Lock(home).holder()
    assert pid is not None
    children = [int(path.read_text()) for path in (home / "pids").iterdir()]
    assert len(children) == len(SERVICES) + 1
    match end:
        case "down":
            assert up.down(home) == 0
        case "ctrl-c":
            assert child is not None
            os.killpg(child.pid, signal.SIGINT)  # as a terminal does: to all of the group
            assert child.wait(60) == 0
        case "kill-9":  # the children die with it, and the next command sweeps up
            os.kill(pid, signal.SIGKILL)
            wait(lambda: not any(_alive(child) for child in children), "no child")
            assert up.down(home) == 0
    assert not any(_alive(each) for each in [pid, *children])
    assert str(home) not in Path("/proc/self/mounts").read_text()
    assert not list(Path("/sys/fs/cgroup").rglob(f"woodfrog/{cluster.node}"))
    assert not cluster.run_dir.exists()


def _woodfrog(running: Running, *args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "woodfrog.cli", "--home", str(running.cluster.home), *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def _alive(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def _manifests(running: Running) -> set[str]:
    return {path.name for path in (running.cluster.home / "store" / "manifests").iterdir()}


def _evict(running: Running, manifest: str) -> None:
    from woodfrog.clients.weight_fs import WeightFsClient

    async def work() -> None:
        async with WeightFsClient(running.cluster.address("weight_fs")) as weight_fs:
            await weight_fs.evict(manifest)

    def evicted() -> bool:
        try:
            asyncio.run(work())
        except FailedPrecondition:  # pinned until the end of its last replica is known
            return False
        return True

    wait(evicted, "no pin of it")


def _with_broken_images(running: Running, pointer: SnapshotPointer) -> SnapshotPointer:
    """A snapshot whose bytes are as its manifest says, and which CRIU cannot restore, in the place of `pointer`."""

    async def work() -> SnapshotPointer:
        cache = running.cluster.home / "node" / "cache"
        files = cache / pointer.manifest.removeprefix("sha256:") / "files"
        with tempfile.TemporaryDirectory(dir=cache.parent) as folder:
            tree = Path(folder) / "tree"
            shutil.copytree(files, tree)
            next((tree / "images").glob("core-*")).write_bytes(b"no image")
            async with models.connect(running.cluster) as cell:
                stored = await cell.store.get_manifest(pointer.manifest)
                manifest = build_manifest(Kind.SNAPSHOT, tree, stored.manifest.attributes)
                await ingest(cell.store, cell.chunks, manifest, tree)
                bad = replace(pointer, manifest=manifest.digest)
                await cell.store.hold(bad.manifest, bad.holder)
                await cell.catalog.put_snapshot(bad)
        return bad

    return asyncio.run(work())


def _chunks(running: Running, manifest: str) -> list[Path]:
    """Files in the store of the chunks of a manifest."""
    from woodfrog.clients.store import StoreClient

    async def work() -> frozenset[str]:
        async with StoreClient(running.cluster.address("snapshot_store")) as store:
            return (await store.get_manifest(manifest)).manifest.chunk_digests

    digits = {digest.removeprefix("sha256:") for digest in asyncio.run(work())}
    store = running.cluster.home / "store" / "chunks"
    return [path for path in store.rglob("*") if path.name in digits]


def _is_sealed(frog: Running, manifest: str) -> bool:
    """What is touched from now on is verified again."""
    said = ("tree sealed", "sealed tree was changed from outside")
    told = [x["message"] for x in frog.log("weight_fs") if x.get("manifest") == manifest]
    return next((each for each in reversed(told) if each in said), "") == said[0]


def _flip(path: Path) -> None:
    """Changes one byte in the middle of a file's data."""
    with open(path, "r+b") as file:
        offset = os.lseek(file.fileno(), os.fstat(file.fileno()).st_size // 2, os.SEEK_DATA)
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes([byte[0] ^ 0xFF]))
