"""Whether one more replica pays: what a request would wait for a slot of those there are, against a climb. Pure."""

from collections.abc import Iterable

from woodfrog.scheduler.board import Board, Ticket
from woodfrog.scheduler.climb import Climb

#: A climb has to end this much earlier than the wait that it saves, in times its own length: it slows others down.
MARGIN = 0.5


def queue_s(board: Board, ticket: Ticket, climbs: Iterable[Climb]) -> float | None:
    """Seconds until the ticket has a slot of a replica that serves, or is lifted by one of the model's `climbs`.

    None where that is not known: nothing serves or is lifted, or too few of its requests have been seen.
    """
    mean_s = board.service_times.mean_s(ticket.model)
    slots = sum(
        record.replica.slots
        for record in board.view.replicas_of(ticket.model)
        if board.view.offered(record) and record.replica.replica_id not in ticket.excluded
    )
    first_s = 0.0 if slots else float("inf")
    for climb in climbs:
        slots += climb.spec.slots
        first_s = min(first_s, left_s(board, climb))
    if mean_s is None or not slots:
        return None
    before = sum(
        number <= ticket.number
        for number in board.waiting.get(ticket.model, {ticket.number: ticket})
    )
    return first_s + before * mean_s / slots


def left_s(board: Board, climb: Climb) -> float:
    """Until it is up, as it was predicted; 0 where it should be up already."""
    predicted_s = climb.placement.predicted_s if climb.placement is not None else 0.0
    return max(0.0, climb.began + predicted_s - board.now)


def pays(queue_s: float | None, climb_s: float) -> bool:
    return queue_s is None or queue_s >= (1 + MARGIN) * climb_s
