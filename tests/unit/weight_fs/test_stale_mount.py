from pathlib import Path

import pytest

from woodfrog.errors import FailedPrecondition
from woodfrog.weight_fs.stale_mount import clear, mounted

TABLE = rb"""22 1 254:0 / / rw,relatime - ext4 /dev/vda rw
31 22 0:30 / /var/a\040b\134c rw,nosuid shared:7 - fuse woodfrog ro,user_id=0
32 22 0:31 / /var/two rw - fuse woodfrog ro
33 22 0:32 / /var/two rw - tmpfs none rw
"""


def test_finds_the_last_mount_on_a_folder_also_with_odd_names() -> None:
    assert mounted(Path("/var/a b\\c"), TABLE) == "woodfrog"
    assert mounted(Path("/var/two"), TABLE) == "none"
    assert mounted(Path("/var/three"), TABLE) is None


def test_leaves_the_mounts_of_others_alone(tmp_path: Path) -> None:
    table = tmp_path / "mountinfo"
    table.write_bytes(TABLE)
    with pytest.raises(FailedPrecondition, match="none is mounted on it"):
        clear(Path("/var/two"), table)
    clear(Path("/var/three"), table)
