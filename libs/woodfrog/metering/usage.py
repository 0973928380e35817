"""What a tenant used of a model within an hour. Pure."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from operator import add, attrgetter
from typing import Any

HOUR_S = 3600.0
GIB_H = float(1 << 30) * HOUR_S  #: bytes times seconds in a GiB hour
_DAY_HOURS = 24
_HOURLY_DAYS = 60  # older hours are kept as days


@dataclass(frozen=True, slots=True)
class Usage:
    """Counts of requests are those that ended; seconds of a GPU and of bytes are those that replicas held."""

    requests: int = 0
    failed: int = 0  # of the requests: those that ended in an error, the engine's refusals included
    wakes: int = 0  # requests that waited for a climb
    prompt_tokens: int = 0
    completion_tokens: int = 0
    slot_s: float = 0.0  # in which requests had a slot of a replica
    gpu_s: float = 0.0  # share of a GPU's memory times seconds: half a GPU for 10 s are 5
    host_byte_s: float = 0.0  # memory that a node promised, times seconds

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(*map(add, self.counters, other.counters))

    @property
    def counters(self) -> tuple[Any, ...]:
        """In their order."""
        return _COUNTERS(self)


_COUNTERS = attrgetter(*Usage.__slots__)


@dataclass(frozen=True, slots=True)
class Row:
    hour: int  # since the epoch; of a day that was folded, its first
    tenant: str  # empty: nobody's own, or there are no tenants
    model: str
    usage: Usage


def month_of(now: float) -> range:
    """The hours of the calendar month in UTC; `now` in seconds since the epoch."""
    day = datetime.fromtimestamp(now, UTC)
    first = datetime(day.year, day.month, 1, tzinfo=UTC)
    after = (first + timedelta(days=32)).replace(day=1)
    return range(int(first.timestamp() // HOUR_S), int(after.timestamp() // HOUR_S))


def bucket(hour: int, now_hour: int) -> int:
    """Under which hour it is kept: itself, or its day's first when it is old."""
    return hour - hour % _DAY_HOURS if hour < fold_before(now_hour) else hour


def fold_before(now_hour: int) -> int:
    """Hours before this one are kept as days; itself the first of a day."""
    return (now_hour // _DAY_HOURS - _HOURLY_DAYS) * _DAY_HOURS


def hours_in(hour: int, now_hour: int) -> int:
    """How many hours are kept under `hour`."""
    return _DAY_HOURS if hour < fold_before(now_hour) else 1
