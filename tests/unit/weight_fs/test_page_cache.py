import mmap
import os
from pathlib import Path

from woodfrog.weight_fs.page_cache import by_cachestat, by_mincore, cached_bytes


def test_both_ways_count_the_pages_of_a_file_just_written(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * (10 * mmap.PAGESIZE + 1))
    with path.open("r+b") as file:
        file.truncate(1000 * mmap.PAGESIZE)
        assert by_mincore(file.fileno()) == 11
        assert by_cachestat(file.fileno()) in (11, None)
    assert cached_bytes([path, path]) == 22 * mmap.PAGESIZE


def test_pages_dropped_by_the_kernel_are_not_counted(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * (1 << 20))
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        assert by_mincore(file.fileno()) == 0
    assert cached_bytes([path]) == 0


def test_an_empty_file_has_none(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    with (tmp_path / "empty").open("rb") as file:
        assert by_mincore(file.fileno()) == 0
