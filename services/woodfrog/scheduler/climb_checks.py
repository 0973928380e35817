"""What holds of climbs after each event. Pure."""

from collections import Counter
from collections.abc import Collection, Mapping

from woodfrog.model.spec import ModelSpec
from woodfrog.scheduler import bursts, reservations
from woodfrog.scheduler.board import Board, Ticket
from woodfrog.scheduler.climb import Climb, Phase
from woodfrog.scheduler.forecasts import PlaceRequest
from woodfrog.scheduler.policy import NoCapacity, find


def check(
    board: Board,
    climbs: Mapping[str, Climb],
    of_model: Mapping[str, Mapping[str, Climb]],
    victims: Mapping[str, Climb],
) -> None:
    """AssertionError when something does not."""
    joined: Counter[str] = Counter()
    for name, climb in climbs.items():
        assert of_model[climb.spec.name][name] is climb
        assert len(climb.waiters) <= climb.spec.slots
        joined[climb.spec.name] += len(climb.waiters)
        for number, ticket in climb.waiters.items():
            assert board.tickets[number] is ticket
            assert ticket.climb == name
            free = (board.has_slot(r, ticket) for r in board.view.replicas_of(ticket.model))
            assert not any(free), f"ticket {number} waits for a climb beside a free slot"
        if climb.replica_id is not None:
            assert board.view.replicas[climb.replica_id].climb == name
        assert bool(climb.victims) == (climb.phase is Phase.ROOM)
        assert all(victims[victim] is climb for victim in climb.victims)
    assert board.joined == +joined
    assert board.rising == Counter(climb.spec.name for climb in climbs.values())
    assert sum(map(len, of_model.values())) == len(climbs)
    reservations.check(board.view, climbs.values())
    running = Counter(c.node for c in climbs.values() if c.phase is Phase.RUNNING)
    assert all(node.climbs == running[name] for name, node in board.view.nodes.items())
    for record in board.view.replicas.values():
        if record.climb is not None:
            assert climbs[record.climb].replica_id == record.replica.replica_id
    for ticket in board.tickets.values():
        assert ticket.climb is None or ticket.number in climbs[ticket.climb].waiters


def check_waits(board: Board, ticket: Ticket, spec: ModelSpec, climbs: Collection[Climb]) -> None:
    """AssertionError when the ticket waits for room though there is some; the model may have one more replica."""
    if not board.listed or board.starting or board.view.coming_slots(spec.name):
        return
    if bursts.slots(board, ticket, climbs):
        return  # it may wait for one of these
    request = PlaceRequest(spec, board.view.pointers(spec), excluded_replicas=ticket.excluded)
    found = find(request, board.view, board.estimates)
    assert isinstance(found, NoCapacity), f"ticket {ticket.number} waits beside {found}"
