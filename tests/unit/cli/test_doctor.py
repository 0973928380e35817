"""What doctor says of programs that are missing, too old or broken, and of those that are as they should be."""

from pathlib import Path

import pytest
from tests.capabilities import need

from woodfrog.cli.cluster import Tools
from woodfrog.cli.doctor import Finding, examine


def program(path: Path, says: str) -> Path:
    path.write_text(f"#!/bin/sh\necho '{says}'\n")
    path.chmod(0o755)
    return path


def findings(criu: Path, etcd: Path) -> dict[str, Finding]:
    return {finding.name: finding for finding in examine(Tools(criu, etcd))}


@pytest.mark.parametrize(
    ("says", "said", "mend"),
    [
        ("Version: 4.1.1", "4.1.1", ""),
        ("Version: 4.2", "4.2", ""),
        ("Version: 3.17.1", "3.17.1", "4.1 or newer is needed: run: make setup"),
        ("no such thing", "does not run", "run: make setup"),
    ],
)
def test_versions(tmp_path: Path, says: str, said: str, mend: str) -> None:
    criu = program(tmp_path / "criu", says)
    found = findings(criu, tmp_path / "missing")
    assert said in found["CRIU"].said
    assert found["CRIU"].mend == mend
    assert found["etcd"].mend == "run: make setup"
    assert found["criu check"].mend


@need("root", "criu", "etcd", "fuse")
def test_a_machine_that_is_fit_needs_nothing() -> None:
    tools = Tools.find()
    assert [finding for finding in examine(tools) if finding.mend and finding.needed] == []
