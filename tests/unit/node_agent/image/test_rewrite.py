"""Synthetic dumps, rewritten and then restored page by page by the simplest code that can do it."""

import os
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from woodfrog.errors import (
    AlreadyExists,
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    WoodfrogError,
)
from woodfrog.node_agent.image import Rewritten, rewrite
from woodfrog.node_agent.image.wire import Kind, Message, read_records, write_records

PAGE = 4096
SANDBOX_PATH = "/run/woodfrog/snapshot/pages"
REGULAR, FILE, ANON = 1, 1 << 6, 1 << 9
EXE, LIB, WEIGHTS = 1, 2, 3  # ids in files.img
HEAP_AT, LIB_AT, BIG_AT, STACK_AT = 0x10000000, 0x20000000, 0x30007000, 0x7FFF0000
PAGES_MM = 600

Memory = dict[int, bytes]  # address of a page → its bytes


@dataclass
class Dump:
    """One dump under construction."""

    folder: Path
    memory: dict[int, Memory] = field(default_factory=dict)

    def add(
        self, pid: int, pages_id: int, seed: int, *, entry: dict[int, int] | None = None
    ) -> None:
        """A process with a heap, a library's relocated data, a large area and a stack; a third of it zeros."""
        rng = random.Random(seed)
        vmas = [
            vma(HEAP_AT, 200, status=REGULAR | ANON | 1 << 5),
            vma(LIB_AT, 40, status=REGULAR | FILE, flags=2, file_id=LIB, prot=1),
            vma(LIB_AT + 40 * PAGE, 8, status=REGULAR | FILE, flags=2, file_id=WEIGHTS),
            vma(BIG_AT, PAGES_MM),
            vma(STACK_AT, 30, flags=0x122),
        ]
        present = [
            *range(HEAP_AT, HEAP_AT + 150 * PAGE, PAGE),
            *range(LIB_AT, LIB_AT + 42 * PAGE, PAGE),
            *(BIG_AT + PAGE * n for n in sorted(rng.sample(range(PAGES_MM), 300))),
            *range(STACK_AT + 10 * PAGE, STACK_AT + 30 * PAGE, PAGE),
        ]
        memory = {
            at: rng.choice([bytes(PAGE), rng.randbytes(PAGE), rng.randbytes(PAGE)])
            for at in present
        }
        entries: list[list[int]] = []
        for at in present:  # an entry may go across the border of two areas
            if entries and entries[-1][0] + entries[-1][1] * PAGE == at and rng.random() < 0.95:
                entries[-1][1] += 1
            else:
                entries.append([at, 1])
        records = [Message.of({1: at, 2: n, 4: 4, **(entry or {})}).encode() for at, n in entries]
        head = Message.of({1: pages_id}).encode()
        write_records(self.folder / f"pagemap-{pid}.img", Kind.PAGEMAP, [head, *records])
        (self.folder / f"pages-{pages_id}.img").write_bytes(b"".join(memory[at] for at in present))
        mm = Message.of({1: 0x400000, 12: EXE})
        mm.fields += Message.of({13: 7}).fields + Message.of({13: 8}).fields
        mm.fields += [Message.of({14: one}).fields[0] for one in vmas]
        mm.fields += Message.of({15: 1, 99: b"later"}).fields
        write_records(self.folder / f"mm-{pid}.img", Kind.MM, [mm.encode()])
        self.memory[pid] = memory


def vma(start: int, pages: int, **changes: int) -> bytes:
    values = {"prot": 3, "flags": 0x22, "status": REGULAR | ANON, "file_id": 0, **changes}
    return Message.of(
        {
            1: start,
            2: start + pages * PAGE,
            3: 0,
            4: values["file_id"],
            5: values["prot"],
            6: values["flags"],
            7: values["status"],
            8: 1,
        }
    ).encode()


@pytest.fixture
def dump(tmp_path: Path) -> Dump:
    folder = tmp_path / "dump"
    folder.mkdir()
    write_records(folder / "inventory.img", Kind.INVENTORY, [Message.of({1: 2}).encode()])
    names = {
        EXE: b"/usr/bin/python3",
        LIB: b"/lib/libtorch.so",
        WEIGHTS: b"/run/woodfrog/weights/a/m.safetensors",
    }
    files = [
        Message.of({1: 1, 2: key, 3: Message.of({1: key, 2: 0, 3: 0, 6: name, 7: 11}).encode()})
        for key, name in names.items()
    ]
    files.append(Message.of({1: 5, 2: 9, 16: b"\x08\x01"}))  # a unix socket with the highest id
    write_records(folder / "files.img", Kind.FILES, [file.encode() for file in files])
    for name, data in {"core-1.img": b"core", "dump.log": b"log", "stats-dump": b"s"}.items():
        (folder / name).write_bytes(data)
    head = Message.of({1: 7}).encode()
    write_records(folder / "pagemap-shmem-5.img", Kind.PAGEMAP, [head])
    (folder / "pages-7.img").write_bytes(b"shared memory")
    return Dump(folder)


def do(dump: Dump) -> Rewritten:
    parent = dump.folder.parent
    target, pages = parent / "new", parent / "new.pages"
    return rewrite(dump.folder, target, pages, SANDBOX_PATH)


def restored(image: Path, pages: Path, pid: int) -> Memory:
    """What a restore of the image would show on every page that it maps from `pages` or copies."""
    files = {}
    for record in read_records(image / "files.img", Kind.FILES):
        entry = Message.decode(record)
        if entry.integer(1) == 1:
            files[entry.integer(2)] = Message.decode(entry.data(3))
    result: Memory = {}
    with pages.open("rb") as file:
        data = file.read(16 << 20)  # all but the hole at the end
    for part in Message.decode(read_records(image / f"mm-{pid}.img", Kind.MM)[0]).fields:
        if part.number != 14:
            continue
        assert isinstance(part.value, bytes)
        one = Message.decode(part.value)
        start, end, offset = one.integer(1), one.integer(2), one.integer(3)
        if one.integer(7) & FILE and files[one.integer(4)].data(6) == SANDBOX_PATH.encode():
            assert not one.integer(6) & 0x20
            for at in range(start, end, PAGE):
                result[at] = data[offset + at - start : offset + at - start + PAGE]
        elif one.integer(7) & ANON:
            result |= {at: bytes(PAGE) for at in range(start, end, PAGE)}
    head, *entries = read_records(image / f"pagemap-{pid}.img", Kind.PAGEMAP)
    content = (image / f"pages-{Message.decode(head).integer(1)}.img").read_bytes()
    for record in entries:
        entry = Message.decode(record)
        for page in range(entry.integer(2)):
            result[entry.integer(1) + page * PAGE], content = content[:PAGE], content[PAGE:]
    assert not content
    return result


def test_memory_of_every_process_is_the_same(dump: Dump) -> None:
    dump.add(1000, 1, seed=1)
    dump.add(1002, 2, seed=2)
    result = do(dump)
    parent = dump.folder.parent
    for pid, memory in dump.memory.items():
        after = restored(parent / "new", parent / "new.pages", pid)
        assert memory.items() <= after.items()
        assert not any(any(page) for at, page in after.items() if at not in memory)
    all_pages = [page for memory in dump.memory.values() for page in memory.values()]
    assert result.pages_moved + result.pages_left + result.zero_pages_dropped == len(all_pages)
    assert result.zero_pages_dropped > len(all_pages) // 4
    assert result.areas_moved == len(result.areas) == 6  # heap, library, large area
    assert result.weights_bytes_in_image == 2 * 2 * PAGE  # two pages a process, next to the library


def test_areas_tell_where_the_file_has_them(dump: Dump) -> None:
    dump.add(1000, 1, seed=3)
    result = do(dump)
    pages = (dump.folder.parent / "new.pages").open("rb")
    assert {(area.pid, area.address) for area in result.areas} == {
        (1000, HEAP_AT),
        (1000, LIB_AT),
        (1000, BIG_AT),
    }
    for area in result.areas:
        for at in range(area.address, area.address + area.length, PAGE):
            pages.seek(area.file_offset + at - area.address)
            assert pages.read(PAGE) == dump.memory[1000].get(at, bytes(PAGE))
    pages.close()
    large = next(area for area in result.areas if area.address == BIG_AT)
    assert (large.address - large.file_offset) % (2 << 20) == 0


def test_the_files(dump: Dump) -> None:
    dump.add(1000, 1, seed=4)
    dump.add(1001, 2, seed=5)
    result = do(dump)
    new, pages = dump.folder.parent / "new", dump.folder.parent / "new.pages"
    names = {"inventory.img", "files.img", "core-1.img", "pagemap-shmem-5.img", "pages-7.img"}
    names |= {f"{kind}-{pid}.img" for kind in ("mm", "pagemap") for pid in (1000, 1001)}
    assert {file.name for file in new.iterdir()} == names | {"pages-1.img", "pages-2.img"}
    assert (new / "pages-7.img").read_bytes() == b"shared memory"
    assert result.image_bytes == sum(file.stat().st_size for file in new.iterdir())
    status = pages.stat()
    assert status.st_mode & 0o7777 == 0o444
    assert status.st_size == result.pages_bytes
    assert status.st_blocks * 512 == result.pages_data_bytes < result.pages_bytes
    end = max(area.file_offset + area.length for area in result.areas)
    assert status.st_size - end >= 256 << 20  # room for an area that mremap() grows


def test_each_process_has_the_pages_file_under_an_id_of_its_own(dump: Dump) -> None:
    """The trap: with one id CRIU takes equal areas of parent and child for one that a fork shares."""
    dump.add(1000, 1, seed=6)
    dump.add(1001, 2, seed=6)
    result = do(dump)
    records = read_records(dump.folder.parent / "new" / "files.img", Kind.FILES)
    assert records[:4] == read_records(dump.folder / "files.img", Kind.FILES)
    new = [Message.decode(Message.decode(record).data(3)) for record in records[4:]]
    assert [entry.integer(1) for entry in new] == [10, 11]
    for entry in new:
        assert entry.data(6) == SANDBOX_PATH.encode()
        assert (entry.integer(7), entry.integer(8), entry.integer(10)) == (
            11,
            result.pages_bytes,
            0o100444,
        )
    used = []
    for pid in (1000, 1001):
        mm = Message.decode(read_records(dump.folder.parent / "new" / f"mm-{pid}.img", Kind.MM)[0])
        assert mm.data(99) == b"later"
        assert [one.value for one in mm.fields if one.number == 13] == [7, 8]
        vmas = [
            Message.decode(one.value)
            for one in mm.fields
            if isinstance(one.value, bytes) and one.number == 14
        ]
        used.append({one.integer(4) for one in vmas if one.integer(7) & FILE} - {WEIGHTS})
    assert used == [{10}, {11}]


def test_an_image_with_64_bit_page_counts_keeps_them(dump: Dump) -> None:
    dump.add(1000, 1, seed=8)
    path = dump.folder / "pagemap-1000.img"
    head, *entries = read_records(path, Kind.PAGEMAP)
    wide = [Message.decode(entry) for entry in entries]
    for entry in wide:
        entry.set(5, entry.integer(2))
    write_records(path, Kind.PAGEMAP, [head, *(entry.encode() for entry in wide)])
    do(dump)
    new = read_records(dump.folder.parent / "new" / path.name, Kind.PAGEMAP)[1:]
    assert all(
        Message.decode(entry).integer(5) == Message.decode(entry).integer(2) for entry in new
    )


def cut_off(folder: Path) -> None:
    os.truncate(folder / "pages-1.img", 5 * PAGE)


def made_incremental(folder: Path) -> None:
    (folder / "parent").symlink_to("../before")


def of_another_version(folder: Path) -> None:
    write_records(folder / "inventory.img", Kind.INVENTORY, [Message.of({1: 3}).encode()])


def with_mounts(folder: Path) -> None:
    (folder / "mountpoints-12.img").write_bytes(b"")


def without_files(folder: Path) -> None:
    (folder / "files.img").unlink()


def of_another_kind(folder: Path) -> None:
    shutil.copy(folder / "mm-1000.img", folder / "pagemap-1000.img")


def with_shared_pages(folder: Path) -> None:
    write_records(folder / "pagemap-shmem-5.img", Kind.PAGEMAP, [Message.of({1: 1}).encode()])


def without_processes(folder: Path) -> None:
    (folder / "mm-1000.img").unlink()


@pytest.mark.parametrize(
    ("spoil", "error", "reason"),
    [
        (cut_off, DataLoss, "IMAGE_CUT_OFF"),
        (made_incremental, InvalidArgument, "IMAGE_HAS_PARENT"),
        (of_another_version, FailedPrecondition, "IMAGE_VERSION"),
        (with_mounts, FailedPrecondition, "IMAGE_HAS_MOUNTS"),
        (without_files, DataLoss, "IMAGE_INCOMPLETE"),
        (of_another_kind, DataLoss, "IMAGE_MAGIC"),
        (with_shared_pages, FailedPrecondition, "IMAGE_PAGES_SHARED"),
        (without_processes, DataLoss, "IMAGE_INCOMPLETE"),
    ],
)
def test_what_cannot_be_rewritten_is_refused_before_anything_is_made(
    dump: Dump, spoil: Callable[[Path], None], error: type[WoodfrogError], reason: str
) -> None:
    dump.add(1000, 1, seed=9)
    spoil(dump.folder)
    with pytest.raises(error) as caught:
        do(dump)
    assert caught.value.reason == reason
    assert os.listdir(dump.folder.parent) == ["dump"]


@pytest.mark.parametrize("entry", [{4: 1}, {4: 2}, {3: 1}])
def test_an_image_without_all_its_pages_is_refused(dump: Dump, entry: dict[int, int]) -> None:
    dump.add(1000, 1, seed=10, entry=entry)
    with pytest.raises(InvalidArgument, match="without pre-dumps"):
        do(dump)


def test_nothing_is_overwritten(dump: Dump) -> None:
    """A replica may be mapping the file that is there."""
    dump.add(1000, 1, seed=11)
    do(dump)
    with pytest.raises(AlreadyExists):
        do(dump)


@pytest.mark.parametrize("path", ["pages", "/run/../pages", "/run/pages/", ""])
def test_the_path_in_the_sandbox_must_be_one(dump: Dump, path: str) -> None:
    parent = dump.folder.parent
    with pytest.raises(InvalidArgument):
        rewrite(dump.folder, parent / "new", parent / "pages", path)
