"""How often the plan moved something on each node: it is bounded by that, and the clock is not. Pure."""

from collections import deque

_WINDOW_S = 60.0


class Moves:
    """Those of the last minute."""

    def __init__(self, per_minute: int) -> None:
        self._per_minute = per_minute
        self._of: dict[str, deque[float]] = {}

    def note(self, node: str, now: float) -> None:
        moves = self._of.setdefault(node, deque(maxlen=self._per_minute))
        moves.append(now)

    def free_at(self, node: str, now: float) -> float:
        """When the plan may move something there: now, or when the oldest move is a minute old."""
        moves = self._of.get(node)
        if moves is None or len(moves) < self._per_minute:
            return now
        return max(now, moves[0] + _WINDOW_S)

    def forget(self, node: str) -> None:
        self._of.pop(node, None)
