"""What a user asks of one model: its weights, its engine, and how long it may idle on a rung."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from types import NoneType
from typing import Any

from woodfrog.model import digest as digests
from woodfrog.model.tenant import check_name as check_tenant

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}(/[A-Za-z0-9][A-Za-z0-9._-]{0,95})?")
FORMAT = 1
ENGINES = ("transformers", "llamacpp")  # that come with woodfrog; a node may have others
_NAME_MAX = 160
SLOTS_MAX = 256
REPLICAS_MAX = 1024
MEMORY_BYTES_MIN, MEMORY_BYTES_MAX = 16 << 20, 1 << 50
GPU_BYTES_MIN = 64 << 20
PRIORITY_MIN, PRIORITY_MAX = 0.01, 100.0
DEADLINE_S_MAX = 86400.0
REST_S_MAX = 100 * 366 * 86400.0  # for ever, to a model; yet a number that clocks can add
_KEEP_S_MAX = 366 * 86400.0
_NUMBER_MAX = 1 << 62  # 64 bits of the wire hold it
_TYPES: dict[str, type | tuple[type, ...]] = {
    "name": str, "weights": str, "weights_bytes": int, "engine": str, "engine_args": Mapping, "slots": int,
    "replicas_max": int, "park_after_s": (int, float), "freeze_after_s": (int, float, NoneType), "memory_bytes": int,
    "snapshot": str, "create_time": (int, float), "gpu_bytes": int,
    "priority": (int, float), "keep_hot_s": (int, float), "replicas_min": int, "deadline_s": (int, float, NoneType),
    "tenant": str, "dedicated": bool,
}  # fmt: skip


def can_name(name: str) -> bool:
    """Whether a model may be called so."""
    return len(name) <= _NAME_MAX and _NAME.fullmatch(name) is not None


@dataclass(frozen=True, slots=True)
class ModelSpec:
    name: str  # what clients put in "model"; letters, digits, . _ - and at most one /
    weights: str  # digest of the weights manifest
    weights_bytes: int
    engine: str = "transformers"
    engine_args: Mapping[str, Any] = field(default_factory=dict)  # JSON values
    slots: int = 16  # requests that one replica runs at once
    replicas_max: int = 1
    park_after_s: float = 60.0  # idle time in `serving` before it parks
    #: Idle time since the last request before its process ends; None: as long as the scheduler's plan keeps it.
    freeze_after_s: float | None = None
    memory_bytes: int = 4 << 30  # limit of one replica's private memory
    snapshot: str = "eager"  # "eager": checkpoint at the first cold start; "never"
    create_time: float = 0.0  # seconds since the epoch
    gpu_bytes: int = 0  # private GPU memory of one serving replica: context, KV, workspaces; 0 runs it on the CPU
    #: What a second of waiting for it counts, against another model's, where room is short.
    priority: float = 1.0
    #: Idle time in which it stays `hot` (`parked` on a CPU), unless others could not be served at all otherwise.
    keep_hot_s: float = 0.0
    replicas_min: int = 0  # so many serve always, asked for or not
    #: How long a request waits for a replica, if its client does not say less; None: as long as the router has it.
    deadline_s: float | None = None
    tenant: str = ""  # who owns it; empty: nobody, all may ask it
    dedicated: bool = False  # it goes only to nodes that are its tenant's

    def encode(self) -> bytes:
        return json.dumps({"format": FORMAT, **asdict(self)}, sort_keys=True).encode()

    @staticmethod
    def decode(data: bytes) -> "ModelSpec":
        """Raises ValueError with one sentence."""
        try:
            value = dict(json.loads(data))
            if value.pop("format") != FORMAT:
                raise ValueError("model spec has another format than this version knows")
            spec = ModelSpec(**value)
        except (TypeError, KeyError, AttributeError, RecursionError) as error:
            raise ValueError(f"model spec is malformed: {error!r}") from None
        return spec.checked()

    def checked(self) -> "ModelSpec":
        """Itself. Raises ValueError with one sentence when a field is out of range."""
        for name, kind in _TYPES.items():
            value = getattr(self, name)
            if not isinstance(value, kind) or isinstance(value, bool) is not (kind is bool):
                raise ValueError(
                    f"model spec's {name} is {value!r:.80}, which is of the wrong type"
                )
            if isinstance(value, int | float) and not abs(value) <= _NUMBER_MAX:
                raise ValueError(
                    f"model spec's {name} is {value!r:.80}, it must be finite and fit into 64 bits"
                )
        if len(self.name) > _NAME_MAX:
            raise ValueError(f"model name is longer than {_NAME_MAX} characters; shorten it")
        if not can_name(self.name):
            raise ValueError(
                f"model name {self.name[:80]!r} is not letters, digits, '.', '_', '-' and at most one '/'"
            )
        digests.hex_of(self.weights)
        if self.snapshot not in ("eager", "never"):
            raise ValueError(f"snapshot is {self.snapshot!r}, it must be 'eager' or 'never'")
        if not 1 <= self.slots <= SLOTS_MAX:
            raise ValueError(f"slots is {self.slots}, it must be 1 to {SLOTS_MAX}")
        if not 1 <= self.replicas_max <= REPLICAS_MAX:
            raise ValueError(f"replicas_max is {self.replicas_max}, it must be 1 to {REPLICAS_MAX}")
        if not 0 <= self.replicas_min <= self.replicas_max:
            raise ValueError(
                f"replicas_min is {self.replicas_min}, it must be 0 to replicas_max, which is {self.replicas_max}"
            )
        self._check_tenant()
        self._check_memory()
        self._check_rest()
        return self

    def admitted(self, tenants: Sequence[str]) -> bool:
        """By a node that takes only models of these tenants; of any, where none is named."""
        return self.tenant in tenants if tenants else not self.dedicated

    def _check_tenant(self) -> None:
        if self.tenant:
            check_tenant(self.tenant)
        if self.dedicated and not self.tenant:
            raise ValueError("the model is to be dedicated, but has no tenant; name one")

    def _check_rest(self) -> None:
        longest_s = REST_S_MAX if self.freeze_after_s is None else self.freeze_after_s
        if not 0 <= longest_s <= REST_S_MAX:
            raise ValueError(
                f"freeze_after_s is {longest_s:g}, it must be 0 to {REST_S_MAX:g}; leave it out to let the plan say"
            )
        if not 0 <= self.park_after_s <= longest_s:
            raise ValueError(
                f"park_after_s is {self.park_after_s:g}, it must be at least 0 and at most freeze_after_s,"
                f" {longest_s:g} here"
            )
        if not 0 <= self.keep_hot_s <= (_KEEP_S_MAX if self.freeze_after_s is None else longest_s):
            raise ValueError(
                f"keep_hot_s is {self.keep_hot_s:g}, it must be at least 0, and at most freeze_after_s or a year:"
                " shorten it"
            )
        if self.deadline_s is not None and not 0 < self.deadline_s <= DEADLINE_S_MAX:
            raise ValueError(
                f"deadline_s is {self.deadline_s:g}, it must be above 0 and at most {DEADLINE_S_MAX:g}"
            )
        if not PRIORITY_MIN <= self.priority <= PRIORITY_MAX:
            raise ValueError(
                f"priority is {self.priority:g}, it must be {PRIORITY_MIN:g} to {PRIORITY_MAX:g}"
            )

    def _check_memory(self) -> None:
        if not MEMORY_BYTES_MIN <= self.memory_bytes <= MEMORY_BYTES_MAX:
            raise ValueError(
                f"memory is {self.memory_bytes} bytes, it must be 16 MiB to 1 PiB for one replica"
            )
        if self.weights_bytes < 0:
            raise ValueError(
                f"weights have {self.weights_bytes} bytes, they cannot have fewer than 0"
            )
        if self.gpu_bytes and not GPU_BYTES_MIN <= self.gpu_bytes <= MEMORY_BYTES_MAX:
            raise ValueError(
                f"GPU memory is {self.gpu_bytes} bytes, it must be 64 MiB to 1 PiB for one replica, "
                "or 0 to run it on the CPU"
            )
