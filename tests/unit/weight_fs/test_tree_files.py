"""What a tree's folder is believed after it was left by a process that may have died anywhere."""

import os
import random
from pathlib import Path

import pytest
from tests.memory.chunk_source import manifest_of, pieces, write_files

from woodfrog.model import digest as digests
from woodfrog.model.manifest import CHUNK_BYTES
from woodfrog.weight_fs.presence import ABSENT, PRESENT, SUSPECT
from woodfrog.weight_fs.tree_files import TreeFiles, load_manifest, make_plain, mismatch

RANDOM = random.Random(1)
PAGES = RANDOM.randbytes(CHUNK_BYTES) + bytes(CHUNK_BYTES) + RANDOM.randbytes(5000)
FILES = {"pages": PAGES, "img/core.img": b"core", "img/empty": b""}
CORE, FIRST, ZERO, LAST = range(4)  # numbers of the chunks
DATA = {CORE: b"core", **dict(zip((FIRST, ZERO, LAST), pieces(PAGES), strict=True))}


@pytest.fixture
def tree(tmp_path: Path) -> TreeFiles:
    manifest = manifest_of(FILES)
    return TreeFiles(tmp_path / digests.hex_of(manifest.digest), manifest)


def states(tree: TreeFiles) -> list[int]:
    presence, _ = tree.survey()
    return [presence[number] for number in range(len(presence))]


def filled(tree: TreeFiles) -> TreeFiles:
    presence, _ = tree.survey()
    for number in (CORE, FIRST, LAST):
        tree.write(presence, number, DATA[number])
    return tree


def test_new_tree_is_sparse_and_has_its_final_shape(tree: TreeFiles) -> None:
    assert states(tree) == [ABSENT, ABSENT, PRESENT, ABSENT]
    info = (tree.files / "pages").stat()
    assert (info.st_size, info.st_mode & 0o7777, info.st_blocks) == (len(PAGES), 0o444, 0)
    assert (tree.files / "img").stat().st_mode & 0o7777 == 0o755
    assert load_manifest(tree.root) == tree.manifest


def test_after_a_restart_what_lies_there_is_only_suspected(tree: TreeFiles) -> None:
    presence, _ = filled(tree).survey()
    assert states(tree) == [SUSPECT, SUSPECT, PRESENT, SUSPECT]
    assert all(tree.check(presence, number) for number in range(4))
    assert (tree.files / "pages").read_bytes() == PAGES


def test_damage_is_found_and_punched_out(tree: TreeFiles) -> None:
    presence, _ = filled(tree).survey()
    with (tree.files / "pages").open("r+b") as file:
        file.seek(77)
        file.write(b"!")
        file.seek(CHUNK_BYTES + 5)
        file.write(b"not zero")
        file.truncate(2 * CHUNK_BYTES + 10)
    presence, _ = tree.survey()
    assert [tree.check(presence, n) for n in range(4)] == [True, False, True, False]
    assert states(tree) == [SUSPECT, ABSENT, PRESENT, ABSENT]
    assert (tree.files / "pages").read_bytes() == bytes(len(PAGES))


def test_sealed_tree_is_believed_while_untouched(tree: TreeFiles) -> None:
    stamps = filled(tree).seal()
    assert tree.survey()[1] == stamps
    assert states(tree) == [PRESENT] * 4


@pytest.mark.parametrize("how", ["write", "replace", "remove", "link", "truncate", "seal"])
def test_seal_is_broken_by_any_change(tree: TreeFiles, how: str, tmp_path: Path) -> None:
    filled(tree).seal()
    path = tree.files / "pages"
    before = path.stat()
    match how:
        case "write":  # with its old time put back, as a careless copy would
            with path.open("r+b") as file:
                file.write(b"!")
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        case "replace":
            (tmp_path / "other").write_bytes(PAGES)
            (tmp_path / "other").replace(path)
        case "remove":
            path.unlink()
        case "link":
            path.rename(tmp_path / "other")
            path.symlink_to(tmp_path / "other")
        case "truncate":
            os.truncate(path, 10)
        case "seal":
            (tree.root / "complete.json").write_text("{")
    presence, stamps = tree.survey()
    assert stamps is None
    assert not presence.complete
    assert not (tree.root / "complete.json").exists()
    assert path.stat().st_size == len(PAGES)
    assert not path.is_symlink()


def test_folder_with_another_manifest_is_none_of_ours(tree: TreeFiles) -> None:
    tree.survey()
    (tree.root / "manifest.json").write_bytes(manifest_of({"a": b"b"}).encode())
    assert load_manifest(tree.root) is None


def test_a_folder_fits_only_with_just_the_files(tmp_path: Path) -> None:
    manifest = manifest_of(FILES)
    folder = write_files(tmp_path / "made", FILES)
    assert mismatch(folder, manifest) is None
    (folder / "more").write_text("x")
    assert mismatch(folder, manifest) == "more is not in the manifest"
    (folder / "more").unlink()
    (folder / "more").symlink_to("pages")
    assert mismatch(folder, manifest) == "more is neither a file nor a folder"
    (folder / "more").unlink()
    (folder / "img/core.img").write_text("cor")
    assert mismatch(folder, manifest) == "img/core.img has 3 bytes, the manifest says 4"
    (folder / "img/core.img").unlink()
    assert mismatch(folder, manifest) == "img/core.img is missing"


def test_made_plain(tmp_path: Path) -> None:
    folder = write_files(tmp_path / "made", FILES)
    (folder / "img").chmod(0o700)
    (folder / "pages").chmod(0o600)
    make_plain(folder)
    assert (folder / "img").stat().st_mode & 0o7777 == 0o755
    assert (folder / "pages").stat().st_mode & 0o7777 == 0o444
