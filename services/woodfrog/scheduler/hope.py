"""Whom no node has room for: whether to wait for it, and when to look again. Pure."""

from collections.abc import Collection

from woodfrog.model.spec import ModelSpec
from woodfrog.scheduler.board import Board, Ticket
from woodfrog.scheduler.forecasts import PlaceRequest
from woodfrog.scheduler.policy import could_take, opens
from woodfrog.scheduler.view import ClusterView


def waits(board: Board, ticket: Ticket, spec: ModelSpec) -> bool:
    """Whether the ticket waits for room rather than being refused; it is looked at again when its patience is over."""
    if board.awaited or _is_coming(board.view, spec):
        return True
    until = ticket.came + board.limits.room_s
    if board.now >= until or not _comes_with_idling(board.view, spec):
        return False
    board.timers.set(("room", spec.name), until)
    return True


def changed(board: Board, model: str, nodes: Collection[str]) -> bool:
    """Whether what happened on the nodes may help who waits for the model, or ended its hope."""
    known = board.view.models.get(model)
    if known is None:
        return True
    request = PlaceRequest(known.spec, board.view.pointers(known.spec))
    if any(opens(name, request, board.view, board.estimates) for name in nodes):
        return True
    return not (
        board.awaited
        or _queues(board, model)
        or _is_coming(board.view, known.spec)
        or (("room", model) in board.timers and _comes_with_idling(board.view, known.spec))
    )


def _queues(board: Board, model: str) -> bool:
    """Who waits has the model's own replicas to wait for."""
    picky = any(ticket.excluded for ticket in board.waiting.get(model, {}).values())
    return not picky and any(map(board.view.offered, board.view.replicas_of(model)))


def _is_coming(view: ClusterView, spec: ModelSpec) -> bool:
    """A replica is leaving what the model needs, on a node that could take it."""
    return any(
        could_take(view.nodes[record.replica.node].facts, spec)
        for record in view.lowering.values()
        if record.descends_off(spec.gpu_bytes > 0)
    )


def _comes_with_idling(view: ClusterView, spec: ModelSpec) -> bool:
    """Requests end, and one who serves others now may be lowered then; or in a moment, as it rose only now."""
    return any(
        record.live and not (record.quiet or record.needed) and record.replica.model != spec.name
        for node in view.nodes.values()
        if not node.silent and not node.facts.draining and could_take(node.facts, spec)
        for record in node.replicas.values()
    )
