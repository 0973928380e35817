"""What a plan is about: which model should rest on which rung, on which node, and what that is worth. Pure.

A model may take one of its options, each a rung on a node (a group of its own), or none: then it keeps nothing. An
option is worth the seconds that a wake from it is shorter, times the wakes expected a second, less
the price of what it takes.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

from woodfrog.model.rung import Rung


class Resource(Enum):
    GPU = "GPU memory"
    PINNED = "pinned memory"
    MEMORY = "memory"
    DISK = "disk"
    REPLICAS = "replicas"

    __hash__ = object.__hash__  # a member is one object, and a plan looks a million of them up


@dataclass(frozen=True, slots=True)
class Option:
    group: str
    rung: Rung
    wake_s: float  # from it to the first token
    uses: Mapping[Resource, float]  # bytes, and replicas
    late_s: float = 0.0  # that its first wake takes longer: it may come before the model is there


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
    iterations: int = 0  # of the simplex
    reasons: Mapping[str, str] = field(default_factory=dict)  # by model, of a plan for people


Limits = Mapping[str, Mapping[Resource, float]]  # by group; what is not there is without limit
#: A model must be wanted so much more than another to take its place: nothing goes to and fro for noise.
INERTIA = 0.2


class Offer(NamedTuple):
    """An option that is worth something."""

    item: Item
    option: Option
    value: float  # as a choice's


class Problem:
    """Offers and limits by number. Of each model one offer may be taken, as long as no limit is exceeded."""

    def __init__(self, items: Iterable[Item], limits: Limits, prices: Prices) -> None:
        self.offers = [
            Offer(item, option, value)
            for item in items
            for option in item.options
            if (value := value_of(item, option, prices)) > 0
        ]
        self.names = [(group, resource) for group, of in limits.items() for resource in of]
        self.limits = [limit for of in limits.values() for limit in of.values()]
        numbers = {name: at for at, name in enumerate(self.names)}
        #: What each offer takes, by number of a limit; what is without limit is not there.
        self.needs = [
            [
                (number, used)
                for resource, used in option.uses.items()
                if used and (number := numbers.get((option.group, resource))) is not None
            ]
            for _, option, _ in self.offers
        ]


def value_of(item: Item, option: Option, prices: Prices) -> float:
    """Seconds of waiting saved a second, less the price, and less or more so that nothing moves for noise."""
    saves = saved(item, option)
    value = saves - paid(option, prices)
    if item.now is None:
        return value - INERTIA * max(0.0, saves)
    if not _same_rest(item.options[item.now], option):
        return value
    others = [other.wake_s for other in item.options if not _same_rest(other, option)]
    step_s = min(abs(other_s - option.wake_s) for other_s in (*others, item.away_s))
    return value + INERTIA * item.priority * item.wakes_s * step_s


def saved(item: Item, option: Option) -> float:
    """Seconds of waiting a second."""
    return item.priority * item.wakes_s * (item.away_s - option.wake_s - option.late_s)


def paid(option: Option, prices: Prices) -> float:
    """The same, for what it takes."""
    return sum(prices.of.get(resource, 0.0) * used for resource, used in option.uses.items())


def _same_rest(one: Option, other: Option) -> bool:
    """Nothing is moved from one to the other."""
    return (one.group, one.rung) == (other.group, other.rung)
