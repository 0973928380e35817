"""What each control verb does, for any engine."""

import asyncio
import gc
import hashlib
import logging
import time
from typing import Any, Protocol

from woodfrog.errors import FailedPrecondition, Internal, InvalidArgument, ResourceExhausted
from woodfrog.replica import cpu, entropy, memory, stdio
from woodfrog.replica.control import Fields, Verb
from woodfrog.replica.logs import LogRing
from woodfrog.replica.state import Event, State, after, allowed
from woodfrog.replica.weights import WeightMemory

log = logging.getLogger(__name__)

QUIESCE_TIMEOUT_S = 30.0
LOG_LINES = 200


class Engine(Protocol):
    """What an engine does; the replica decides when."""

    def describe(self) -> dict[str, Any]:
        """active, waiting, slots, model, load_stages, versions, kv_bytes; answers in every state."""

    def failure(self) -> str | None:
        """Why it can never serve again, if so."""

    async def drain(self) -> None:
        """Return when no request runs or waits and no client is connected. Admission is closed meanwhile."""

    def clear(self) -> None:
        """Forget what requests left behind: their memory reads as zero."""

    def release(self) -> None:
        """Give back the memory that `clear` emptied."""

    def regain(self) -> None:
        """Undo `release`; also right when nothing was released."""

    async def canary(self) -> list[int]:
        """The same few tokens in every healthy replica of the model, also while requests run."""

    def brief_canary(self) -> list[int]:
        """Numbers that are the same in every healthy replica of the model, within milliseconds."""


class Replica:
    """One engine's place in the contract: its state, its name, and the gate before its answers."""

    def __init__(self, engine: Engine, ring: LogRing, weights: WeightMemory | None = None) -> None:
        """`weights` when they lie in memory of another process."""
        self.replica_id = ""
        self.gate = asyncio.Event()  # no byte of an answer leaves while it is closed
        self.gate.set()
        self._engine = engine
        self._ring = ring
        self._weights = weights
        self._state = State.LOADING
        self.verbs: dict[str, Verb] = {
            "describe": self._describe,
            "attach": self._attach,
            "lend": self._lend,
            "quiesce": self._quiesce,
            "park": self._park,
            "thaw": self._thaw,
            "open": self._open,
            "canary": self._canary,
            "draw": self._draw,
            "logs": self._logs,
        }

    @property
    def state(self) -> State:
        if self._state is not State.FAILED and (failure := self._engine.failure()):
            log.error("engine failed", extra={"failure": failure})
            self._state = after(self._state, Event.BROKEN)
        return self._state

    def loaded(self) -> None:
        self._move(Event.LOADED)

    async def _describe(self, fields: Fields) -> dict[str, Any]:
        return {
            **self._engine.describe(),
            "state": self.state.value,
            "replica_id": self.replica_id,
            "gate": "open" if self.gate.is_set() else "closed",
        }

    async def _attach(self, fields: Fields) -> dict[str, Any]:
        """The weights' memory, for a replica that loads."""
        if self.state is not State.LOADING:
            raise FailedPrecondition(
                "WRONG_STATE",
                f"the replica is {self.state.value}; weights come with thaw now",
                state=self.state.value,
            )
        self._take_weights(fields)
        return {}

    async def _lend(self, fields: Fields) -> dict[str, Any]:
        """Memory for the weights of a parked replica, to be filled before it is thawed."""
        if self.state is not State.PARKED or self._weights is None or self._weights.attached:
            raise FailedPrecondition(
                "WRONG_STATE",
                f"the replica is {self.state.value}; only a parked one that is without its weights lends memory for them",
                state=self.state.value,
            )
        return {"fds": [self._weights.lend()]}

    async def _quiesce(self, fields: Fields) -> dict[str, Any]:
        timeout_s = _seconds(fields)
        if self.state is State.QUIESCED:
            return {}
        self._check(Event.QUIESCE_REQUESTED)
        self._move(Event.QUIESCE_REQUESTED)
        try:
            async with asyncio.timeout(timeout_s):
                await self._engine.drain()
        except TimeoutError:
            self._move(Event.DRAIN_ABANDONED)
            raise ResourceExhausted(
                "BUSY",
                f"the replica still had requests after {timeout_s:g} s and serves on; try again later",
                retry_after_s=1.0,
            ) from None
        except asyncio.CancelledError:
            self._move(Event.DRAIN_ABANDONED)
            raise
        self._check(Event.DRAINED)
        self._engine.clear()
        stdio.close_files()
        gc.collect()
        memory.trim_heap()
        self._move(Event.DRAINED)
        return {}

    async def _park(self, fields: Fields) -> dict[str, Any]:
        """With `weights` "keep" they stay mapped; without, a replica that kept them lets go of them."""
        if self.state is not State.PARKED:
            await self._quiesce(fields)
            self._engine.release()
            self._move(Event.MEMORY_RELEASED)
        if self._weights and fields.get("weights") != "keep":
            self._weights.detach()
        return {}

    async def _thaw(self, fields: Fields) -> dict[str, Any]:
        replica_id, gate = fields.get("replica_id"), fields.get("gate", "open")
        if not isinstance(replica_id, str) or not replica_id:
            raise InvalidArgument("BAD_FIELD", "thaw needs replica_id, a text that is not empty")
        if gate not in ("open", "closed"):
            raise InvalidArgument("BAD_FIELD", 'thaw takes gate "open" or "closed"')
        fresh = _entropy(fields.get("entropy"))
        if self.state is State.SERVING and replica_id == self.replica_id:
            return {}  # the answer to an earlier thaw was lost
        self._check(Event.THAWED)
        if self._weights and not self._weights.attached:
            self._take_weights(fields)
        cpu.permit_tiles()
        self._engine.regain()
        entropy.reseed(fresh)
        self.replica_id = replica_id
        if gate == "closed":
            self.gate.clear()
        else:
            self.gate.set()
        self._move(Event.THAWED)
        if not fields.get("canary"):
            return {}
        began = time.perf_counter()
        brief = _digest(self._engine.brief_canary())
        return {"brief": brief, "brief_s": time.perf_counter() - began}

    async def _open(self, fields: Fields) -> dict[str, Any]:
        self._serving("open")
        self.gate.set()
        return {}

    async def _canary(self, fields: Fields) -> dict[str, Any]:
        self._serving("canary")
        tokens = await self._engine.canary()
        brief = _digest(self._engine.brief_canary())
        return {"tokens": tokens, "digest": _digest(tokens), "brief": brief}

    async def _draw(self, fields: Fields) -> dict[str, Any]:
        return entropy.draw()

    async def _logs(self, fields: Fields) -> dict[str, Any]:
        return {"lines": self._ring.lines(LOG_LINES)}

    def _take_weights(self, fields: Fields) -> None:
        if self._weights is None or not fields["fds"]:
            raise InvalidArgument(
                "BAD_FIELD", "a replica whose weights are outside needs one descriptor of them"
            )
        self._weights.give(fields["fds"][0])

    def _move(self, event: Event) -> None:
        before, self._state = self._state, after(self._state, event)
        log.info("replica moved", extra={"before": before.value, "after": self._state.value})

    def _check(self, event: Event) -> None:
        state = self.state
        if state is State.FAILED:
            raise Internal("ENGINE_FAILED", f"the engine died: {self._engine.failure()}; end it")
        if not allowed(state, event):
            raise FailedPrecondition(
                "WRONG_STATE",
                f"the replica is {state.value} and cannot {event.value} now",
                state=state.value,
            )

    def _serving(self, verb: str) -> None:
        if self.state is not State.SERVING:
            raise FailedPrecondition(
                "WRONG_STATE",
                f"the replica is {self.state.value} and cannot do {verb}; thaw it first",
                state=self.state.value,
            )


def _digest(tokens: list[int]) -> str:
    return "sha256:" + hashlib.sha256(",".join(map(str, tokens)).encode()).hexdigest()


def _seconds(fields: Fields) -> float:
    value = fields.get("timeout_s", QUIESCE_TIMEOUT_S)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 3600:
        raise InvalidArgument("BAD_FIELD", "timeout_s is a number of seconds from 0 to 3600")
    return float(value)


def _entropy(value: Any) -> bytes:
    try:
        fresh = bytes.fromhex(value) if isinstance(value, str) else b""
    except ValueError:
        fresh = b""
    if len(fresh) != 64:
        raise InvalidArgument("BAD_FIELD", "thaw needs entropy, 64 bytes in hexadecimal")
    return fresh
