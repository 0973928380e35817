"""This node's GPUs: a vault for each, and CUDA's checkpoints for all. Carries out what `gpu_state.py` promised."""

import asyncio
import logging
import os
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from woodfrog.errors import Unavailable, WoodfrogError
from woodfrog.node_agent.cuda import CudaCheckpoints
from woodfrog.node_agent.gpu_state import Bring, GpuState
from woodfrog.node_agent.live import Live
from woodfrog.node_agent.sandbox import Sandbox
from woodfrog.node_agent.vault.client import START_TIMEOUT_S, VaultConfig, VaultProcess

log = logging.getLogger(__name__)
T = TypeVar("T")
RESERVE_BYTES = 256 << 20  # of each GPU: what the driver needs beside what is counted
#: From this driver on, killing a process that was restored may hang the machine (NVIDIA/cuda-checkpoint issue 53; not
#: seen on 580).
FROZEN_BEFORE_KILLED = 590
_RESTART_S = 1.0
_RESTART_POLL_S = 0.02
_HEALTH_PATIENCE = 6  # looks that a vault may be late: a busy driver answers after seconds
_NOTICE_S = 1.0  # from a call that failed to the news that its process is gone


@dataclass(frozen=True, slots=True)
class Adapters:
    """module:class of each port; tests name simulated ones."""

    vault_device: str
    replica_memory: str
    cuda_driver: str


@dataclass(frozen=True, slots=True)
class Weights:
    gpu: str
    fd: int | None  # of memory to be shared; None: a replica's own is to be filled
    vault: int  # which of the GPU's vaults it is from


@dataclass(frozen=True, slots=True)
class Bringing:
    room: asyncio.Task[None]  # there is enough of it; raises Unavailable GPU_FULL
    weights: asyncio.Task[Weights]


class Gpus:
    """`async with`. Without configs it is a node that has none. Raises Unavailable when one does not start."""

    def __init__(
        self,
        configs: Sequence[VaultConfig],
        adapters: Adapters,
        end_within_s: float = 15.0,
        health_s: float = 5.0,
    ) -> None:
        """`end_within_s`: how long the end of a replica may be held up by what `end` does before it kills. `health_s`:
        between two looks at a vault."""
        self._health_s = health_s
        self._end_within_s = end_within_s
        self.cuda = CudaCheckpoints(adapters.cuda_driver)
        self._adapters = adapters
        self._configs = configs
        self._vaults: dict[str, VaultProcess] = {}
        self._numbers: dict[str, VaultConfig] = {}
        self._drops: dict[str, asyncio.Task[None]] = {}  # the last of each GPU's
        self._unwanted: dict[str, dict[tuple[str, str], None]] = {}  # (weights, tier) to drop
        self._starts: Counter[str] = Counter()  # of each GPU's vault, after the first
        self._files = device_files()
        self._all_files = sorted(Path("/dev").glob("nvidia[0-9]*"))
        self._held: set[tuple[str, str]] = set()  # (GPU, weights) that are on it

    async def __aenter__(self) -> "Gpus":
        if not self._configs:
            return self
        vaults = [VaultProcess(config) for config in self._configs]
        try:
            await asyncio.gather(self.cuda.__aenter__(), *(vault.start() for vault in vaults))
        except BaseException:
            await asyncio.gather(*(vault.close() for vault in vaults))
            await self.cuda.__aexit__()
            raise
        for config, vault in zip(self._configs, vaults, strict=True):
            self._vaults[vault.facts["uuid"]] = vault
            self._numbers[vault.facts["uuid"]] = config
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.gather(*(vault.close() for vault in self._vaults.values()))
        if self._configs:
            await self.cuda.__aexit__()

    @property
    def uuids(self) -> list[str]:
        return list(self._vaults)

    @property
    def print(self) -> str:
        """What a snapshot's GPU must have in common with these; they are all of one kind."""
        kinds = sorted(
            {f"{v.facts['name']}, driver {v.facts['driver']}" for v in self._vaults.values()}
        )
        return "; ".join(kinds) or "none"

    def states(self, context_bytes: int) -> list[GpuState]:
        return [
            GpuState(
                uuid,
                vault.facts["free_bytes"] - RESERVE_BYTES,
                vault.facts["arena_bytes"],
                context_bytes,
            )
            for uuid, vault in self._vaults.items()
        ]

    def others(self, uuid: str) -> list[Path]:
        """Files of the machine's GPUs but that one's, to be hidden from a replica on it; with "" of all.

        A process is tied to every GPU that it can open: CUDA restores it only where each has one that takes its place.
        """
        own = self._files.get(uuid)
        if uuid and own is None:  # the driver does not tell which is which
            return []
        return [path for path in self._all_files if path != own]

    def device(self, uuid: str) -> Mapping[str, str]:
        """The variables of an engine that runs on it."""
        return {
            "CUDA_VISIBLE_DEVICES": uuid,
            "CUDA_DEVICE_MAX_CONNECTIONS": "1",  # of eight queues each takes 7 ms of a restore
            "WOODFROG_DEVICE_MEMORY": self._adapters.replica_memory,
        }

    async def freeze(self, sandbox: Sandbox) -> dict[int, int]:
        """All that its processes have on GPUs goes into their memory. Those that had, by ids inside: as the host sees them.

        Raises Unavailable; they run on then.
        """
        inside = sandbox.processes()
        users = await self.cuda.users(inside.values())
        frozen = {pid: host for pid, host in inside.items() if host in users}
        await self.cuda.freeze(*frozen.values())
        return frozen

    async def end(self, live: Live) -> None:
        """Kills a replica; where that may hang the machine, nothing of it is on a GPU any more if that can be had in time."""
        try:
            if live.gpu and self._frozen_before_killed:
                await self._off_gpu(live)
        finally:
            await live.sandbox.close()

    async def _off_gpu(self, live: Live) -> None:
        try:
            async with asyncio.timeout(self._end_within_s):
                await live.sandbox.signal_all(signal.SIGCONT)  # it may be parked
                await live.park()  # CUDA freezes no process with memory of the vault's
                await self.freeze(live.sandbox)
        except (WoodfrogError, OSError) as error:
            log.warning(
                "killed with a GPU in use",
                extra={"replica": live.replica_id, "error": str(error) or "it took too long"},
            )

    def begin(self, bring: Bring) -> None:
        """Drops what must make room; called in the order of the promises, before anything waits."""
        unwanted = self._unwanted.setdefault(bring.gpu, {})
        for weights in bring.drop_device:
            self._held.discard((bring.gpu, weights))
            unwanted[weights, "device"] = None
        for weights in bring.drop_host:
            unwanted[weights, "host"] = None
        if not bring.own:  # which leaves the shared copy as it is, or drops it for its room
            unwanted.pop((bring.weights, "device"), None)
        if bring.host:
            unwanted.pop((bring.weights, "host"), None)
        before = self._drops.get(bring.gpu)
        self._drops[bring.gpu] = asyncio.create_task(
            self._drop_all(bring.gpu, before), name="vault.drop"
        )

    @asynccontextmanager
    async def bringing(self, bring: Bring | None, folder: Path) -> AsyncIterator[Bringing | None]:
        """Weights on their way to their GPU from the files in `folder`, which are not read when the vault has them.

        The descriptor is closed at the end. None when nothing is to be brought.
        """
        if bring is None:
            yield None
            return
        room = asyncio.create_task(self._room(bring), name="vault.room")
        weights = asyncio.create_task(self._bring(bring, folder, room), name="vault.load")
        try:
            yield Bringing(room, weights)
        finally:
            weights.cancel()
            [outcome, _] = await asyncio.gather(weights, room, return_exceptions=True)
            if isinstance(outcome, Weights) and outcome.fd is not None:
                os.close(outcome.fd)

    async def hand_over(
        self, live: Live, bringing: Bringing, bring: Bring, folder: Path
    ) -> int | None:
        """A replica with a process on its GPU, parked, gets its weights: the descriptor that its thaw takes, if any.

        It stays `bringing`'s.
        """
        held = await bringing.weights
        live.gpu, live.vault = held.gpu, held.vault
        if bring.own:
            [fd] = (await live.control("lend", fds_wanted=1))["fds"]
            try:
                live.vault = await self._fill(bring, folder, fd)
            finally:
                os.close(fd)
        return held.fd

    async def forget(self, gpu: str, weights: str) -> None:
        """Drops them, on the GPU and pinned, and waits for it."""
        self.begin(Bring(gpu, "", False, (weights,), (weights,)))
        await asyncio.shield(self._drops[gpu])

    async def export(self, gpu: str, weights: str) -> int:
        """A descriptor of weights that are there, the caller's to close."""
        return await self._vaults[gpu].export(weights)

    def holds(self, bring: Bring) -> bool:
        return (bring.gpu, bring.weights) in self._held

    async def died(self, uuid: str) -> None:
        """Returns when its vault has; one that does not answer is ended."""
        vault = self._vaults[uuid]
        while not vault.died.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(self._health_s):
                    await vault.died.wait()
            if not vault.died.is_set() and not await vault.answers(
                _HEALTH_PATIENCE * self._health_s
            ):
                log.error("vault does not answer", extra={"gpu": uuid})
                await vault.close()

    async def restart(self, uuid: str) -> None:
        self._held = {(gpu, weights) for gpu, weights in self._held if gpu != uuid}
        self._starts[uuid] += 1
        while True:
            vault = VaultProcess(self._numbers[uuid])
            try:
                await vault.start()
            except (WoodfrogError, OSError) as error:
                log.error("vault does not start", extra={"gpu": uuid, "error": str(error)})
                await asyncio.sleep(_RESTART_S)
            else:
                self._vaults[uuid] = vault
                return

    def current(self, uuid: str, vault: int) -> bool:
        """Whether the vault that gave a replica its weights is still the one that owns them."""
        return self._starts[uuid] == vault and not self._vaults[uuid].died.is_set()

    async def facts(self, uuid: str) -> dict[str, Any]:
        return await self._vaults[uuid].describe()

    @property
    def _frozen_before_killed(self) -> bool:
        majors = {vault.facts["driver"].partition(".")[0] for vault in self._vaults.values()}
        return any(major.isdigit() and int(major) >= FROZEN_BEFORE_KILLED for major in majors)

    async def _room(self, bring: Bring) -> None:
        """A restore without room leaves a process that only a kill helps, so it is not begun.

        What this agent promised fits; somebody else may use the GPU too.
        """
        if drops := self._drops.get(bring.gpu):
            await asyncio.shield(drops)
        if self._unwanted.get(bring.gpu):
            await self._drop_all(bring.gpu)
        facts = await (await self._living(bring.gpu)).describe()
        there = facts["weights"].get(bring.weights, {}).get("device", False)
        needed = bring.private_bytes + (0 if there or bring.own else bring.weights_bytes)
        if facts["free_bytes"] < needed:
            raise Unavailable(
                "GPU_FULL",
                f"{bring.gpu} has {facts['free_bytes']} bytes free and {needed} are needed: somebody else uses it; "
                "free it or give this node another GPU",
            )

    async def _bring(self, bring: Bring, folder: Path, room: asyncio.Task[None]) -> Weights:
        await room
        if bring.own:
            await self._living(bring.gpu)
            return Weights(bring.gpu, None, self._starts[bring.gpu])
        weights = await self._load(bring, folder)
        self._held.add((bring.gpu, bring.weights))
        return weights

    async def _load(self, bring: Bring, folder: Path) -> Weights:
        name, host, size_max = bring.weights, bring.host, bring.weights_bytes
        fd, number = await self._by_vault(
            bring.gpu, lambda vault: vault.load(name, folder, host=host, size_max=size_max)
        )
        return Weights(bring.gpu, fd, number)

    async def _fill(self, bring: Bring, folder: Path, fd: int) -> int:
        """Which of the GPU's vaults did it."""
        name, host, size_max = bring.weights, bring.host, bring.weights_bytes
        _, number = await self._by_vault(
            bring.gpu, lambda vault: vault.fill(name, folder, fd, host=host, size_max=size_max)
        )
        return number

    async def _by_vault(
        self, gpu: str, work: Callable[[VaultProcess], Awaitable[T]]
    ) -> tuple[T, int]:
        """By the vault, or by its successor when it dies over it; and which of them."""
        vault = await self._living(gpu)
        number = self._starts[gpu]
        try:
            return await work(vault), number
        except Unavailable:
            with suppress(TimeoutError):
                async with asyncio.timeout(_NOTICE_S):
                    await vault.died.wait()
            if not vault.died.is_set():
                raise
        vault = await self._living(gpu)
        number = self._starts[gpu]
        return await work(vault), number

    async def _living(self, uuid: str) -> VaultProcess:
        deadline = time.monotonic() + START_TIMEOUT_S
        while self._vaults[uuid].died.is_set():
            if time.monotonic() > deadline:
                raise Unavailable(
                    "VAULT_FAILED", "the vault of this GPU does not start; see its log"
                )
            await asyncio.sleep(_RESTART_POLL_S)
        return self._vaults[uuid]

    async def _drop_all(self, uuid: str, before: asyncio.Task[None] | None = None) -> None:
        """What is not wanted any more. What fails is tried again before the next look at the room."""
        if before is not None:
            await asyncio.gather(before, return_exceptions=True)
        unwanted = self._unwanted.setdefault(uuid, {})
        vault = self._vaults[uuid]
        for weights, where in list(unwanted):
            if (weights, where) not in unwanted:  # wanted again meanwhile
                continue
            try:
                await vault.drop(weights, device=where == "device", host=where == "host")
            except WoodfrogError as error:
                if not vault.died.is_set():  # else it is gone with it
                    log.warning("weights not dropped", extra={"gpu": uuid, "error": error.message})
                    continue
            unwanted.pop((weights, where), None)


def device_files(driver: Path = Path("/proc/driver/nvidia")) -> dict[str, Path]:
    """Of each GPU of this machine, by its uuid: /dev/nvidia0 and so on. `driver` is the kernel module's folder."""
    found: dict[str, Path] = {}
    for information in driver.glob("gpus/*/information"):
        pairs = (line.partition(":") for line in information.read_text().splitlines())
        facts = {name.strip(): value.strip() for name, _, value in pairs}
        if "GPU UUID" in facts and "Device Minor" in facts:
            found[facts["GPU UUID"]] = Path(f"/dev/nvidia{facts['Device Minor']}")
    return found
