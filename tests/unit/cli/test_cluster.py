from pathlib import Path

import pytest

from woodfrog.cli.cluster import SERVICES, Cluster, Tools
from woodfrog.errors import FailedPrecondition

TOOLS = Tools(Path("criu"), Path("etcd"))


def test_a_cluster_keeps_its_ports(tmp_path: Path) -> None:
    first = Cluster.open(tmp_path / "home")
    assert Cluster.open(tmp_path / "home") == first == Cluster.existing(tmp_path / "home")
    assert len({first.http_port, *first.ports.values()}) == len(first.ports) + 1


def test_two_clusters_share_nothing(tmp_path: Path) -> None:
    one, other = Cluster.open(tmp_path / "one"), Cluster.open(tmp_path / "other")
    assert one.node != other.node
    assert one.run_dir != other.run_dir
    assert not set(one.ports.values()) & set(other.ports.values())


def test_a_damaged_file_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "cluster.json").write_text("{")
    with pytest.raises(FailedPrecondition, match="remove it"):
        Cluster.open(tmp_path)


def test_no_cluster_says_how_to_start_one(tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition, match=f"woodfrog --home {tmp_path} up"):
        Cluster.existing(tmp_path)


@pytest.mark.parametrize("service", SERVICES)
def test_each_service_takes_the_environment_that_it_is_given(
    service: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A setting that no longer exists would stop the service at its start."""
    from importlib import import_module

    from woodfrog.settings import load

    environment = Cluster.open(tmp_path).environment(service, TOOLS)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    load(import_module(f"woodfrog.{service}.settings").Settings)
    monkeypatch.setenv(f"WOODFROG_{service.upper()}_NO_SUCH", "1")
    with pytest.raises(Exception, match="NO_SUCH"):
        load(import_module(f"woodfrog.{service}.settings").Settings)


def test_a_replica_socket_fits_its_address(tmp_path: Path) -> None:
    cluster = Cluster.open(tmp_path / ("deep" * 50))
    assert len(str(cluster.run_dir / "s1234567-12345" / "control.sock")) < 108
