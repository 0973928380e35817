"""A replica that has a process, and what the agent asks of it over its control socket."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from woodfrog.errors import DataLoss, Unavailable, WoodfrogError
from woodfrog.model.spec import ModelSpec
from woodfrog.node_agent.sandbox import FIRST_PID, Sandbox
from woodfrog.replica.client import ControlClient

ENTROPY_BYTES = 64
DRAIN_S = 0.5  # only an idle replica descends, so this is for requests that just came
_CALL_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class Canary:
    """What a healthy replica of a model computes of a fixed prompt, as digests."""

    full: str  # its first token, by all layers
    brief: str  # by the first layers only, in milliseconds


@dataclass(slots=True)
class Live:
    replica_id: str
    spec: ModelSpec
    sandbox: Sandbox
    through_mount: bool  #: it maps files of the FUSE mount, and is lost when that is
    pid: int = FIRST_PID  #: inside the sandbox
    gpu: str = ""  #: uuid; empty: it runs on the CPU
    vault: int = 0  #: which of that GPU's vaults its weights are from

    @property
    def socket_path(self) -> Path:
        return self.sandbox.folder / "engine.sock"

    async def control(
        self,
        verb: str,
        within_s: float = _CALL_TIMEOUT_S,
        fd: int | None = None,
        fds_wanted: int = 0,
        until_closed: bool = False,
        **fields: Any,
    ) -> dict[str, Any]:
        """As `ControlClient.call`; `fd` goes along. Raises woodfrog.errors classes."""
        client = ControlClient(self.sandbox.folder / "control.sock")
        fds = () if fd is None else (fd,)
        return await client.call(
            verb, within_s, fds=fds, fds_wanted=fds_wanted, until_closed=until_closed, **fields
        )

    async def answers(self, within_s: float) -> bool:
        """Whether it lives: a stopped or stuck process does not answer."""
        try:
            return bool(
                (await self.control("describe", within_s)).get("state", "failed") != "failed"
            )
        except WoodfrogError:
            return False

    async def thaw(self, weights: int | None = None) -> None:
        """`weights` is a descriptor of their memory, for a replica on a GPU."""
        await self.control("thaw", fd=weights, **self._thawing())

    async def thaw_and_prove(self, expected: Canary, weights: int | None = None) -> float:
        """As `thaw`; seconds of it that the brief canary took.

        Raises DataLoss when the replica computes something else than it did before its checkpoint.
        """
        reply = await self.control("thaw", fd=weights, **self._thawing(), canary=True)
        self._compare(_text(reply, "brief"), expected.brief)
        seconds = reply.get("brief_s")
        return float(seconds) if isinstance(seconds, int | float) else 0.0

    async def canary(self) -> Canary:
        reply = await self.control("canary")
        return Canary(_text(reply, "digest"), _text(reply, "brief"))

    async def prove(self, expected: Canary) -> None:
        """By all layers. Raises DataLoss as `thaw_and_prove`."""
        self._compare((await self.canary()).full, expected.full)

    def _thawing(self) -> dict[str, Any]:
        return {"replica_id": self.replica_id, "entropy": os.urandom(ENTROPY_BYTES).hex()}

    def _compare(self, found: str, expected: str) -> None:
        if found != expected:
            raise DataLoss(
                "CANARY_MISMATCH",
                f"the restored replica of {self.spec.name} computes something else than before its checkpoint",
                found=found,
                expected=expected,
            )

    async def quiesce(self) -> None:
        """Raises ResourceExhausted BUSY when requests are still running after DRAIN_S.

        No connection to it is left: CRIU can dump none that comes from outside of the sandbox.
        """
        await self.control("quiesce", until_closed=True, timeout_s=DRAIN_S)

    async def park(self, *, keep_weights: bool = False) -> None:
        """Raises as `quiesce`."""
        weights = "keep" if keep_weights else "drop"
        await self.control("park", until_closed=True, timeout_s=DRAIN_S, weights=weights)


def _text(reply: Mapping[str, Any], name: str) -> str:
    """Raises Unavailable: a replica that answers something else is not one of ours any more."""
    value = reply.get(name)
    if not isinstance(value, str):
        raise Unavailable("REPLICA_WRONG", f"the replica's answer has no {name}; end it")
    return value
