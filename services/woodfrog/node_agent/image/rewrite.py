"""Turns a CRIU image into a mapped image: the reading and writing around `areas.plan`.

The bytes are read twice: once to find the pages that are all zero, once to copy. Memory in use does not grow with the
image, but for one byte a page.
"""

import errno
import os
import posixpath
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

import numpy as np
import numpy.typing as npt

from woodfrog.errors import AlreadyExists, DataLoss, InvalidArgument
from woodfrog.node_agent.image import areas, dump
from woodfrog.node_agent.image.areas import BLOCK_BYTES, PAGE_BYTES, Piece, Run
from woodfrog.node_agent.image.dump import Process
from woodfrog.node_agent.image.wire import Kind, Message, read_records, write_records

PAGES_MODE = 0o444
#: Fits the second-level cache, so that looking at the bytes costs little more than reading them.
_SCAN_BYTES = 1 << 20
_NOT_FOR_RESTORE = ("*.log", "stats-*")

Bits = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class MappedArea:
    """A memory area that a restored process maps from the `pages` file."""

    pid: int  # in the sandbox's PID namespace
    address: int
    length: int
    file_offset: int


@dataclass(frozen=True, slots=True)
class Rewritten:
    image_bytes: int  # all files of the target directory
    pages_bytes: int  # apparent size of the `pages` file
    pages_data_bytes: int  # without its holes
    areas_moved: int
    pages_moved: int
    pages_left: int  # in the image, restored by copying
    zero_pages_dropped: int
    weights_bytes_in_image: int  # 0 as long as weights are a file mapping that nobody writes to
    areas: list[MappedArea]


def rewrite(
    source: Path,
    target: Path,
    pages: Path,
    pages_path_in_sandbox: str,
    *,
    weights_prefix: str = "/run/woodfrog/weights",
) -> Rewritten:
    """Reads a CRIU dump from `source`; makes the directory `target` and the sparse, read-only file `pages`.

    `pages_path_in_sandbox` is the absolute path at which every sandbox sees that file. Nothing is synced. On an error what was written so far is left to the caller to remove.
    """
    _refuse(source, target, pages, pages_path_in_sandbox)
    files = [Message.decode(record) for record in read_records(source / "files.img", Kind.FILES)]
    processes = dump.read_processes(source)
    shutil.copytree(source, target, ignore=_left_out(processes))
    first_id = 1 + max((file.integer(2) for file in files), default=0)
    moved: list[MappedArea] = []
    end = written = pages_moved = pages_left = 0
    with _new_file(pages) as pages_fd:
        for file_id, process in enumerate(processes, first_id):
            with _opened(source / process.pages_name) as source_fd:
                data = _data_runs(process.present, _pages_with_data(source_fd, process))
                plan = areas.plan(process.areas, process.present, data, end)
                written += _write_blocks(pages_fd, source_fd, plan.pieces)
                _write_kept(target / process.pages_name, source_fd, plan.kept)
            _write_pagemap(target, process, plan.kept)
            _write_mm(target, process, plan.moved, file_id)
            moved += (
                MappedArea(process.pid, process.areas[at].start, process.areas[at].length, offset)
                for at, offset in plan.moved.items()
            )
            end = -(-plan.end // BLOCK_BYTES) * BLOCK_BYTES  # no block belongs to two processes
            pages_moved += _count(plan.pieces)
            pages_left += _count(plan.kept)
        size = end + areas.GROWTH_ROOM_BYTES
        os.ftruncate(pages_fd, size)
    _write_files(target, files, processes, first_id, pages_path_in_sandbox, size)
    present = sum(_count(process.present) for process in processes)
    return Rewritten(
        image_bytes=sum(file.stat().st_size for file in target.iterdir()),
        pages_bytes=size,
        pages_data_bytes=written,
        areas_moved=len(moved),
        pages_moved=pages_moved,
        pages_left=pages_left,
        zero_pages_dropped=present - pages_moved - pages_left,
        weights_bytes_in_image=sum(_weights_bytes(p, files, weights_prefix) for p in processes),
        areas=moved,
    )


def _refuse(source: Path, target: Path, pages: Path, pages_path_in_sandbox: str) -> None:
    normal = posixpath.normpath(pages_path_in_sandbox)
    if not normal.startswith("/") or normal != pages_path_in_sandbox:
        raise InvalidArgument(
            "PAGES_PATH",
            f"{pages_path_in_sandbox!r} is not the absolute path of a file in the sandbox",
            path=pages_path_in_sandbox,
        )
    for made in (target, pages):
        if made.exists():
            raise AlreadyExists("IMAGE_EXISTS", f"{made} exists already; remove it", path=made)
    dump.check(source)


def _left_out(processes: Sequence[Process]) -> Callable[[str, list[str]], set[str]]:
    written = [f"{kind}-{p.pid}.img" for p in processes for kind in ("mm", "pagemap")]
    written += [process.pages_name for process in processes]
    return shutil.ignore_patterns("files.img", *_NOT_FOR_RESTORE, *written)


def _pages_with_data(source_fd: int, process: Process) -> Bits:
    """For each page of a pages image whether it has a bit set."""
    size = sum(run.length for run in process.present)
    result = np.zeros(size // PAGE_BYTES, dtype=np.bool_)
    block = bytearray(_SCAN_BYTES)
    view, numbers = memoryview(block), np.frombuffer(block, dtype=np.uint64)
    for offset in range(0, size, _SCAN_BYTES):
        length = min(_SCAN_BYTES, size - offset)
        _read(source_fd, view[:length], offset)
        words = numbers[: length // 8].reshape(-1, PAGE_BYTES // 8)
        first = offset // PAGE_BYTES
        result[first : first + len(words)] = np.bitwise_or.reduce(words, axis=1) != 0
    return result


def _data_runs(present: Iterable[Run], data: Bits) -> list[Run]:
    """The runs without their pages that are all zero."""
    result = []
    for run in present:
        first = run.position // PAGE_BYTES
        padded = np.zeros(run.length // PAGE_BYTES + 2, dtype=np.int8)
        padded[1:-1] = data[first : first + len(padded) - 2]
        edges = (np.flatnonzero(np.diff(padded)) * PAGE_BYTES).tolist()
        for begin, end in zip(edges[::2], edges[1::2], strict=True):
            result.append(
                replace(
                    run,
                    address=run.address + begin,
                    length=end - begin,
                    position=run.position + begin,
                )
            )
    return result


def _write_blocks(pages_fd: int, source_fd: int, pieces: Iterable[Piece]) -> int:
    """Writes every block that has data as a whole, zeros too, so that the page cache can hold it as one huge page.

    Returns how many bytes it wrote.
    """
    total = 0
    block = memoryview(bytearray(BLOCK_BYTES))
    zeros = bytes(BLOCK_BYTES)
    for index, group in groupby(_cut(pieces), key=lambda piece: piece.file_offset // BLOCK_BYTES):
        block[:] = zeros
        for piece in group:
            at = piece.file_offset % BLOCK_BYTES
            _read(source_fd, block[at : at + piece.length], piece.position)
        written = os.pwrite(pages_fd, block, index * BLOCK_BYTES)
        if written != BLOCK_BYTES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        total += written
    return total


def _cut(pieces: Iterable[Piece]) -> Iterator[Piece]:
    """The pieces, none of them across the border of two blocks."""
    for piece in pieces:
        done = 0
        while done < piece.length:
            offset = piece.file_offset + done
            length = min(piece.length - done, BLOCK_BYTES - offset % BLOCK_BYTES)
            yield Piece(offset, length, piece.position + done)
            done += length


def _write_kept(path: Path, source_fd: int, kept: Iterable[Run]) -> None:
    with path.open("wb") as file:
        for run in kept:
            done = 0
            while done < run.length:
                sent = os.sendfile(file.fileno(), source_fd, run.position + done, run.length - done)
                if not sent:
                    raise DataLoss("IMAGE_CUT_OFF", f"{path.name} became shorter while it was read")
                done += sent


def _write_pagemap(target: Path, process: Process, kept: Iterable[Run]) -> None:
    records = [process.pagemap[0]]
    for run in kept:
        count = run.length // PAGE_BYTES
        entry = {1: run.address, 2: count & 0xFFFFFFFF, 4: run.flags}
        records.append(Message.of({**entry, 5: count} if process.wide else {**entry}).encode())
    write_records(target / f"pagemap-{process.pid}.img", Kind.PAGEMAP, records)


def _write_mm(target: Path, process: Process, moved: dict[int, int], file_id: int) -> None:
    mm = Message(process.mm.fields)
    for index, file_offset in moved.items():
        at = process.area_fields[index]
        value = mm.fields[at].value
        assert isinstance(value, bytes)
        vma = Message.decode(value)
        vma.set(3, file_offset)
        vma.set(4, file_id)
        vma.set(6, vma.integer(6) & ~areas.MAP_ANONYMOUS)
        vma.set(7, vma.integer(7) & ~areas.ANON_PRIVATE | areas.FILE_PRIVATE)
        vma.set(10, os.O_RDONLY)
        mm.fields[at] = Message.of({14: vma.encode()}).fields[0]
    write_records(target / f"mm-{process.pid}.img", Kind.MM, [mm.encode()])


def _write_files(
    target: Path,
    files: Sequence[Message],
    processes: Sequence[Process],
    first_id: int,
    name: str,
    size: int,
) -> None:
    """The files of the image and, for each process, the `pages` file under an id of its own.

    CRIU takes areas of one file id in a parent and its child for memory that they share since a fork.
    """
    exe_id = processes[0].mm.integer(12)
    exe = next((dump.regular(file) for file in files if file.integer(2) == exe_id), None)
    new = []
    for file_id, _ in enumerate(processes, first_id):
        entry: dict[int, int | bytes] = {
            1: file_id,
            2: os.O_RDONLY,
            3: 0,
            5: Message.of(dict.fromkeys(range(1, 6), 0)).encode(),  # owner for signals: none
            6: name.encode(),
        }
        if exe and exe.has(7):
            entry[7] = exe.integer(7)  # the mount, where CRIU tells mounts apart
        entry |= {8: size, 10: 0o100000 | PAGES_MODE}
        new.append(Message.of({1: dump.REGULAR_FILE, 2: file_id, 3: Message.of(entry).encode()}))
    records = [file.encode() for file in (*files, *new)]
    write_records(target / "files.img", Kind.FILES, records)


def _weights_bytes(process: Process, files: Sequence[Message], prefix: str) -> int:
    """Bytes of the image that belong to private mappings of files under `prefix`."""
    under = prefix.rstrip("/").encode() + b"/"
    ids = set()
    for file in files:
        entry = dump.regular(file)
        if entry and entry.data(6).startswith(under):
            ids.add(entry.integer(1))
    result = 0
    for index, runs in enumerate(areas.split(process.present, process.areas)):
        value = process.mm.fields[process.area_fields[index]].value
        assert isinstance(value, bytes)
        private = process.areas[index].status & areas.FILE_PRIVATE
        if runs and private and Message.decode(value).integer(4) in ids:
            result += sum(run.length for run in runs)
    return result


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY)
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def _new_file(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        yield fd
        os.fchmod(fd, PAGES_MODE)
    finally:
        os.close(fd)


def _read(fd: int, into: memoryview, offset: int) -> None:
    """Fills `into`; the file was measured before, so its end cannot come."""
    done = 0
    while done < len(into):
        count = os.preadv(fd, [into[done:]], offset + done)
        if not count:
            raise DataLoss("IMAGE_CUT_OFF", "a CRIU image became shorter while it was read")
        done += count


def _count(parts: Iterable[Run | Piece]) -> int:
    return sum(part.length for part in parts) // PAGE_BYTES
