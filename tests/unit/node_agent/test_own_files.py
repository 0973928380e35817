"""What goes with a snapshot of a replica's /tmp, and a replica that does with its /tmp what it should not."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from woodfrog.errors import DataLoss, FailedPrecondition, ResourceExhausted
from woodfrog.node_agent.image.dump import OpenFile, open_files
from woodfrog.node_agent.image.wire import Kind, Message, write_records
from woodfrog.node_agent.own_files import (
    BYTES_MAX,
    COUNT_MAX,
    OwnFile,
    copy,
    of_rows,
    rows,
    wanted_of,
)

FILE, FOLDER = 0o100644, 0o40755


@pytest.fixture
def tmp(tmp_path: Path) -> Iterator[tuple[Path, int]]:
    """A replica's /tmp, and a descriptor of it."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    fd = os.open(folder, os.O_PATH)
    yield folder, fd
    os.close(fd)


def put(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    path.chmod(0o644)


def wanted(*files: tuple[str, int | None]) -> dict[str, OpenFile]:
    return {path: OpenFile(b"/tmp/" + path.encode(), size, FILE) for path, size in files}


def test_bytes_modes_and_times_are_kept_and_folders_come_first(
    tmp: tuple[Path, int], tmp_path: Path
) -> None:
    folder, fd = tmp
    put(folder / "a/b/x.so", b"library")
    put(folder / "a/log", b"line\nline\n")
    put(folder / "a/unused.cpp", b"stays behind")
    os.utime(folder / "a/b/x.so", ns=(5, 7))
    (folder / "a/b").chmod(0o700)
    (folder / "a").chmod(0o755)
    found = copy(fd, wanted(("a/b/x.so", 7), ("a/log", 5)), tmp_path / "own")
    log_mtime = (folder / "a/log").stat().st_mtime_ns
    assert found == [
        OwnFile("a", FOLDER),
        OwnFile("a/b", 0o40700),
        OwnFile("a/b/x.so", FILE, 7, 7),
        OwnFile("a/log", FILE, 5, log_mtime),  # it grew after the dump
    ]
    assert (tmp_path / "own").read_bytes() == b"libraryline\n"
    assert of_rows(json.loads(json.dumps(rows(found)))) == found


def test_a_log_whose_size_criu_does_not_compare_is_taken_as_it_is(
    tmp: tuple[Path, int], tmp_path: Path
) -> None:
    folder, fd = tmp
    put(folder / "log", b"all of it")
    (found,) = copy(fd, wanted(("log", None)), tmp_path / "own")
    assert found.size_bytes == 9


def test_what_the_host_shows_below_tmp_is_passed_over(tmp_path: Path) -> None:
    """/proc on / is another file system, as code of the host is on a sandbox's /tmp."""
    fd = os.open("/", os.O_PATH)
    try:
        assert copy(fd, wanted(("proc/version", 0)), tmp_path / "own") == []
    finally:
        os.close(fd)
    assert not (tmp_path / "own").exists()


@pytest.mark.parametrize("link", ["x", "a"])
@pytest.mark.parametrize("absolute", [True, False])
def test_no_link_is_followed(
    tmp: tuple[Path, int], tmp_path: Path, link: str, absolute: bool
) -> None:
    folder, fd = tmp
    put(tmp_path / "host/x", b"secret")
    put(folder / "mine/x", b"other")
    to = tmp_path / "host" if absolute else Path("mine")
    (folder / link).symlink_to(to if link == "a" else to / "x")
    path = "a/x" if link == "a" else "x"
    with pytest.raises(FailedPrecondition, match="symbolic links"):
        copy(fd, wanted((path, 5)), tmp_path / "own")
    assert b"secret" not in (tmp_path / "own").read_bytes()


def test_what_is_no_file_any_more_is_refused_without_waiting(
    tmp: tuple[Path, int], tmp_path: Path
) -> None:
    folder, fd = tmp
    os.mkfifo(folder / "pipe", 0o644)
    with pytest.raises(FailedPrecondition, match="another mode"):
        copy(fd, wanted(("pipe", 5)), tmp_path / "1")
    unknown = {"pipe": OpenFile(b"/tmp/pipe", 5, None)}
    with pytest.raises(FailedPrecondition, match="no regular file"):
        copy(fd, unknown, tmp_path / "2")


def test_a_file_that_is_gone_shorter_or_of_another_mode_is_refused(
    tmp: tuple[Path, int], tmp_path: Path
) -> None:
    folder, fd = tmp
    put(folder / "x", b"12345")
    with pytest.raises(FailedPrecondition, match=r"'y'.*No such file"):
        copy(fd, wanted(("y", 5)), tmp_path / "1")
    with pytest.raises(FailedPrecondition, match="shorter"):
        copy(fd, wanted(("x", 6)), tmp_path / "2")
    (folder / "x").chmod(0o755)
    with pytest.raises(FailedPrecondition, match="another mode"):
        copy(fd, wanted(("x", 5)), tmp_path / "3")


def test_a_gigabyte_is_refused_before_a_byte_is_copied(
    tmp: tuple[Path, int], tmp_path: Path
) -> None:
    folder, fd = tmp
    put(folder / "huge", b"")
    os.truncate(folder / "huge", 1 << 30)
    for number, size in enumerate((1 << 30, None)):
        target = tmp_path / str(number)
        with pytest.raises(ResourceExhausted, match="48 MiB"):
            copy(fd, wanted(("huge", size)), target)
        assert target.stat().st_size == 0


def test_all_together_are_bounded(tmp: tuple[Path, int], tmp_path: Path) -> None:
    folder, fd = tmp
    for name in ("a", "b"):
        put(folder / name, b"")
        os.truncate(folder / name, BYTES_MAX // 2 + 1)
    with pytest.raises(ResourceExhausted, match="'b'"):
        copy(fd, wanted(("a", BYTES_MAX // 2 + 1), ("b", BYTES_MAX // 2 + 1)), tmp_path / "own")
    assert (tmp_path / "own").stat().st_size == BYTES_MAX // 2 + 1


def test_thousands_of_files_are_refused(tmp: tuple[Path, int], tmp_path: Path) -> None:
    folder, fd = tmp
    names = [f"{number:05}" for number in range(COUNT_MAX + 1)]
    for name in names:
        put(folder / name, b"x")
    assert len(copy(fd, wanted(*((n, 1) for n in names[:-1])), tmp_path / "1")) == COUNT_MAX
    with pytest.raises(ResourceExhausted, match="4096 files"):
        copy(fd, wanted(*((name, 1) for name in names)), tmp_path / "2")


def test_folders_count_too(tmp: tuple[Path, int], tmp_path: Path) -> None:
    folder, fd = tmp
    branch = "/".join("d" * 700)
    paths = [f"{number}/{branch}/{name}" for number in range(6) for name in "xy"]
    for path in paths:
        os.makedirs(os.path.dirname(f"{folder}/{path}"), exist_ok=True)
        with open(f"{folder}/{path}", "xb"):
            os.chmod(f"{folder}/{path}", 0o644)
    found = copy(fd, wanted(*((path, 0) for path in paths[:10])), tmp_path / "1")
    assert len(found) == 5 * (1 + 700 + 2)
    with pytest.raises(ResourceExhausted, match="4096 files and folders"):
        copy(fd, wanted(*((path, 0) for path in paths)), tmp_path / "2")


def test_only_what_is_below_tmp_is_wanted_once_and_with_its_size() -> None:
    known, unknown = OpenFile(b"/tmp/a/x", 5, FILE), OpenFile(b"/tmp/a/x", None, FILE)
    others = [OpenFile(name, 1, FILE) for name in (b"/usr/lib/x", b"/tmp", b"/tmpx/y", b"/run/z")]
    assert wanted_of([known, unknown, *others]) == {"a/x": known}
    assert wanted_of([*others, unknown, known]) == {"a/x": known}


@pytest.mark.parametrize("name", [b"/tmp/../etc/shadow", b"/tmp//x", b"/tmp/a/./x", b"/tmp/x\0"])
def test_a_path_that_leads_elsewhere_is_damage(name: bytes) -> None:
    with pytest.raises(DataLoss):
        wanted_of([OpenFile(name, 1, FILE)])


def test_a_name_that_is_no_text_is_refused() -> None:
    with pytest.raises(FailedPrecondition, match="UTF-8"):
        wanted_of([OpenFile(b"/tmp/\xff", 1, FILE)])


@pytest.mark.parametrize(
    "found",
    [
        {},
        [[]],
        [["x", FILE, 1, 1, 1]],
        [7],
        [["../x", FILE, 1, 1]],
        [["/etc/x", FILE, 1, 1]],
        [["x", "rw", 1, 1]],
        [["x", FILE, -1, 1]],
        [["x", FILE, 1, 1 << 63]],
        [["x", FILE, True, 1]],
        [["x", 0o120777, 1, 1]],
        [[7, FILE, 1, 1]],
        [["x", FILE, BYTES_MAX + 1, 1]],
        [[str(number), FILE, 0, 0] for number in range(COUNT_MAX + 1)],
    ],
)
def test_a_damaged_list_is_refused(found: Any) -> None:
    with pytest.raises(DataLoss, match="files for /tmp"):
        of_rows(found)


def test_unlinked_files_are_criu_s_own(tmp_path: Path) -> None:
    def entry(file_id: int, name: bytes, more: dict[int, int | bytes]) -> bytes:
        values: dict[int, int | bytes] = {1: file_id, 6: name, **more}
        return Message.of({1: 1, 2: file_id, 3: Message.of(values).encode()}).encode()

    socket = Message.of({1: 4, 2: 9, 4: b""}).encode()
    records = [
        entry(1, b"/tmp/gone", {8: 5, 10: FILE}),
        entry(2, b"/tmp/gone", {8: 6, 10: FILE}),  # another of that name, which is there
        entry(3, b"/tmp/log", {10: FILE}),
        socket,
    ]
    write_records(tmp_path / "files.img", Kind.FILES, records)
    log = OpenFile(b"/tmp/log", None, FILE)
    both = [OpenFile(b"/tmp/gone", size, FILE) for size in (5, 6)]
    assert open_files(tmp_path) == [*both, log]
    remap = Message.of({1: 1, 2: 1, 3: 1}).encode()
    write_records(tmp_path / "remap-fpath.img", Kind.REMAP_FPATH, [remap])
    assert open_files(tmp_path) == [both[1], log]
