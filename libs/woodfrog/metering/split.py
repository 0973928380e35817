"""Usage of several processes as one, by who used it, beside what models would have held that never sleep. Pure."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from woodfrog.metering.usage import HOUR_S, Row, Usage, bucket, hours_in

_NOBODY = ""

Key = tuple[int, str, str]  # hour, tenant, model
Slots = Mapping[
    tuple[int, str], Mapping[str, float]
]  # by hour and model the seconds of each tenant


@dataclass(frozen=True, slots=True)
class Standing:
    """What one replica of a model would hold that is always there."""

    tenant: str
    model: str
    since: float  # seconds since the epoch
    gpu_share: float  # of the memory of one GPU
    host_bytes: int


@dataclass(frozen=True, slots=True)
class Line:
    usage: Usage
    always_on: Usage  # its GPU and host seconds only
    beside: Usage  # what of `usage` is beside it: of a model that is gone nobody knows what always-on would have held

    def __add__(self, other: "Line") -> "Line":
        return Line(
            self.usage + other.usage,
            self.always_on + other.always_on,
            self.beside + other.beside,
        )


def lines(
    rows: Iterable[Row], standing: Iterable[Standing], since_hour: int, until: float, now_hour: int
) -> dict[Key, Line]:
    """From the start of `since_hour` to `until`, in seconds since the epoch.

    What nobody's replicas held is split among tenants by the slot seconds that they had of the model in that hour; where
    nobody had any it stays nobody's.
    """
    merged: dict[Key, Usage] = defaultdict(Usage)
    for row in rows:
        merged[bucket(row.hour, now_hour), row.tenant, row.model] += row.usage
    slots = slots_of(merged.items())
    used = split(merged, slots)
    never = split(_never_sleeping(standing, since_hour, until, now_hour), slots)
    keys = sorted(used.keys() | never.keys())
    none = Usage()
    return {
        key: Line(
            used.get(key, none),
            never.get(key, none),
            used.get(key, none) if key in never else none,
        )
        for key in keys
    }


def slots_of(usages: Iterable[tuple[Key, Usage]]) -> Slots:
    """The seconds in which tenants had slots; each key comes once."""
    slots: dict[tuple[int, str], dict[str, float]] = defaultdict(dict)
    for (hour, tenant, model), usage in usages:
        if usage.slot_s > 0:
            slots[hour, model][tenant] = usage.slot_s
    return slots


def split(usages: Mapping[Key, Usage], slots: Slots) -> dict[Key, Usage]:
    """With nobody's GPU and host seconds among those who had slots."""
    found: dict[Key, Usage] = defaultdict(Usage)
    for (hour, tenant, model), usage in usages.items():
        users = slots.get((hour, model), {}) if tenant == _NOBODY else {}
        if not users:
            found[hour, tenant, model] += usage
            continue
        found[hour, tenant, model] += replace(usage, gpu_s=0.0, host_byte_s=0.0)
        whole = sum(users.values())
        gpu_s, host_byte_s = usage.gpu_s, usage.host_byte_s  # that is left
        for number, (user, slot_s) in enumerate(sorted(users.items()), 1):
            last = number == len(users)
            gpu = gpu_s if last else min(gpu_s, usage.gpu_s * slot_s / whole)
            host = host_byte_s if last else min(host_byte_s, usage.host_byte_s * slot_s / whole)
            found[hour, user, model] += Usage(gpu_s=gpu, host_byte_s=host)
            gpu_s, host_byte_s = gpu_s - gpu, host_byte_s - host
    return {key: usage for key, usage in found.items() if usage != Usage()}


def grouped(
    found: Mapping[Key, Line], by: Callable[[Key], tuple[str, ...]]
) -> dict[tuple[str, ...], Line]:
    """Sums, sorted by their names."""
    sums: dict[tuple[str, ...], Line] = {}
    for key, line in found.items():
        before = sums.get(by(key))
        sums[by(key)] = line if before is None else before + line
    return dict(sorted(sums.items()))


def _never_sleeping(
    standing: Iterable[Standing], since_hour: int, until: float, now_hour: int
) -> dict[Key, Usage]:
    found: dict[Key, Usage] = defaultdict(Usage)
    for model in standing:
        hour = max(since_hour, int(model.since // HOUR_S))
        while hour * HOUR_S < until:
            first = bucket(hour, now_hour)
            after = first + hours_in(hour, now_hour)
            seconds = min(after * HOUR_S, until) - max(hour * HOUR_S, model.since)
            if seconds > 0:
                found[first, model.tenant, model.model] += Usage(
                    gpu_s=model.gpu_share * seconds, host_byte_s=model.host_bytes * seconds
                )
            hour = after
    return found
