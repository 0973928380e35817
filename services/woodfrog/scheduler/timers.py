"""When to look again at what. Pure."""

import heapq

Key = tuple[str, str]  # kind, name
_SLACK = 64


class Timers:
    """At most one time a key; an overtaken entry is skipped when it comes up."""

    def __init__(self) -> None:
        self._when: dict[Key, float] = {}
        self._heap: list[tuple[float, Key]] = []

    def set(self, key: Key, when: float) -> None:
        """A later time than the one that stands is not noted: the key comes up earlier and is set again then."""
        if when < self._when.get(key, float("inf")):
            self._when[key] = when
            heapq.heappush(self._heap, (when, key))

    def drop(self, key: Key) -> None:
        self._when.pop(key, None)
        if len(self._heap) > 2 * len(self._when) + _SLACK:
            self._heap = [(when, key) for key, when in self._when.items()]
            heapq.heapify(self._heap)

    def next(self) -> float | None:
        while self._heap and self._when.get(self._heap[0][1]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def due(self, now: float) -> list[Key]:
        """Takes out all that came up, in order."""
        keys = []
        while (when := self.next()) is not None and when <= now:
            _, key = heapq.heappop(self._heap)
            del self._when[key]
            keys.append(key)
        return keys

    def __contains__(self, key: Key) -> bool:
        return key in self._when
