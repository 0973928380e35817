"""Which models are to be brought to a disk."""

from dataclasses import replace

from tests.unit.scheduler.cell import Cell, facts, pointer, resident, spec

from woodfrog.scheduler import events as on
from woodfrog.scheduler.estimates import Estimates
from woodfrog.scheduler.rates import Rates
from woodfrog.scheduler.shelves import Shelves

GIB = 1 << 30


def test_a_copy_on_a_node_that_does_not_take_the_model_is_none() -> None:
    frog = spec("frog")
    snapshot = pointer(frog)
    cell = Cell(frog, nodes=("a", "b"))
    cell.do(on.SnapshotListed(snapshot))
    whole = (
        resident(frog.weights, frog.weights_bytes),
        resident(snapshot.manifest, snapshot.size_bytes),
    )

    def wanted(tenants: tuple[str, ...]) -> bool:
        told = replace(facts("a"), disk_bytes=100 * GIB, tenants=tenants)
        cell.report("a", facts=told, residents=whole)
        cell.report("b", facts=replace(facts("b"), disk_bytes=100 * GIB))
        shelves = Shelves(cell.state.view)
        item = shelves.item(frog, Estimates(Rates()), wait_s=60.0)
        return item is not None and [option.group for option in item.options] == ["b"]

    assert not wanted(())
    assert wanted(("acme",))
