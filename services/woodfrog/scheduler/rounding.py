"""Whole choices from a linear program's shares, and a greedy choice without one: never beyond the limits. Pure."""

from collections.abc import Iterable, Sequence

from woodfrog.scheduler.plan import Problem
from woodfrog.scheduler.program import Shares

_NONE = 1e-6  # of an offer: what is less is none
_ALL = 1 - 1e-6
_FREE = 1e-12  # that an offer costs at least


class Room:
    """What is left of the limits as offers are chosen, one a model at most. Offers are told by their number."""

    def __init__(self, problem: Problem) -> None:
        self._offers, self._needs, self._limits = problem.offers, problem.needs, problem.limits
        self._left = [*problem.limits]
        self._of_model: dict[str, list[int]] = {}
        for number, (item, _, _) in enumerate(problem.offers):
            self._of_model.setdefault(item.model, []).append(number)
        self.chosen: dict[str, int] = {}
        self._in_group: dict[str, dict[str, int]] = {}

    @property
    def value(self) -> float:
        return sum(self._offers[number].value for number in self.chosen.values())

    def lacks(self, number: int) -> bool:
        """The offer's model has nothing yet."""
        return self._offers[number].item.model not in self.chosen

    def gain(self, number: int) -> float:
        """That its model has of it, over what it has."""
        item, _, value = self._offers[number]
        before = self.chosen.get(item.model)
        return value - (self._offers[before].value if before is not None else 0.0)

    def share(self, number: int) -> float:
        """Of the limits that it takes part of, in all; an offer that cannot fit takes more than 1."""
        return sum(
            used / self._limits[key] if self._limits[key] else used + 1
            for key, used in self._needs[number]
        )

    def cost(self, number: int, worth: Sequence[float]) -> float:
        """Of what it takes, by what all of each limit is worth."""
        return sum(
            worth[key] * used / self._limits[key]
            for key, used in self._needs[number]
            if self._limits[key]
        )

    def choose(self, number: int) -> bool:
        """In place of the model's other one. False, and nothing changed, where it does not fit."""
        model = self._offers[number].item.model
        before = self.chosen.get(model)
        if before is not None:
            self.leave(before)
        if any(used > self._left[key] for key, used in self._needs[number]):
            if before is not None:
                self._put(before)
            return False
        self._put(number)
        return True

    def leave(self, number: int) -> None:
        offer = self._offers[number]
        del self.chosen[offer.item.model]
        del self._in_group[offer.option.group][offer.item.model]
        for key, used in self._needs[number]:
            self._left[key] += used

    def trade(self, number: int) -> bool:
        """Makes room for it by one other model that takes less there, or nothing: the one that costs least. False, and
        nothing changed, where that costs more than it brings.
        """
        if self.choose(number):
            return True
        item, option, _ = self._offers[number]
        before, gain = self.chosen.get(item.model), self.gain(number)
        if before is not None:
            self.leave(before)
        short = {
            key: used - self._left[key]
            for key, used in self._needs[number]
            if used > self._left[key]
        }
        best: tuple[float, int, int | None] | None = None
        for other, held in self._in_group.get(option.group, {}).items():
            freed = {key: used for key, used in self._needs[held] if key in short}
            if any(freed.get(key, 0.0) < lacking for key, lacking in short.items()):
                continue
            cost, instead = self._less(other, held, number)
            if cost < gain and (best is None or cost < best[0]):
                best = cost, held, instead
        if best is not None:
            _, held, instead = best
            self.leave(held)
            self._put(number)
            if instead is not None:
                self._put(instead)
        elif before is not None:
            self._put(before)
        return best is not None

    def _less(self, model: str, held: int, wanted: int) -> tuple[float, int | None]:
        """What the model loses at least when it leaves `held` to the offer `wanted`, and what it takes then."""
        left = dict(self._needs[held])
        for key, used in self._needs[wanted]:
            left[key] = left.get(key, 0.0) - used
        value, instead = 0.0, None
        for number in self._of_model[model]:
            fits = all(
                used <= self._left[key] + left.get(key, 0.0) for key, used in self._needs[number]
            )
            if number != held and fits and self._offers[number].value > value:
                value, instead = self._offers[number].value, number
        return self._offers[held].value - value, instead

    def _put(self, number: int) -> None:
        offer = self._offers[number]
        self.chosen[offer.item.model] = number
        self._in_group.setdefault(offer.option.group, {})[offer.item.model] = number
        for key, used in self._needs[number]:
            self._left[key] -= used


def whole(problem: Problem, shares: Shares) -> dict[str, int]:
    """By model, the number of its offer. What the program takes comes first, in the order of value for what it costs others.

    What is left is filled with whatever fits; who has less than the program gave may take from one who loses less.
    """
    offers, room = problem.offers, Room(problem)
    by_value = _by_value(problem)
    by_cost = sorted(
        by_value, key=lambda n: -offers[n].value / (room.cost(n, shares.worth) + _FREE)
    )
    _fill([number for number in by_cost if shares.of[number] > _NONE], room)
    _fill(by_cost, room)
    _raise(by_value, room)
    given: dict[str, float] = {}
    for (item, _, value), share in zip(offers, shares.of, strict=True):
        given[item.model] = given.get(item.model, 0.0) + share * value
    for number in by_value:
        item, _, value = offers[number]
        if (gain := room.gain(number)) > 0 and value - gain < given[item.model] * _ALL:
            room.trade(number)
    _raise(by_value, room)
    return room.chosen


def greedy(problem: Problem) -> dict[str, int]:
    """The better of two: by value for the share of the limits that is taken, or by value alone.

    Then what fits of the more valuable options.
    """
    found = []
    offers, room = problem.offers, Room(problem)
    by_value = _by_value(problem)
    by_share = sorted(by_value, key=lambda n: -offers[n].value / (room.share(n) + _FREE))
    for ranked in (by_share, by_value):
        room = Room(problem)
        _fill(ranked, room)
        _raise(by_value, room)
        found.append(room)
    return max(found, key=lambda room: room.value).chosen


def _by_value(problem: Problem) -> list[int]:
    return sorted(range(len(problem.offers)), key=lambda number: -problem.offers[number].value)


def _fill(ranked: Iterable[int], room: Room) -> None:
    for number in ranked:
        if room.lacks(number):
            room.choose(number)


def _raise(ranked: Iterable[int], room: Room) -> None:
    """To more valuable offers, where room is left."""
    for number in ranked:
        if room.gain(number) > 0:
            room.choose(number)
