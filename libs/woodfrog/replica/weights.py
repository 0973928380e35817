"""Weights in memory that another process owns: mapped at one address, and away while the replica is parked or dumped."""

import os
import threading
from typing import Any

from woodfrog.errors import DeadlineExceeded, InvalidArgument
from woodfrog.replica.device import DeviceMemory
from woodfrog.replica.layout import DTYPE_BITS, Layout, Tensor

_TORCH_NAMES = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu", "I16": "int16", "U16": "uint16", "F16": "float16", "BF16": "bfloat16",
    "I32": "int32", "U32": "uint32", "F32": "float32", "I64": "int64", "U64": "uint64", "F64": "float64",
    "C64": "complex64",
}  # fmt: skip
assert _TORCH_NAMES.keys() == DTYPE_BITS.keys()
PRIVATE_BYTES_MAX = (
    1 << 20
)  # a larger tensor that a module keeps outside the shared memory is worth a word


class WeightMemory:
    """One block, shared with all replicas of the model. Made by the thread that loads; `give` may come before."""

    def __init__(self) -> None:
        self.attached = False
        self._given: int | None = None
        self._arrived = threading.Event()
        self._lock = threading.Lock()  # loading and the control socket are two threads
        self._memory: DeviceMemory | None = None
        self._layout: Layout | None = None
        self._address = 0

    def give(self, fd: int) -> None:
        """A descriptor of the memory, which stays the caller's. Maps it if `open` was called before."""
        with self._lock:
            if self._memory is not None:
                self._attach(fd)
                return
            if self._given is not None:
                os.close(self._given)
            self._given = os.dup(fd)
        self._arrived.set()

    def open(self, memory: DeviceMemory, layout: Layout, within_s: float) -> None:
        """Reserves the block's addresses, waits for its memory, and maps it. Raises DeadlineExceeded."""
        self._address = memory.reserve(layout.size_bytes)
        self._layout = layout
        if not self._arrived.wait(within_s):
            raise DeadlineExceeded(
                "WEIGHTS_LATE", f"nobody gave the weights' memory within {within_s:.0f} s"
            )
        with self._lock:
            assert self._given is not None
            fd, self._given = self._given, None
            self._memory = memory
            try:
                self._attach(fd)
            finally:
                os.close(fd)

    def lend(self) -> int:
        """Memory of this process instead, for another one to fill: its descriptor, the caller's to close.

        For a process that CUDA lets map no other's. Nothing is attached.
        """
        with self._lock:
            assert self._memory is not None
            assert self._layout is not None
            assert not self.attached
            fd = self._memory.lend(self._address, self._layout.size_bytes)
            self.attached = True
            return fd

    def detach(self) -> None:
        """Leaves the addresses without memory; also right when it is so."""
        if self.attached:
            assert self._memory is not None
            self._memory.drop(self._address)
            self.attached = False

    def tensors(self, prefix: str = "") -> dict[str, Any]:
        """Torch tensors over the block by name, those of one folder with its `prefix` ("unet/"), which is left out."""
        assert self._layout is not None
        return {
            name.removeprefix(prefix): self._tensor(tensor)
            for name, tensor in self._layout.tensors.items()
            if name.startswith(prefix)
        }

    def holds(self, tensor: Any) -> bool:
        assert self._layout is not None
        offset: int = tensor.data_ptr() - self._address
        return 0 <= offset < self._layout.size_bytes

    def _attach(self, fd: int) -> None:
        assert self._memory is not None
        assert self._layout is not None
        if not self.attached:
            self._memory.share(self._address, self._layout.size_bytes, fd)
            self.attached = True

    def _tensor(self, tensor: Tensor) -> Any:
        import torch

        assert self._memory is not None
        dtype = getattr(torch, _TORCH_NAMES[tensor.dtype])
        if not tensor.size_bytes:
            return torch.empty(tensor.shape, dtype=dtype, device=self._memory.torch_device)
        flat = self._memory.view(self._address + tensor.offset, tensor.size_bytes)
        return flat.view(dtype).view(tensor.shape)


def stand_ins(tensors: dict[str, Any]) -> dict[str, Any]:
    """Tensors of the same shapes and dtypes that take no memory, for a loader that wants a state dict.

    Each has a place in memory of its own, by which `take_out` knows it again, whatever the loader called it.
    """
    import torch

    return {
        name: torch.empty((), dtype=tensor.dtype).expand(tensor.shape)
        for name, tensor in tensors.items()
    }


def take_out(module: Any, tensors: dict[str, Any], placed: dict[str, Any] | None = None) -> None:
    """Puts `tensors` in the place of the parameters and buffers of the same name, in a module of any kind.

    With `placed`, the stand-ins that a loader put into the module, a tensor also goes where its stand-in is. Parameters
    that are one object under several names stay one. Raises InvalidArgument WEIGHTS_MISSING when a
    parameter or a persistent buffer has no tensor, or one of another shape or dtype.
    """
    import torch

    found_at = {stand_in.data_ptr(): name for name, stand_in in (placed or {}).items()}
    places: dict[int, list[str]] = {}  # names of one object
    objects: dict[int, Any] = {}
    named = [*module.named_parameters(remove_duplicate=False)]
    persistent = module.state_dict(keep_vars=True)
    named += [(n, b) for n, b in module.named_buffers(remove_duplicate=False) if n in persistent]
    for name, value in named:
        places.setdefault(id(value), []).append(name)
        objects[id(value)] = value
    for key, names in places.items():
        old = objects[key]
        found = found_at.get(old.data_ptr()) if placed else None
        found = found or next((name for name in names if name in tensors), None)
        if found is None:
            raise InvalidArgument("WEIGHTS_MISSING", f"the weights lack tensor {names[0]}")
        new = tensors[found]
        if new.shape != old.shape or new.dtype != old.dtype:
            raise InvalidArgument(
                "WEIGHTS_MISSING",
                f"tensor {found} is {new.dtype} {tuple(new.shape)}, the model has {old.dtype}"
                f" {tuple(old.shape)}; convert the weights when the model is added",
            )
        if isinstance(old, torch.nn.Parameter):
            new = torch.nn.Parameter(new, requires_grad=False)
        for name in names:
            owner, _, own_name = name.rpartition(".")
            holder = module.get_submodule(owner)
            registry = (
                holder._parameters if isinstance(old, torch.nn.Parameter) else holder._buffers
            )
            registry[own_name] = new


def private_tensors(module: Any, weights: WeightMemory) -> dict[str, int]:
    """Bytes of each large parameter or buffer that is not in the shared memory, so that a snapshot would hold it."""
    named = [*module.named_parameters(), *module.named_buffers()]
    return {
        name: tensor.nbytes
        for name, tensor in named
        if tensor.nbytes > PRIVATE_BYTES_MAX and not weights.holds(tensor)
    }
