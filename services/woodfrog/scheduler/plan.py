"""Which model should rest on which rung: the most seconds of waiting saved, under what nodes have. Pure.

A model may take one of its options, each a rung on a group of nodes (today a single node), or none: then it keeps nothing. An
option is worth the seconds that a wake from it is shorter, times the wakes expected a second, less
the price of what it takes. The choice is a linear program (HiGHS), whose solution is whole but for as many models as there
are limits; those are put where room is left. Where the program does not end in time, a greedy choice takes its place.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from woodfrog.model.rung import Rung


class Resource(Enum):
    GPU = "GPU memory"
    PINNED = "pinned memory"
    MEMORY = "memory"
    DISK = "disk"
    REPLICAS = "replicas"


@dataclass(frozen=True, slots=True)
class Option:
    group: str
    rung: Rung
    wake_s: float  # from it to the first token
    uses: Mapping[Resource, float]  # bytes, and replicas


@dataclass(frozen=True, slots=True)
class Item:
    model: str
    wakes_s: float  # expected a second
    away_s: float  # a wake with nothing kept
    options: tuple[Option, ...]
    priority: float = 1.0  # what its users' seconds count
    now: int | None = None  # the option that it rests on


@dataclass(frozen=True, slots=True)
class Prices:
    """In seconds of waiting, for what is kept for one second."""

    of: Mapping[Resource, float] = field(default_factory=dict)  # for one byte


@dataclass(frozen=True, slots=True)
class Choice:
    option: Option
    value: float  # seconds of waiting saved a second, less the price


@dataclass(frozen=True, slots=True)
class Solution:
    choices: Mapping[str, Choice]  # by model; who is not there keeps nothing
    solver: str  # "linear program" or "greedy"
    seconds: float
    value: float
    bound: float | None  # that no choice exceeds; None of a greedy one


Limits = Mapping[str, Mapping[Resource, float]]  # by group; what is not there is without limit
#: A model must be wanted so much more than another to take its place: nothing goes to and fro for noise.
INERTIA = 0.2
_NONE, _ALL = 1e-6, 1 - 1e-6  # shares
_DISPLACED_MAX = 16  # as many are taken in part at most, in any cell of a few kinds of nodes


def value_of(item: Item, option: Option, prices: Prices) -> float:
    saved = item.priority * item.wakes_s * (item.away_s - option.wake_s)
    paid = sum(prices.of.get(resource, 0.0) * used for resource, used in option.uses.items())
    value = saved - paid
    if item.now is None:
        return value - INERTIA * max(0.0, saved)
    if not _same_rest(item.options[item.now], option):
        return value
    others = [other.wake_s for other in item.options if not _same_rest(other, option)]
    step_s = min(abs(other_s - option.wake_s) for other_s in (*others, item.away_s))
    return value + INERTIA * item.priority * item.wakes_s * step_s


def _same_rest(one: Option, other: Option) -> bool:
    """Nothing is moved from one to the other."""
    return (one.group, one.rung) == (other.group, other.rung)


class Planner:
    """Keeps the last solution, from which the next is found in a fraction of the time."""

    def __init__(self) -> None:
        self._basis: Any = None
        self._shape = (0, 0)

    def solve(
        self, items: Sequence[Item], limits: Limits, prices: Prices, within_s: float = 1.0
    ) -> Solution:
        """`items` have names of their own. Blocks for `within_s` at most, and a little more for the greedy choice."""
        began = time.perf_counter()
        worth = [
            (item, option, value)
            for item in items
            for option in item.options
            if (value := value_of(item, option, prices)) > 0
        ]
        found = self._program(worth, limits, within_s) if worth else ([], 0.0)
        if found is None:
            chosen = _greedy(worth, limits)
            bound, solver = None, "greedy"
        else:
            shares, bound = found
            chosen = _whole(worth, shares, limits)
            solver = "linear program"
        return Solution(chosen, solver, time.perf_counter() - began, _total(chosen), bound)

    def _program(
        self, worth: Sequence[tuple[Item, Option, float]], limits: Limits, within_s: float
    ) -> tuple[list[float], float] | None:
        """How much of each option, and what all are worth. None when it took too long."""
        import highspy
        import numpy as np

        rows_of_items = {
            name: at for at, name in enumerate(dict.fromkeys(i.model for i, _, _ in worth))
        }
        rows_of_limits = {
            (group, resource): len(rows_of_items) + at
            for at, (group, resource) in enumerate(
                (group, resource) for group, of in limits.items() for resource in of
            )
        }
        starts, indices, values = [0], [], []
        for item, option, _ in worth:
            indices.append(rows_of_items[item.model])
            values.append(1.0)
            for resource, used in option.uses.items():
                row = rows_of_limits.get((option.group, resource))
                if row is not None and used:
                    indices.append(row)
                    values.append(used / (limits[option.group][resource] or 1.0))
            starts.append(len(indices))
        program = highspy.HighsLp()
        program.num_col_ = len(worth)
        program.num_row_ = len(rows_of_items) + len(rows_of_limits)
        program.col_cost_ = -np.array([value for _, _, value in worth])
        program.col_lower_ = np.zeros(len(worth))
        program.col_upper_ = np.ones(len(worth))
        program.row_lower_ = np.full(program.num_row_, -highspy.kHighsInf)
        has = [1.0 if limits[group][resource] else 0.0 for group, resource in rows_of_limits]
        program.row_upper_ = np.array([1.0] * len(rows_of_items) + has)
        program.a_matrix_.format_ = highspy.MatrixFormat.kColwise
        program.a_matrix_.start_ = np.array(starts, dtype=np.int32)
        program.a_matrix_.index_ = np.array(indices, dtype=np.int32)
        program.a_matrix_.value_ = np.array(values)
        solver = highspy.Highs()  # type: ignore[no-untyped-call]
        for name, value in (("output_flag", False), ("threads", 1), ("time_limit", within_s)):
            solver.setOptionValue(name, value)
        solver.passModel(program)
        shape = (program.num_col_, program.num_row_)
        if self._basis is not None and shape == self._shape:
            solver.setBasis(self._basis)
        solver.run()
        if solver.getModelStatus() != highspy.HighsModelStatus.kOptimal:
            self._basis = None
            return None
        self._basis, self._shape = solver.getBasis(), shape
        shares = [float(share) for share in solver.getSolution().col_value]
        return shares, -float(solver.getInfo().objective_function_value)


class _Room:
    """What is left of the limits."""

    def __init__(self, limits: Limits) -> None:
        self._left = {
            (group, resource): limit
            for group, of in limits.items()
            for resource, limit in of.items()
        }

    def take(self, option: Option) -> bool:
        """False, and nothing taken, where it does not fit."""
        needs = [
            ((option.group, resource), used)
            for resource, used in option.uses.items()
            if (option.group, resource) in self._left
        ]
        if any(used > self._left[key] for key, used in needs):
            return False
        for key, used in needs:
            self._left[key] -= used
        return True

    def give(self, option: Option) -> None:
        for resource, used in option.uses.items():
            if (option.group, resource) in self._left:
                self._left[option.group, resource] += used


def _whole(
    worth: Sequence[tuple[Item, Option, float]], shares: Sequence[float], limits: Limits
) -> dict[str, Choice]:
    """The better of two: with options that were taken in part put behind those taken whole, or before them.

    What is left is filled with whatever fits.
    """
    ranked = sorted(zip(worth, shares, strict=True), key=lambda each: -each[0][2])
    found = []
    for first in (_ALL, _NONE):
        room = _Room(limits)
        chosen: dict[str, Choice] = {}
        _fill((each for each, share in ranked if share > first), room, chosen)
        _fill((each for each, _ in ranked), room, chosen)
        _raise(worth, room, chosen)
        _displace([each for each, share in ranked if share > _NONE], room, chosen)
        found.append(chosen)
    return max(found, key=_total)


def _displace(
    wanted: Iterable[tuple[Item, Option, float]], room: _Room, chosen: dict[str, Choice]
) -> None:
    """Models that were to have something and have nothing take the place of one that is worth less."""
    tried = 0
    for item, option, value in wanted:
        if item.model in chosen or tried >= _DISPLACED_MAX:
            continue
        tried += 1
        for model, other in sorted(chosen.items(), key=lambda each: each[1].value):
            if other.value >= value:
                break
            room.give(other.option)
            if room.take(option):
                del chosen[model]
                chosen[item.model] = Choice(option, value)
                break
            assert room.take(other.option)


def _total(chosen: Mapping[str, Choice]) -> float:
    return sum(choice.value for choice in chosen.values())


def _value(each: tuple[Item, Option, float]) -> float:
    return each[2]


def _greedy(worth: Sequence[tuple[Item, Option, float]], limits: Limits) -> dict[str, Choice]:
    """The better of two: by value for the share of a group that is taken, or by value alone.

    Then what fits of the more valuable options.
    """

    def share(option: Option) -> float:
        of = limits.get(option.group, {})
        taken = (used / of[resource] for resource, used in option.uses.items() if of.get(resource))
        return sum(taken) + 1e-9

    found = []
    for ranked in (
        sorted(worth, key=lambda each: -each[2] / share(each[1])),
        sorted(worth, key=_value, reverse=True),
    ):
        chosen: dict[str, Choice] = {}
        room = _Room(limits)
        _fill(ranked, room, chosen)
        _raise(ranked, room, chosen)
        found.append(chosen)
    return max(found, key=_total)


def _raise(
    worth: Iterable[tuple[Item, Option, float]], room: _Room, chosen: dict[str, Choice]
) -> None:
    """To more valuable options, where room is left."""
    for item, option, value in sorted(worth, key=_value, reverse=True):
        before = chosen.get(item.model)
        if before is None or value <= before.value:
            continue
        room.give(before.option)
        if room.take(option):
            chosen[item.model] = Choice(option, value)
        else:
            assert room.take(before.option)


def _fill(
    ranked: Iterable[tuple[Item, Option, float]], room: _Room, chosen: dict[str, Choice]
) -> None:
    for item, option, value in ranked:
        if item.model not in chosen and room.take(option):
            chosen[item.model] = Choice(option, value)
