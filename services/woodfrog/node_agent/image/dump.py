"""What CRIU wrote: the processes of a dump, their memory areas and which pages of these the image has."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from woodfrog.errors import DataLoss, FailedPrecondition, InvalidArgument
from woodfrog.node_agent.image.areas import PAGE_BYTES, Area, Run
from woodfrog.node_agent.image.wire import Kind, Message, read_records

_IMAGE_VERSION = 2  # CRTOOLS_IMAGES_V1_1, of CRIU 2 to 4
_PE_PARENT, _PE_PRESENT = 1, 4
REGULAR_FILE = 1  # fd_types.REG; folders too


@dataclass(slots=True)
class Process:
    pid: int
    mm: Message
    area_fields: list[int]  # where in mm.fields each area is
    areas: list[Area]
    pagemap: list[bytes]  # records: the head, then the entries
    wide: bool  # entries have the 64-bit count that came after CRIU 4.1
    present: list[Run]
    pages_name: str  # file name, "pages-1.img"


@dataclass(frozen=True, slots=True)
class OpenFile:
    """A file that a process maps or holds open, is a program of, or stands in."""

    name: bytes  # absolute path, in the sandbox
    size_bytes: int | None  # None: CRIU does not compare it
    mode: int | None


def check(source: Path) -> None:
    """Raises unless `source` is a whole dump of a kind that can be rewritten."""
    inventory = _one(read_records(source / "inventory.img", Kind.INVENTORY))
    version = Message.decode(inventory).integer(1)
    if version != _IMAGE_VERSION:
        raise FailedPrecondition(
            "IMAGE_VERSION",
            f"CRIU image has version {version}, only {_IMAGE_VERSION} is known; use CRIU 4",
            version=version,
        )
    if (source / "parent").is_symlink():
        raise InvalidArgument(
            "IMAGE_HAS_PARENT",
            "CRIU image is an increment on a parent image; checkpoint without pre-dumps",
        )
    if any(source.glob("mountpoints-*.img")):
        raise FailedPrecondition(
            "IMAGE_HAS_MOUNTS",
            "CRIU image holds a mount namespace; dump from inside the sandbox's own",
        )


def open_files(source: Path) -> list[OpenFile]:
    """Those that have a name still: unlinked ones are in the image themselves."""
    remaps = source / "remap-fpath.img"
    unlinked = {
        Message.decode(record).integer(1)
        for record in (read_records(remaps, Kind.REMAP_FPATH) if remaps.exists() else ())
    }
    found = []
    for record in read_records(source / "files.img", Kind.FILES):
        entry = regular(Message.decode(record))
        if entry and entry.integer(1) not in unlinked:
            size, mode = (entry.integer(n) if entry.has(n) else None for n in (8, 10))
            found.append(OpenFile(entry.data(6), size, mode))
    return found


def regular(file: Message) -> Message | None:
    """The entry of a regular file in files.img; None for sockets and the like."""
    return Message.decode(file.data(3)) if file.integer(1) == REGULAR_FILE else None


def read_processes(source: Path) -> list[Process]:
    pids = sorted(int(path.stem.removeprefix("mm-")) for path in source.glob("mm-*.img"))
    if not pids:
        raise DataLoss("IMAGE_INCOMPLETE", "CRIU image has no process; checkpoint again")
    processes = [_read_process(source, pid) for pid in pids]
    ids = [process.pages_name for process in processes]
    for pagemap in source.glob("pagemap-shmem-*.img"):
        ids.append(_pages_name(read_records(pagemap, Kind.PAGEMAP)))
    if len(set(ids)) != len(ids):
        raise FailedPrecondition(
            "IMAGE_PAGES_SHARED", "two processes of the CRIU image share one file of pages"
        )
    return processes


def _read_process(source: Path, pid: int) -> Process:
    mm = Message.decode(_one(read_records(source / f"mm-{pid}.img", Kind.MM)))
    area_fields = [at for at, field in enumerate(mm.fields) if field.number == 14]
    found = [_read_area(mm.fields[at].value) for at in area_fields]
    starts = [area.start for area in found if not area.guard]
    if starts != sorted(starts):
        raise DataLoss("IMAGE_DAMAGED", f"memory areas of process {pid} are not in order")
    pagemap = read_records(source / f"pagemap-{pid}.img", Kind.PAGEMAP)
    pages_name = _pages_name(pagemap)
    entries = [Message.decode(record) for record in pagemap[1:]]
    wide = any(entry.has(5) for entry in entries)
    present: list[Run] = []
    position = 0
    for entry in entries:
        flags = entry.integer(4, _PE_PRESENT)
        if flags & _PE_PARENT or entry.integer(3, 0) or not flags & _PE_PRESENT:
            raise InvalidArgument(
                "IMAGE_NOT_WHOLE",
                f"CRIU image lacks pages of process {pid}, which are in a parent image or with a "
                "page server; checkpoint without pre-dumps and lazy pages",
                pid=pid,
            )
        length = entry.integer(5, entry.integer(2)) * PAGE_BYTES
        present.append(Run(entry.integer(1), length, position, flags))
        position += length
    if not (source / pages_name).exists() or (source / pages_name).stat().st_size != position:
        raise DataLoss(
            "IMAGE_CUT_OFF",
            f"CRIU image {pages_name} does not have the {position} bytes that its pagemap tells; "
            "checkpoint again",
            file=pages_name,
        )
    return Process(pid, mm, area_fields, found, pagemap, wide, present, pages_name)


def _read_area(value: int | bytes) -> Area:
    assert isinstance(value, bytes)
    vma = Message.decode(value)
    return Area(*(vma.integer(number) for number in (1, 2, 5, 6, 7)))


def _pages_name(pagemap: Sequence[bytes]) -> str:
    if not pagemap:
        raise DataLoss("IMAGE_DAMAGED", "a pagemap of the CRIU image is empty; checkpoint again")
    return f"pages-{Message.decode(pagemap[0]).integer(1)}.img"


def _one(records: Sequence[bytes]) -> bytes:
    if len(records) != 1:
        raise DataLoss("IMAGE_DAMAGED", f"CRIU image has {len(records)} records in place of one")
    return records[0]
