"""A model that is removed and added again under its name is another model."""

from dataclasses import replace

import pytest
from tests.unit.scheduler.cell import Cell, every, only, replica, spec

from woodfrog.model.node import ReplicaState
from woodfrog.model.rung import Rung
from woodfrog.scheduler import events as on

FROG = spec()


@pytest.mark.parametrize("missed", [False, True])
def test_a_model_that_was_added_anew_adopts_nothing_of_the_old_one(missed: bool) -> None:
    """Its spec may be another, though its name and its weights are the same; the removal may not have been heard."""
    old, new = replace(FROG, replicas_max=2, create_time=1.0), replace(FROG, create_time=2.0)
    cell = Cell(old)
    cell.report("a", replica("f1", old, "a", ReplicaState.PARKED), replica("f2", old, "a"))
    if not missed:
        ended = cell.do(on.ModelRemoved("frog"))
    listed = on.CatalogListed((new,), (), ("a",)) if missed else on.ModelListed(new)
    commands = cell.do(listed)
    assert {
        (each.replica_id, each.rung) for each in every(on.Descend, commands if missed else ended)
    } == {
        ("f1", Rung.FROZEN),
        ("f2", Rung.FROZEN),
    }
    start = only(on.StartClimb, cell.acquire())
    assert (start.spec, start.replica_id) == (new, None)


def test_a_climb_of_a_model_that_was_added_anew_is_not_its_own() -> None:
    cell = Cell(replace(FROG, create_time=1.0))
    first = only(on.StartClimb, cell.acquire())
    new = replace(FROG, create_time=2.0)
    commands = cell.do(on.ModelListed(new))
    assert only(on.CancelClimb, commands).attempt == first.attempt
    assert only(on.StartClimb, commands).spec == new
    late = cell.report("a", replica("f1", first.spec, "a"), full=False)  # its node went on with it
    assert (only(on.Descend, late).replica_id, every(on.Grant, late)) == ("f1", [])
