"""Wires the node agent: settings → adapters → state → loop → server."""

import asyncio
import fcntl
import os
from pathlib import Path

from woodfrog import rpc
from woodfrog.api.metering.v1 import usages_pb2_grpc
from woodfrog.api.node_agent.v1 import replicas_pb2, replicas_pb2_grpc
from woodfrog.catalog import Catalog, NodeRecord
from woodfrog.clients.store import ChunkClient, StoreClient
from woodfrog.clients.usages import SERVICE as USAGES
from woodfrog.clients.usages import UsagesServicer
from woodfrog.clients.weight_fs import WeightFsClient
from woodfrog.clock import SystemClock
from woodfrog.coordination import Session
from woodfrog.errors import FailedPrecondition, InvalidArgument
from woodfrog.host.cgroup import Cgroups
from woodfrog.metering import Ledger
from woodfrog.node_agent import fingerprint
from woodfrog.node_agent.board import Board
from woodfrog.node_agent.charges import Charges
from woodfrog.node_agent.checkpoint import Checkpointer
from woodfrog.node_agent.climb import Climber
from woodfrog.node_agent.criu import Criu
from woodfrog.node_agent.drain import Drain
from woodfrog.node_agent.engines import code_folders
from woodfrog.node_agent.gpus import Adapters, Gpus
from woodfrog.node_agent.loop import NodeLoop, Parts
from woodfrog.node_agent.metrics import Metrics
from woodfrog.node_agent.prefetch import Prefetcher
from woodfrog.node_agent.recovery import recover
from woodfrog.node_agent.sandbox import SandboxConfig, SandboxPool
from woodfrog.node_agent.service import ReplicasServicer
from woodfrog.node_agent.settings import Settings
from woodfrog.node_agent.state import NodeState
from woodfrog.node_agent.vault.client import VaultConfig
from woodfrog.settings import load

SERVICE = replicas_pb2.DESCRIPTOR.services_by_name["Replicas"].full_name


async def main(stop: asyncio.Event) -> None:
    settings = load(Settings)
    clock = SystemClock()
    _lock(settings.state_dir)
    cgroups = Cgroups(settings.node)
    staging = settings.state_dir / "staging"
    recover(cgroups, settings.run_dir, staging)
    criu = Criu(settings.criu)
    kdat = settings.state_dir / "criu.kdat"
    criu_version = await criu.probe(kdat)
    code = code_folders(settings.criu)
    config = SandboxConfig(kdat, settings.run_dir, code)
    pool = SandboxPool(cgroups, config, settings.pool_size)
    memory = settings.memory_bytes or _machine_memory() * 4 // 5
    ledger = Ledger(settings.state_dir / "usage.db")
    adapters = Adapters(settings.vault_device, settings.replica_memory, settings.cuda_driver)
    async with (
        Session(settings.etcd.split(","), clock) as session,
        StoreClient(settings.store) as store,
        ChunkClient() as chunks,
        WeightFsClient(settings.weight_fs) as weight_fs,
        Gpus(_vaults(settings), adapters) as gpus,
        rpc.Server(settings.listen) as server,
    ):
        catalog = Catalog(session)
        climber = Climber(weight_fs, pool, criu, gpus, settings.cold_timeout_s)
        checkpointer = Checkpointer(
            climber, criu, gpus, weight_fs, store, chunks, catalog, clock, staging
        )
        state = NodeState(
            memory, settings.replica_count_max, gpus.states(settings.gpu_context_bytes)
        )
        state.tenants = settings.tenant_names
        metrics = Metrics(state)
        board = Board(settings.node, state, fingerprint.of_node(criu_version, gpus.print))
        charges = Charges(board, state, ledger, clock)
        loop = NodeLoop(board, Parts(climber, checkpointer, weight_fs, pool, gpus, metrics))
        prefetcher = Prefetcher(settings.node, climber, weight_fs, state.tenants)
        servicer = ReplicasServicer(loop, prefetcher, Drain(board, settings.state_dir))
        add = replicas_pb2_grpc.add_ReplicasServicer_to_server
        add(servicer, server.grpc)  # type: ignore[no-untyped-call]
        add = usages_pb2_grpc.add_UsagesServicer_to_server
        add(UsagesServicer(ledger, charges.settle), server.grpc)  # type: ignore[no-untyped-call]
        running = asyncio.create_task(loop.run(), name="loop")
        charging = asyncio.create_task(charges.run(), name="charges")
        try:
            await server.start(SERVICE, USAGES)
            host = settings.listen.rpartition(":")[0]
            record = NodeRecord(settings.node, f"{host}:{server.port}")
            with metrics.served(settings.metrics_listen):
                async with catalog.register_node(record, settings.lease_ttl_s):
                    stopping = asyncio.create_task(stop.wait(), name="stop")
                    parts = [running, charging]
                    await asyncio.wait([*parts, stopping], return_when=asyncio.FIRST_COMPLETED)
                    stopping.cancel()
                    for part in parts:
                        if part.done():
                            part.result()  # it never just ends: its error ends the process
        finally:
            running.cancel()
            charging.cancel()
            await asyncio.gather(running, charging, return_exceptions=True)
            charges.settle()
            cgroups.remove_node()


def _lock(state_dir: Path) -> None:
    """Held until the process ends. Raises FailedPrecondition: another agent would end this one's replicas as leftovers."""
    state_dir.mkdir(parents=True, exist_ok=True)
    fd = os.open(state_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise FailedPrecondition(
            "NODE_IN_USE",
            f"another node agent uses {state_dir}; stop it, or choose another folder and node name",
        ) from None


def _vaults(settings: Settings) -> list[VaultConfig]:
    """Raises InvalidArgument when the setting names no GPU of this machine."""
    if settings.gpus == "none":
        return []
    there = list(range(len(list(Path("/dev").glob("nvidia[0-9]*")))))
    try:
        numbers = there if settings.gpus == "all" else [int(n) for n in settings.gpus.split(",")]
    except ValueError:
        numbers = []
    if not numbers or len(set(numbers)) < len(numbers) or min(numbers) < 0:
        raise InvalidArgument(
            "BAD_SETTING",
            f"WOODFROG_NODE_AGENT_GPUS is {settings.gpus!r}, this machine has"
            f" {'GPUs ' + ', '.join(map(str, there)) if there else 'no GPU'}; say none, all, or their numbers",
        )
    arena = settings.arena_bytes
    if arena < 0:
        arena = _machine_memory() // 4 // len(numbers)
    return [
        VaultConfig(
            settings.state_dir / f"vault-{number}.log",
            settings.run_dir / "vault" / f"{number}.sock",
            arena,
            settings.vault_reader_count,
            settings.vault_device,
            number,
        )
        for number in numbers
    ]


def _machine_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


if __name__ == "__main__":
    rpc.run("node_agent", main)
