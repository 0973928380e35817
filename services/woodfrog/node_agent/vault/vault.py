"""What the vault does: weights from files into pinned memory and onto the GPU, and away again. Blocks; any thread may call.

Which weights stay where is the agent's decision; the vault refuses what does not fit.
"""

import ctypes
import mmap
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from woodfrog.errors import (
    DataLoss,
    InvalidArgument,
    NotFound,
    WoodfrogError,
)
from woodfrog.node_agent.vault.arena import BLOCK_BYTES, Arena
from woodfrog.node_agent.vault.device import Device
from woodfrog.replica import layout
from woodfrog.replica.layout import Extent, Layout

PIECE_BYTES = 16 << 20  # one read, and one copy of what it brought
_STAGES = 2  # pieces of a reader on their way to the GPU, where the arena has no room


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes of one file that go to one place, within one block."""

    extent: Extent
    within: int  # offset in the extent
    size_bytes: int

    @property
    def offset(self) -> int:
        return self.extent.offset + self.within


@dataclass(slots=True)
class Held:
    """One model's weights."""

    layout: Layout
    folder: Path
    device: Any = None  # memory on the GPU, filled
    host: list[int] | None = None  # blocks of the arena, filled
    lock: threading.Lock = field(default_factory=threading.Lock)


class Vault:
    def __init__(self, device: Device, arena: Arena, reader_count: int) -> None:
        self._device = device
        self._arena = arena
        self._held: dict[str, Held] = {}
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(reader_count, thread_name_prefix="read")
        self._window = max(1, reader_count - 2)
        self._readers: SimpleQueue[_Reader] = SimpleQueue()
        if arena.size_bytes:
            device.pin(arena.address, arena.size_bytes)
        for _ in range(reader_count):
            self._readers.put(_Reader(device))
        self._stream = device.stream()

    def load(
        self, weights: str, folder: Path, host: bool, size_max: int | None = None
    ) -> tuple[int, int]:
        """Onto the GPU; with `host` also into the arena, on the way, if it has room. As `export` then.

        Does nothing where it is there already. Raises ResourceExhausted GPU_FULL, InvalidArgument for weights larger
        than `size_max`, DataLoss when a file is shorter than its header says, OSError.
        """
        with self._one(weights, folder) as held:
            size = _size(held, size_max)
            if held.device is None:
                device = self._device.create(size)
                try:
                    self._bring(held, device, host)
                except BaseException:
                    self._device.free(device)
                    raise
                held.device = device
            return self._device.export(held.device), size

    def fill(
        self, weights: str, folder: Path, fd: int, host: bool, size_max: int | None = None
    ) -> None:
        """Into memory on the GPU that another process exported as `fd`, which stays the caller's. Raises as `load`."""
        with self._one(weights, folder) as held:
            device = self._device.open(fd, _size(held, size_max))
            try:
                if held.device is not None:
                    self._device.clone(device, held.device, self._stream)
                    self._device.wait(self._stream)
                else:
                    self._bring(held, device, host)
            finally:
                self._device.free(device)

    def export(self, weights: str) -> tuple[int, int]:
        """A descriptor of what is on the GPU, the caller's to close, and its size. Raises NotFound."""
        held = self._held.get(weights)
        if held is None:
            raise _unknown(weights)
        with held.lock:
            if held.device is None:
                raise _unknown(weights)
            return self._device.export(held.device), held.layout.size_bytes

    def drop(self, weights: str, *, device: bool, host: bool) -> None:
        """From the GPU, from the arena, or both; also right when it is not there."""
        while (held := self._held.get(weights)) is not None:
            with held.lock:
                if self._held.get(weights) is not held:  # forgotten while this thread waited
                    continue
                if device and held.device is not None:
                    self._device.free(held.device)
                    held.device = None
                if host and held.host is not None:
                    with self._lock:
                        self._arena.give(held.host)
                    held.host = None
                self._forget_empty(weights, held)
                return

    def describe(self) -> dict[str, Any]:
        facts = self._device.facts()
        return {
            "uuid": facts.uuid,
            "name": facts.name,
            "driver": facts.driver,
            "memory_bytes": facts.memory_bytes,
            "free_bytes": facts.free_bytes,
            "arena_bytes": self._arena.size_bytes,
            "arena_free_bytes": self._arena.free_bytes,
            "weights": {
                weights: {
                    "size_bytes": held.layout.size_bytes,
                    "device": held.device is not None,
                    "host": held.host is not None,
                }
                for weights, held in list(self._held.items())
            },
        }

    @contextmanager
    def _one(self, weights: str, folder: Path) -> Iterator[Held]:
        """One model's weights, for this thread alone; forgotten afterwards when they are nowhere."""
        while True:
            held = self._held.get(weights)
            if held is None:
                made = Held(layout.of_folder(folder), folder)
                with self._lock:
                    held = self._held.setdefault(weights, made)
            with held.lock:
                if self._held.get(weights) is not held:  # forgotten while this thread waited
                    continue
                held.folder = folder  # the newest place to read them from
                try:
                    yield held
                finally:
                    self._forget_empty(weights, held)
                return

    def _forget_empty(self, weights: str, held: Held) -> None:
        if held.device is None and held.host is None:
            with self._lock:
                self._held.pop(weights, None)

    def _bring(self, held: Held, device: Any, host: bool) -> None:
        if held.host is not None:
            self._copy(held, device)
        else:
            self._read(held, device, keep=host)

    def _copy(self, held: Held, device: Any) -> None:
        assert held.host is not None
        size = held.layout.size_bytes
        try:
            for index, block in enumerate(held.host):
                offset = index * BLOCK_BYTES
                length = min(BLOCK_BYTES, size - offset)
                self._device.copy(
                    device, offset, self._arena.address + block * BLOCK_BYTES, length, self._stream
                )
        finally:  # also after an error: a copy under way must not outlive its memory
            self._device.wait(self._stream)

    def _read(self, held: Held, device: Any, keep: bool) -> None:
        """From the files to the GPU, through the arena if they are to stay there and it has room."""
        blocks: list[int] | None = None
        if keep:
            with self._lock:
                blocks = self._arena.take(held.layout.size_bytes)

        used: set[_Reader] = set()

        def bring(piece: Piece) -> None:
            reader = self._readers.get()
            used.add(reader)
            try:
                if blocks is None:
                    reader.through(piece, held.folder, device)
                else:
                    number = blocks[piece.offset // BLOCK_BYTES]
                    at = piece.offset % BLOCK_BYTES
                    place = self._arena.block(number)[at : at + piece.size_bytes]
                    address = self._arena.address + number * BLOCK_BYTES + at
                    reader.into(piece, held.folder, place, address, device)
            finally:
                self._readers.put(reader)

        try:
            errors = self._run(bring, pieces(held.layout))
            for reader in used:  # also after an error: a copy under way must not outlive its memory
                try:
                    reader.wait()
                except WoodfrogError as error:
                    errors.append(error)
            if errors:
                raise errors[0]
        except BaseException:
            if blocks is not None:
                with self._lock:
                    self._arena.give(blocks)
            raise
        held.host = blocks

    def _run(self, work: Callable[[Piece], None], todo: Iterator[Piece]) -> list[BaseException]:
        """All of it, unless one fails; what went wrong. Two readers stay for others: files may come slowly."""
        running: set[Future[None]] = set()
        errors: list[BaseException] = []
        for piece in todo:
            running.add(self._pool.submit(work, piece))
            if len(running) >= self._window:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                errors += (error for each in done if (error := each.exception()) is not None)
                if errors:
                    break
        done, _ = wait(running)
        return errors + [error for each in done if (error := each.exception()) is not None]


class _Reader:
    """One reader's stream, and its own pinned memory for what does not stay in the arena."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._stream = device.stream()
        self._staging: mmap.mmap | None = None
        self._address = 0
        self._turn = 0

    def into(
        self, piece: Piece, folder: Path, place: memoryview, address: int, device: Any
    ) -> None:
        _fill(place, folder, piece)
        self._device.copy(device, piece.offset, address, piece.size_bytes, self._stream)

    def through(self, piece: Piece, folder: Path, device: Any) -> None:
        if self._staging is None:
            memory = mmap.mmap(-1, _STAGES * PIECE_BYTES)
            self._address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
            self._device.pin(self._address, _STAGES * PIECE_BYTES)
            self._staging = memory
        self._turn = (self._turn + 1) % _STAGES
        if self._turn == 0:  # both were used since the last wait
            self.wait()
        at = self._turn * PIECE_BYTES
        place = memoryview(self._staging)[at : at + piece.size_bytes]
        _fill(place, folder, piece)
        self._device.copy(device, piece.offset, self._address + at, piece.size_bytes, self._stream)

    def wait(self) -> None:
        self._device.wait(self._stream)


def pieces(of: Layout) -> Iterator[Piece]:
    """All bytes of the weights, none of them across the border of two blocks."""
    for extent in of.extents:
        done = 0
        while done < extent.size_bytes:
            room = BLOCK_BYTES - (extent.offset + done) % BLOCK_BYTES
            size = min(PIECE_BYTES, room, extent.size_bytes - done)
            yield Piece(extent, done, size)
            done += size


def _fill(place: memoryview, folder: Path, piece: Piece) -> None:
    fd = os.open(folder / piece.extent.path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        done = 0
        while done < piece.size_bytes:
            count = os.preadv(fd, [place[done:]], piece.extent.file_offset + piece.within + done)
            if not count:
                raise DataLoss(
                    "WEIGHTS_CUT_OFF", f"{piece.extent.path} is shorter than its header says"
                )
            done += count
    finally:
        os.close(fd)


def _size(held: Held, size_max: int | None) -> int:
    size = held.layout.size_bytes
    if size_max is not None and size > size_max:
        raise InvalidArgument(
            "WEIGHTS_TOO_LARGE",
            f"the weights take {size} bytes on a GPU, {size_max} were promised; pack fewer small tensors",
        )
    return size


def _unknown(weights: str) -> NotFound:
    return NotFound("WEIGHTS_NOT_HERE", f"weights {weights} are not on this GPU; load them first")
