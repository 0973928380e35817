"""The agent's side of a vault: its process, and what it is asked."""

import asyncio
import logging
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from woodfrog.errors import DataLoss, DeadlineExceeded, Unavailable, WoodfrogError
from woodfrog.node_agent.vault.device import REAL
from woodfrog.replica.client import ControlClient

log = logging.getLogger(__name__)
START_TIMEOUT_S = 180.0  # pinning 100 GB takes a while
_LOAD_TIMEOUT_S = 600.0
_CALL_TIMEOUT_S = 30.0
_POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class VaultConfig:
    log: Path
    socket: Path  # short: a socket's path has 107 bytes at most
    arena_bytes: int
    reader_count: int
    device: str = REAL  # module:class; tests name a simulated one
    number: int = 0


class VaultProcess:
    """`start` it, then ask. When it dies `died` is set; what it held is lost."""

    def __init__(self, config: VaultConfig) -> None:
        self.died = asyncio.Event()
        self.facts: Mapping[str, Any] = {}
        self._config = config
        self._client = ControlClient(config.socket, "the vault")
        self._process: asyncio.subprocess.Process | None = None
        self._watch: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Raises Unavailable VAULT_FAILED."""
        config = self._config
        for path in (config.log, config.socket):
            path.parent.mkdir(parents=True, exist_ok=True)
        config.socket.unlink(missing_ok=True)  # a predecessor's
        with config.log.open("ab") as errors:
            self._process = await asyncio.create_subprocess_exec(
                "setpriv", "--pdeathsig", "KILL",
                sys.executable, "-m", "woodfrog.node_agent.vault",
                str(config.log.with_suffix(".lock")), str(config.socket),
                str(config.arena_bytes), str(config.reader_count), config.device, str(config.number),
                stdin=asyncio.subprocess.DEVNULL, stdout=errors, stderr=errors,
            )  # fmt: skip
        self._watch = asyncio.create_task(self._wait(self._process), name="vault.wait")
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                self.facts = await self._first_word()
        except TimeoutError:
            await self.close()
            raise Unavailable(
                "VAULT_FAILED",
                f"the vault did not start in {START_TIMEOUT_S:.0f} s; see {config.log}",
            ) from None

    async def load(self, weights: str, folder: Path, *, host: bool, size_max: int) -> int:
        """Onto the GPU, and into pinned memory too if `host`. A descriptor of it, the caller's to close.

        Raises Unavailable, ResourceExhausted GPU_FULL, InvalidArgument for weights that are malformed or larger than
        `size_max`.
        """
        reply = await self._ask(
            "load", _LOAD_TIMEOUT_S, 1,
            weights=weights, folder=str(folder), host=host, size_max=size_max,
        )  # fmt: skip
        return int(reply["fds"][0])

    async def fill(self, weights: str, folder: Path, fd: int, *, host: bool, size_max: int) -> None:
        """Into GPU memory that a replica lends as `fd`. Raises as `load`."""
        await self._ask(
            "fill", _LOAD_TIMEOUT_S, 0, fds=(fd,),
            weights=weights, folder=str(folder), host=host, size_max=size_max,
        )  # fmt: skip

    async def export(self, weights: str) -> int:
        """A descriptor of what is on the GPU, the caller's to close. Raises NotFound."""
        reply = await self._ask("export", _CALL_TIMEOUT_S, 1, weights=weights)
        return int(reply["fds"][0])

    async def drop(self, weights: str, *, device: bool = False, host: bool = False) -> None:
        """Waits for a load of them that is under way."""
        await self._ask("drop", _LOAD_TIMEOUT_S, 0, weights=weights, device=device, host=host)

    async def describe(self, within_s: float = _CALL_TIMEOUT_S) -> dict[str, Any]:
        return await self._ask("describe", within_s, 0)

    async def _ask(
        self,
        verb: str,
        within_s: float,
        fds_wanted: int,
        fds: tuple[int, ...] = (),
        **fields: Any,
    ) -> dict[str, Any]:
        """What is wrong with the vault or the weights must not look as if it were with a replica or its snapshot."""
        try:
            return await self._client.call(verb, within_s, fds=fds, fds_wanted=fds_wanted, **fields)
        except DeadlineExceeded as error:
            raise Unavailable("VAULT_SILENT", error.message) from error
        except DataLoss as error:
            raise Unavailable(error.reason, error.message) from error
        except Unavailable as error:
            if error.reason == "REPLICA_UNREACHABLE":
                raise Unavailable("VAULT_UNREACHABLE", error.message) from error
            raise

    async def answers(self, within_s: float) -> bool:
        try:
            await self.describe(within_s)
        except WoodfrogError:
            return False
        return True

    async def close(self) -> None:
        """Kills it."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
        if self._watch is not None:
            await self._watch
        self._config.socket.unlink(missing_ok=True)

    async def _first_word(self) -> dict[str, Any]:
        while not self.died.is_set():
            if self._config.socket.exists():
                try:
                    return await self.describe()
                except WoodfrogError:
                    pass  # it is about to listen
            await asyncio.sleep(_POLL_S)
        raise Unavailable(
            "VAULT_FAILED", f"the vault did not start: {_last_line(self._config.log)}"
        )

    async def _wait(self, process: asyncio.subprocess.Process) -> None:
        status = await process.wait()
        log.info("vault ended", extra={"status": status, "number": self._config.number})
        self.died.set()


def _last_line(path: Path) -> str:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 4096))
        lines = file.read().decode(errors="replace").strip().splitlines()
    return lines[-1][:300] if lines else "it said nothing"
