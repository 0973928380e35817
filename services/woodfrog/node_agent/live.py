"""A replica that has a process, and what the agent asks of it over its control socket."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from woodfrog.model.spec import ModelSpec
from woodfrog.node_agent.sandbox import FIRST_PID, Sandbox
from woodfrog.replica.client import ControlClient

ENTROPY_BYTES = 64
DRAIN_S = 0.5  # only an idle replica descends, so this is for requests that just came
_CALL_TIMEOUT_S = 30.0


Populate = tuple[int, int, str]  # address, length, "read" or "write"


@dataclass(slots=True)
class Live:
    replica_id: str
    spec: ModelSpec
    sandbox: Sandbox
    through_mount: bool  #: it maps files of the FUSE mount, and is lost when that is
    snapshot: str | None = (
        None  #: manifest that it was restored from; such a replica is never checkpointed
    )
    pid: int = FIRST_PID  #: inside the sandbox

    @property
    def socket_path(self) -> Path:
        return self.sandbox.folder / "engine.sock"

    async def control(
        self, verb: str, within_s: float = _CALL_TIMEOUT_S, **fields: Any
    ) -> dict[str, Any]:
        """Raises woodfrog.errors classes."""
        client = ControlClient(self.sandbox.folder / "control.sock")
        return await client.call(verb, within_s, **fields)

    async def thaw(self, populate: list[Populate] | None = None) -> None:
        await self.control(
            "thaw",
            replica_id=self.replica_id,
            entropy=os.urandom(ENTROPY_BYTES).hex(),
            gate="open",
            populate=populate or [],
        )

    async def canary(self) -> str:
        """Digest of the first tokens of a fixed prompt."""
        return str((await self.control("canary"))["digest"])

    async def quiesce(self) -> None:
        """Raises ResourceExhausted BUSY when requests are still running after DRAIN_S."""
        await self.control("quiesce", timeout_s=DRAIN_S)

    async def park(self) -> None:
        """Raises as `quiesce`."""
        await self.control("park", timeout_s=DRAIN_S)
