"""Where several tenants wait for one model, each has its turn."""

from itertools import count

from tests.unit.scheduler.cell import Cell, replica, spec

from woodfrog.model.node import ReplicaState
from woodfrog.model.placement import ANYONE, Caller, ReplicaUsage
from woodfrog.scheduler import events as on
from woodfrog.scheduler.board import Limits
from woodfrog.scheduler.events import Grant
from woodfrog.scheduler.turns import Turns


def test_one_tenant_is_served_as_it_came() -> None:
    turns = Turns()
    taken = [turns.take(ANYONE) for _ in range(5)]
    assert taken == sorted(set(taken))


def test_who_asks_little_is_next_however_many_wait() -> None:
    turns = Turns()
    flood = [turns.take(Caller("flood")) for _ in range(100)]
    turns.served(flood[9])
    assert turns.take(Caller("other")) <= flood[10]
    assert turns.take(Caller("other")) <= flood[11]


def test_shares_are_of_turns() -> None:
    turns = Turns()
    taken = [(turns.take(Caller("double", 2.0)), "double") for _ in range(20)]
    taken += [(turns.take(Caller("single")), "single") for _ in range(20)]
    first = [name for _, name in sorted(taken)[:15]]
    assert first.count("double") in (9, 10, 11)


def test_a_flood_leaves_others_room_to_wait() -> None:
    cell = Cell(spec("frog", slots=1), limits=Limits(waiting_max=8))
    tickets = count(1)

    def refused(tenant: str) -> bool:
        asked = on.AcquireRequested(
            next(tickets), "frog", cell.now + 1e6, "r", caller=Caller(tenant)
        )
        return any(isinstance(each, on.Refuse) for each in cell.do(asked))

    cell.do(on.AcquireRequested(next(tickets), "frog", cell.now + 1e6, "r"))  # it climbs
    assert [refused("flood") for _ in range(6)] == [False] * 4 + [True] * 2
    assert [refused("other") for _ in range(4)] == [False] * 2 + [True] * 2
    assert not refused("third")


def test_a_flood_does_not_hold_up_another_tenant() -> None:
    cell = Cell(spec("frog", slots=2))
    cell.report("a", replica("f1", spec("frog", slots=2), "a", ReplicaState.SERVING))
    tickets = count(1)
    whose: dict[int, str] = {}

    def ask(tenant: str) -> list[int]:
        ticket = next(tickets)
        whose[ticket] = tenant
        asked = on.AcquireRequested(ticket, "frog", cell.now + 1e6, "r", caller=Caller(tenant))
        return granted(cell.do(asked))

    def granted(commands: list[on.Command]) -> list[int]:
        return [each.ticket for each in commands if isinstance(each, Grant)]

    order = []
    for _ in range(50):
        order += ask("flood")
    order += ask("other")
    active = 2
    cell.do(on.UsageReported("r", (ReplicaUsage("f1", active, active),)))
    while len(order) < 51:
        cell.now += 1.0
        more = granted(cell.do(on.UsageReported("r", (ReplicaUsage("f1", 1, 0),))))
        assert len(more) == 1
        order += more
        cell.do(on.UsageReported("r", (ReplicaUsage("f1", 2, 1),)))
    tenants = [whose[ticket] for ticket in order]
    assert tenants.index("other") <= 3, "two had slots already, and one was next"
    flood = [ticket for ticket in order if whose[ticket] == "flood"]
    assert flood == sorted(flood)
