"""Whether one more replica pays: what a request would wait for a slot of those there are, against a climb. Pure."""

from collections.abc import Collection, Iterable

from woodfrog.scheduler.board import Board, Ticket
from woodfrog.scheduler.climb import Climb

#: A climb has to end this much earlier than the wait that it saves, in times its own length: it slows others down.
MARGIN = 0.5


def slots(board: Board, ticket: Ticket, climbs: Iterable[Climb]) -> int:
    """Of replicas that serve, for the ticket, and of those that the model's `climbs` lift."""
    view = board.view
    serving = sum(
        record.replica.slots
        for record in view.replicas_of(ticket.model)
        if view.offered(record) and record.replica.replica_id not in ticket.excluded
    )
    return serving + sum(climb.spec.slots for climb in climbs)


def queue_s(board: Board, ticket: Ticket, climbs: Collection[Climb]) -> float | None:
    """Seconds until the ticket has a slot of a replica that serves, or is lifted by one of the model's `climbs`.

    None where that is not known: nothing serves or is lifted, or too few of its requests have been seen.
    """
    mean_s = board.service_times.mean_s(ticket.model)
    count = slots(board, ticket, climbs)
    if mean_s is None or not count:
        return None
    first_s = 0.0
    if not slots(board, ticket, ()):  # nothing serves yet
        first_s = min(left_s(board, climb) for climb in climbs)
    before = sum(each.rank <= ticket.rank for each in board.waiting[ticket.model].values())
    return first_s + before * mean_s / count


def left_s(board: Board, climb: Climb) -> float:
    """Until it is up, as it was predicted; 0 where it should be up already."""
    predicted_s = climb.placement.predicted_s if climb.placement is not None else 0.0
    return max(0.0, climb.began + predicted_s - board.now)


def pays(queue_s: float | None, climb_s: float) -> bool:
    return queue_s is None or queue_s >= (1 + MARGIN) * climb_s
