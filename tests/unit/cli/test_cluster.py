import asyncio
import json
import os
import socket
from pathlib import Path

import pytest

from woodfrog.cli import scrape, shares, supervisor, up
from woodfrog.cli.cluster import NODES_MAX, ROUTERS_MAX, SERVICES, Cluster, Tools
from woodfrog.errors import FailedPrecondition, InvalidArgument

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


def test_a_folder_from_before_there_were_several_nodes_or_routers_opens(tmp_path: Path) -> None:
    cluster = Cluster.open(tmp_path)
    (tmp_path / "cluster.json").write_text(
        json.dumps({"http_port": cluster.http_port, "ports": cluster.ports})
    )
    assert Cluster.existing(tmp_path) == cluster
    assert (cluster.node, cluster.run_dir.name) == (f"node-{cluster.key}", cluster.key)
    assert cluster.mount_dir == tmp_path / "node" / "mount"
    assert set(cluster.children) == set(SERVICES)


def test_nodes_share_no_name_folder_or_port(tmp_path: Path) -> None:
    cluster = Cluster.open(tmp_path, node_count=NODES_MAX)
    assert len({*cluster.ports.values()}) == len(cluster.ports)
    for service, names in (
        ("node_agent", ("NODE", "LISTEN", "WEIGHT_FS", "STATE_DIR", "RUN_DIR")),
        ("weight_fs", ("LISTEN", "CACHE_DIR", "MOUNT_DIR")),
    ):
        children = [child for child in cluster.children if child.startswith(service)]
        assert len(children) == NODES_MAX
        found = [cluster.environment(child, TOOLS) for child in children]
        for name in names:
            assert len({each[f"WOODFROG_{service.upper()}_{name}"] for each in found}) == NODES_MAX
    addresses = [cluster.address(child) for child in cluster.children if "weight" in child]
    assert addresses == [node.weight_fs for node in cluster.nodes]


def test_a_node_that_comes_back_finds_its_ports(tmp_path: Path) -> None:
    two = Cluster.open(tmp_path).with_counts(2, 1)
    two.with_counts(1, 1).save()
    one = Cluster.existing(tmp_path)
    assert len(one.nodes) == 1
    assert one.with_counts(2, 1) == two
    assert "node_agent-2" not in one.used_ports
    ports = one.with_counts(NODES_MAX, 1).used_ports
    assert len({one.http_port, *ports.values()}) == len(ports) + 1


def test_the_number_of_nodes_changes_only_while_it_is_down(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Cluster.open(tmp_path, node_count=2)
    lock = supervisor.Lock(tmp_path)
    lock.take()
    with pytest.raises(
        FailedPrecondition, match=r"is up with 2 nodes; stop it first with: .* down"
    ):
        up.up(tmp_path, up.Wanted(nodes=3), foreground=False)
    assert Cluster.existing(tmp_path).node_count == 2


def test_routers_share_the_gateways_addresses_and_nothing_else(tmp_path: Path) -> None:
    cluster = Cluster.open(tmp_path, node_count=2, router_count=ROUTERS_MAX)
    routers = [child for child in cluster.children if child.startswith("router")]
    assert (*routers,) == cluster.routers == cluster.children[-ROUTERS_MAX:]
    assert routers[:2] == ["router", "router-2"]
    assert len({*cluster.ports.values()}) == len(cluster.ports)
    assert "router-2" not in cluster.ports
    found = [cluster.environment(child, TOOLS) for child in routers]
    for name, number in (
        ("LISTEN", 1), ("GRPC_LISTEN", 1), ("SHARED_LISTEN", 1), ("ETCD", 1), ("SCHEDULER", 1),
        ("METRICS_LISTEN", ROUTERS_MAX), ("OPERATOR_LISTEN", ROUTERS_MAX), ("USAGE_FILE", ROUTERS_MAX),
    ):  # fmt: skip
        assert len({each[f"WOODFROG_ROUTER_{name}"] for each in found}) == number, name
    assert {cluster.argv(child)[-1] for child in routers} == {"woodfrog.router"}
    assert len({*map(cluster.own_address, cluster.children)}) == len(cluster.children)


@pytest.mark.parametrize(("count", "shared"), [(1, False), (2, True)])
def test_a_router_takes_its_environment_and_shares_only_with_others(
    count: int, shared: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from woodfrog.router.settings import Settings
    from woodfrog.settings import load

    cluster = Cluster.open(tmp_path, router_count=count)
    for name, value in cluster.environment(cluster.routers[-1], TOOLS).items():
        monkeypatch.setenv(name, value)
    settings = load(Settings)
    assert settings.shared_listen is shared
    assert (settings.listen, settings.grpc_listen) == (
        f"127.0.0.1:{cluster.http_port}",
        cluster.address("router"),
    )
    assert settings.metrics_listen == cluster.metrics[cluster.routers[-1]]
    end = "-2" if shared else ""
    assert settings.usage_file == tmp_path / "router" / f"usage{end}.db"
    assert settings.operator_listen == cluster.own_address(f"router{end}")
    assert settings.operator_listen.endswith(f"/router{end}.sock")


def test_prometheus_is_told_of_each_router_and_of_each_nodes_services(tmp_path: Path) -> None:
    cluster = Cluster.open(tmp_path, node_count=2, router_count=3)
    told = scrape.targets(cluster)
    assert len(told) == len(cluster.children) == 9
    routers = [each for each in told if each["labels"] == {"service": "router"}]
    ports = [cluster.ports[f"metrics:router{end}"] for end in ("", "-2", "-3")]
    assert [each["targets"] for each in routers] == [[f"127.0.0.1:{port}"] for port in ports]


def test_a_router_that_comes_back_finds_its_port_and_an_older_folder_gets_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(up, "check_machine", lambda: None)
    monkeypatch.setattr(up, "_start", lambda cluster: None)
    old = Cluster.open(tmp_path)
    ports = {name: port for name, port in old.ports.items() if not name.startswith("metrics:")}
    (tmp_path / "cluster.json").write_text(json.dumps({"http_port": old.http_port, "ports": ports}))
    assert Cluster.existing(tmp_path).router_count == 1
    up.up(tmp_path, up.Wanted(routers=2), foreground=False)
    two = Cluster.existing(tmp_path)
    assert (two.router_count, two.node_count) == (2, 1)
    assert {"metrics:router", "metrics:router-2"} <= two.used_ports.keys()
    assert ports.items() <= two.ports.items()
    up.up(tmp_path, up.Wanted(nodes=2), foreground=False)
    assert Cluster.existing(tmp_path).router_count == 2
    up.up(tmp_path, up.Wanted(nodes=1, routers=1), foreground=False)
    one = Cluster.existing(tmp_path)
    assert one.routers == ("router",)
    assert "metrics:router-2" not in one.used_ports
    assert one.with_counts(1, 2).metrics == two.metrics


def test_the_number_of_routers_changes_only_while_it_is_down_and_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(up, "check_machine", lambda: None)
    monkeypatch.setattr(up, "_start", lambda cluster: None)
    Cluster.open(tmp_path, router_count=2)
    lock = supervisor.Lock(tmp_path)
    lock.take()
    with pytest.raises(FailedPrecondition, match=r"is up with 2 routers; stop it first") as kept:
        up.up(tmp_path, up.Wanted(routers=3), foreground=False)
    assert kept.value.reason == "ROUTERS_KEPT"
    assert Cluster.existing(tmp_path).router_count == 2
    up.up(tmp_path, up.Wanted(routers=2), foreground=False)
    assert "  routers  2\n" in capsys.readouterr().out
    lock.release()
    up.up(tmp_path, up.Wanted(routers=1), foreground=False)
    assert "  routers" not in capsys.readouterr().out
    lock.take()
    with pytest.raises(FailedPrecondition, match="is up with one router;"):
        up.up(tmp_path, up.Wanted(routers=2), foreground=False)


@pytest.mark.parametrize("name", ["NAME", "USAGE_FILE", "OPERATOR_LISTEN", "METRICS_LISTEN"])
def test_what_each_router_must_have_of_its_own_is_not_set_for_all(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Routers of one name would throw each other out of the scheduler, for as long as they run."""
    monkeypatch.setattr(up, "check_machine", lambda: None)
    monkeypatch.setattr(up, "_start", lambda cluster: None)
    monkeypatch.setenv(f"WOODFROG_ROUTER_{name}", "x")
    with pytest.raises(FailedPrecondition, match=f"{name} is set, .* of 2 routers; unset it"):
        up.up(tmp_path, up.Wanted(routers=2), foreground=False)
    up.up(tmp_path, up.Wanted(routers=1), foreground=False)


@pytest.mark.parametrize("name", ["nodes", "routers"])
@pytest.mark.parametrize("wrong", [0, -1, 17, "x", None, [2]])
def test_a_number_of_nodes_or_routers_that_cannot_be_is_damage(
    name: str, wrong: object, tmp_path: Path
) -> None:
    Cluster.open(tmp_path, node_count=NODES_MAX, router_count=ROUTERS_MAX)
    file = tmp_path / "cluster.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), name: wrong}))
    with pytest.raises(FailedPrecondition, match="remove it"):
        Cluster.existing(tmp_path)


@pytest.mark.parametrize("shared", [False, True])
def test_a_port_that_another_program_has_is_told_whether_it_shares_it_or_not(
    shared: bool, tmp_path: Path
) -> None:
    cluster = Cluster.open(tmp_path, router_count=2)
    up.check_ports(cluster)
    for name, port in (("gateway", cluster.http_port), ("router", cluster.ports["router"])):
        with (
            socket.create_server(("127.0.0.1", port), reuse_port=shared),
            pytest.raises(FailedPrecondition, match=f"port {port} of the {name} cannot be used"),
        ):
            up.check_ports(cluster)
    up.check_ports(cluster)


def test_nodes_of_tenants_are_kept_and_must_be_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(up, "check_machine", lambda: None)
    monkeypatch.setattr(up, "_start", lambda cluster: None)
    up.up(tmp_path, up.Wanted(nodes=2, auth="keys", tenants={"2": "acme,globex"}), foreground=False)
    cluster = Cluster.existing(tmp_path)
    assert (cluster.auth, cluster.tenants) == ("keys", {"2": "acme,globex"})
    tools = Tools.find()
    name = "WOODFROG_NODE_AGENT_TENANTS"
    assert cluster.environment("node_agent-2", tools)[name] == "acme,globex"
    assert cluster.environment("node_agent", tools)[name] == ""
    up.up(tmp_path, up.Wanted(), foreground=False)
    assert Cluster.existing(tmp_path) == cluster
    with pytest.raises(FailedPrecondition, match="names node 3, and the cluster has 2 nodes"):
        up.up(tmp_path, up.Wanted(tenants={"3": "acme"}), foreground=False)
    with pytest.raises(FailedPrecondition, match="from tenants with --node-tenants 1="):
        up.up(tmp_path, up.Wanted(nodes=1), foreground=False)
    up.up(tmp_path, up.Wanted(tenants={"1": ""}), foreground=False)
    assert Cluster.existing(tmp_path).tenants == {}


def test_nodes_share_the_machine_s_memory() -> None:
    """One alone takes the agent's default, four fifths."""
    assert shares.memory(1) == {}
    assert shares.memory(4, machine_bytes=100 << 30) == {"memory_bytes": 20 << 30}


@pytest.mark.parametrize(("said", "there"), [("all", 3), ("0,1,2", 0)])
def test_each_gpu_belongs_to_one_node(said: str, there: int) -> None:
    given = {"WOODFROG_NODE_AGENT_GPUS": said}
    told = [shares.gpus(given, number, 4, there, 12 << 30) for number in (1, 2, 3, 4)]
    assert [each["WOODFROG_NODE_AGENT_GPUS"] for each in told] == ["0", "1", "2", "none"]
    assert {each["WOODFROG_NODE_AGENT_ARENA_BYTES"] for each in told} == {str(1 << 30)}
    two = [shares.gpus(given, number, 2, there) for number in (1, 2)]
    assert [each["WOODFROG_NODE_AGENT_GPUS"] for each in two] == ["0,2", "1"]


def test_what_a_user_says_of_gpus_and_memory_holds() -> None:
    given = {"WOODFROG_NODE_AGENT_GPUS": "0,1", "WOODFROG_NODE_AGENT_ARENA_BYTES": "5"}
    assert shares.gpus(given, 1, 2)["WOODFROG_NODE_AGENT_ARENA_BYTES"] == "5"
    assert shares.gpus(given, 1, 1) == {}
    assert (
        shares.gpus({"WOODFROG_NODE_AGENT_GPUS": "x"}, 1, 2) == {}
    )  # the agent says what is wrong


@pytest.mark.parametrize("service", SERVICES)
def test_each_service_takes_the_environment_that_it_is_given(
    service: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A setting that no longer exists would stop the service at its start."""
    from importlib import import_module

    from woodfrog.settings import load

    environment = Cluster.open(tmp_path, node_count=2).environment(service, TOOLS)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    load(import_module(f"woodfrog.{service}.settings").Settings)
    monkeypatch.setenv(f"WOODFROG_{service.upper()}_NO_SUCH", "1")
    with pytest.raises(Exception, match="NO_SUCH"):
        load(import_module(f"woodfrog.{service}.settings").Settings)


@pytest.mark.parametrize("service", SERVICES)
@pytest.mark.parametrize("wrong", ["x", "nan", "inf", "-inf", "-7", "1e400", str(1 << 63)])
def test_no_setting_takes_a_number_that_cannot_be(
    service: str, wrong: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from importlib import import_module

    from woodfrog.settings import load

    settings = import_module(f"woodfrog.{service}.settings").Settings
    for name, value in Cluster.open(tmp_path).environment(service, TOOLS).items():
        monkeypatch.setenv(name, value)
    numbers = [n for n, f in settings.model_fields.items() if f.annotation in (int, float)]
    for name in numbers:
        variable = f"WOODFROG_{service.upper()}_{name.upper()}"
        with monkeypatch.context() as changed:
            changed.setenv(variable, wrong)
            with pytest.raises(InvalidArgument, match=variable):
                load(settings)


def test_a_replica_socket_fits_its_address(tmp_path: Path) -> None:
    cluster = Cluster.open(tmp_path / ("deep" * 50))
    assert len(str(cluster.run_dir / "s1234567-12345" / "control.sock")) < 108


async def test_a_setting_that_cannot_be_is_told_at_once_unless_it_was_said_before(
    tmp_path: Path,
) -> None:
    cluster = Cluster.open(tmp_path)
    log = tmp_path / "logs" / f"{cluster.children[0]}.log"
    log.parent.mkdir(exist_ok=True)
    said = {"message": "cannot run", "reason": "BAD_SETTING", "error": "SUCH is no number"}
    log.write_text(f'{{"message": "serving"}}\n{json.dumps(said)}\n')
    os.utime(log, (1.0, 1.0))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(up.wait_ready(cluster), 0.5)
    os.utime(log, (4e9, 4e9))
    with pytest.raises(FailedPrecondition, match="cannot start: SUCH is no number; see "):
        await asyncio.wait_for(up.wait_ready(cluster), 20.0)
