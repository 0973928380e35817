"""What climbs under way will take of a node that does not count it yet. Pure."""

from collections import Counter
from collections.abc import Collection

from woodfrog.scheduler.climb import Climb
from woodfrog.scheduler.forecasts import Placement
from woodfrog.scheduler.room import room_bytes, sharable
from woodfrog.scheduler.view import ClusterView


def reserve(view: ClusterView, climb: Climb) -> None:
    """A thaw takes GPU memory alone, and only when it left its GPU."""
    placement = climb.placement
    assert placement is not None
    takes = not climb.thaws or placement.gpu_bytes > 0
    if takes and not climb.reserved:
        _change(view, climb, placement, 1)
        climb.reserved = True


def unreserve(view: ClusterView, climb: Climb) -> bool:
    """False when nothing was reserved."""
    reserved, climb.reserved = climb.reserved, False
    if reserved:
        assert climb.placement is not None
        _change(view, climb, climb.placement, -1)
    return reserved


def fits(view: ClusterView, climb: Climb, hopes: Collection[Climb]) -> bool:
    """Whether its node has what is reserved there; the room for `hopes`, climbs to that node, is still to be made."""
    placement = climb.placement
    assert placement is not None
    node = view.nodes[placement.node]
    thawed = view.replicas[climb.replica_id].replica if climb.replica_id else None
    gpu = next((gpu for gpu in node.facts.gpus if gpu.uuid == placement.gpu), None)
    gpu_bytes = sum(
        other.placement.gpu_bytes
        for other in hopes
        if other.placement is not None and other.placement.gpu == placement.gpu
    )
    if placement.gpu and gpu is None:  # gone meanwhile
        return False
    if not climb.spec.admitted(node.facts.tenants):  # any more
        return False
    home = placement.snapshot.gpu if placement.snapshot is not None else ""
    wanted = sharable(climb.spec, placement.gpu, thawed, home)
    return (
        node.free_bytes + sum(other.new_bytes for other in hopes) >= 0
        and node.free_count + sum(other.new_count for other in hopes) >= 0
        and (gpu is None or room_bytes(node, gpu, wanted, thawed) + gpu_bytes >= 0)
    )


def check(view: ClusterView, climbs: Collection[Climb]) -> None:
    """AssertionError unless each node has reserved what its climbs take."""
    expected: Counter[str] = Counter()
    expected_gpu: dict[str, Counter[str]] = {name: Counter() for name in view.nodes}
    for climb in climbs:
        if climb.reserved:
            assert climb.placement is not None
            expected[climb.node] += climb.new_bytes
            expected_gpu[climb.node][climb.placement.gpu] += climb.placement.gpu_bytes
    for name, node in view.nodes.items():
        assert node.reserved_bytes == expected[name], f"{name} is reserved wrongly"
        assert Counter(node.reserved_gpu_bytes) == +expected_gpu[name], (
            f"GPUs of {name} are reserved wrongly"
        )


def _change(view: ClusterView, climb: Climb, placement: Placement, sign: int) -> None:
    node = view.nodes[placement.node]
    view.changed(placement.node)
    node.reserved_bytes += sign * climb.new_bytes
    node.reserved_count += sign * climb.new_count
    reserved = node.reserved_gpu_bytes.pop(placement.gpu, 0) + sign * placement.gpu_bytes
    if reserved:
        node.reserved_gpu_bytes[placement.gpu] = reserved
