"""How long a climb will take: priors, corrected by the climbs that ended. Pure.

A climb's own time, with all its bytes at hand and nothing beside it, is learned for each way (kind of node, model, rung);
of a model that has not climbed yet it is the prior, times what priors were wrong by for that kind and rung. What bytes
further away cost, and what climbs beside it on its node cost, is learned for each kind of node. Every estimate is the
median of the last few samples, so one odd climb changes none of them.
"""

import statistics
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeVar

from woodfrog.model.node import Stage
from woodfrog.model.placement import Predictions
from woodfrog.model.rung import Rung
from woodfrog.scheduler.rates import Rates

SAMPLES = 9
BESIDE_MAX = 3.0  # times its own time that one more climb costs another
ERRORS = 1000  # predictions, of which the error is told
FEW_BYTES = 4 << 20  # that may be missing without being felt
MANY_BYTES = 32 << 20  # that a rate can be learned from
_SMALL_SHARE = 0.3  # of a climb's time: a transfer that estimates may be subtracted of

_HIDDEN = 1.2  # times what a climb takes without bytes that are away: they made it no longer

K = TypeVar("K")


class Way(NamedTuple):
    """Climbs that take equally long."""

    kind: str  # of node
    model: str
    rung: Rung
    copies: bool = False  # weights onto a GPU
    checkpoint: bool = False  # a cold start that is checkpointed before it serves


@dataclass(frozen=True, slots=True)
class Missing:
    """Bytes that must come to memory."""

    store_bytes: int = 0
    disk_bytes: int = 0

    @property
    def total(self) -> int:
        return self.store_bytes + self.disk_bytes


@dataclass(frozen=True, slots=True)
class Branch:
    """Weights and process come at the same time, and meet at the thaw."""

    prior_s: float  # what is at hand, nothing missing
    missing: Missing = Missing()
    coming: bool = False  # from the store, for another climb on the node: it is not fetched twice


NO_WEIGHTS = Branch(0.0)


@dataclass(frozen=True, slots=True)
class Forecast:
    way: Way
    process: Branch
    weights: Branch
    beside: int  # climbs under way on the node
    seconds: float
    sharing: int = 0  # fetches under way from the store, to any node
    first_s: float = 0.0  # part of them, in which others make room


class Estimates:
    def __init__(self, priors: Rates) -> None:
        self.priors = priors
        self._alone: dict[Way, deque[float]] = {}
        self._wrong: dict[tuple[str, Rung], deque[float]] = {}  # taken over prior
        self._store: dict[str, deque[float]] = {}  # seconds a byte
        self._disk: dict[str, deque[float]] = {}
        self._shared: dict[str, deque[float]] = {}  # share of its time that one more costs a fetch
        #: Fetches under way from the store, whose line is all nodes'.
        self.fetching = 0
        self._beside: dict[str, deque[float]] = {}  # share of its time that one more costs a climb
        self._lowered: dict[tuple[str, Rung], deque[float]] = {}
        self._yielded: dict[str, deque[float]] = {}  # until others had made room on a GPU
        self._errors: deque[float] = deque(maxlen=ERRORS)

    def forecast(
        self,
        way: Way,
        process: Branch,
        weights: Branch = NO_WEIGHTS,
        beside: int = 0,
        *,
        yields: bool = False,
    ) -> Forecast:
        """`yields`: its node makes room on the GPU first, by lowering what rests there."""
        alone = self._alone_s(way)
        process_s = self._moving_s(way.kind, process.missing, self._others(process))
        if alone is None:
            process_s += process.prior_s * _median(self._wrong.get((way.kind, way.rung)), 1.0)
            weights_s = weights.prior_s
        else:  # which includes the weights at hand
            process_s += alone
            weights_s = 0.0
        weights_s += self._moving_s(way.kind, weights.missing, self._others(weights))
        crowded = 1 + beside * _median(self._beside.get(way.kind), 0.0)
        first_s = self.yields_s(way.kind) if yields else 0.0
        seconds = first_s + max(process_s, weights_s) * crowded
        return Forecast(way, process, weights, beside, seconds, self.fetching, first_s)

    def learn(
        self, forecast: Forecast, from_rung: Rung, stages: Iterable[Stage], took_s: float
    ) -> None:
        """From a climb that ended after `took_s`, less its snapshot's first proof on the node, which comes once."""
        names: dict[str, float] = {}
        for stage in stages:
            names[stage.name] = names.get(stage.name, 0.0) + stage.duration_s
        took_s = max(1e-4, took_s - names.get("restore.proof", 0.0))
        way = forecast.way._replace(
            rung=from_rung, checkpoint=any(name.startswith("checkpoint.") for name in names)
        )
        if way == forecast.way:
            self._errors.append(abs(forecast.seconds - took_s) / took_s)
        if room_s := names.get("room"):
            _add(self._yielded, way.kind, room_s)
            took_s = max(1e-4, took_s - room_s)
        known = self._alone_s(way)
        share = _median(self._beside.get(way.kind), 0.0)
        quiet_s = took_s / (1 + forecast.beside * share)
        fell_back = from_rung is Rung.ABSENT and forecast.way.rung is not Rung.ABSENT
        pages = Missing() if fell_back else forecast.process.missing  # of no use to a cold start
        more = max(pages, forecast.weights.missing, key=lambda m: m.total)
        if known is None and more.total >= MANY_BYTES:  # a model that has not climbed yet
            known = self._guess_s(way, forecast.process)
        if more.total > FEW_BYTES:
            behind = more is forecast.weights.missing
            if (forecast.weights if behind else forecast.process).coming:
                return  # how long it was on its way already is not known
            self._learn_moving(way, more, quiet_s, known, forecast.sharing, beside=behind)
        elif forecast.beside and known is not None:
            share = (took_s / known - 1) / forecast.beside
            _add(self._beside, way.kind, min(max(0.0, share), BESIDE_MAX))
        else:
            _add(self._alone, way, quiet_s)
            if way == forecast.way:
                prior_s = max(forecast.process.prior_s, forecast.weights.prior_s)
                _add(self._wrong, (way.kind, way.rung), quiet_s / max(prior_s, 1e-4))

    def lower_s(self, kind: str, rung: Rung) -> float:
        """Until a replica is lowered to the rung, and its room free."""
        return _median(self._lowered.get((kind, rung)), self.priors.lower_s)

    def learn_lowered(self, kind: str, rung: Rung, took_s: float) -> None:
        _add(self._lowered, (kind, rung), took_s)

    def yields_s(self, kind: str) -> float:
        """Until what rests on a GPU has made room there."""
        return _median(self._yielded.get(kind), self.priors.lower_s)

    def predictions(self) -> Predictions:
        """Of the latest climbs."""
        ranked = sorted(self._errors)
        count = len(ranked)
        return Predictions(count, ranked[-(-9 * count // 10) - 1]) if ranked else Predictions()

    def forget(self, model: str) -> None:
        """It was removed."""
        self._alone = {way: found for way, found in self._alone.items() if way.model != model}

    def _learn_moving(
        self, way: Way, missing: Missing, took_s: float, known: float | None, sharing: int,
        *, beside: bool,
    ) -> None:  # fmt: skip
        """`beside`: the bytes came while the process did."""
        moving_s = self._moving_s(way.kind, missing, sharing)
        if known is None:
            if moving_s < _SMALL_SHARE * took_s:
                _add(self._alone, way, took_s - moving_s)
            return
        if missing.total < MANY_BYTES:
            return
        if beside and moving_s <= took_s < known * _HIDDEN:
            return  # behind the process, and no slower than thought
        extra_s = took_s if beside else max(0.0, took_s - known)
        if missing.store_bytes >= missing.disk_bytes:
            disk_s = self._moving_s(way.kind, replace(missing, store_bytes=0))
            store_s = max(0.0, extra_s - disk_s)
            if not sharing:
                _add(self._store, way.kind, store_s / missing.store_bytes)
            elif alone_s := self._moving_s(way.kind, replace(missing, disk_bytes=0)):
                share = (store_s / alone_s - 1) / sharing
                _add(self._shared, way.kind, min(max(0.0, share), BESIDE_MAX))
        else:
            store_s = self._moving_s(way.kind, replace(missing, disk_bytes=0))
            _add(self._disk, way.kind, max(0.0, extra_s - store_s) / missing.disk_bytes)

    def _others(self, branch: Branch) -> int:
        """That share the store's line with it."""
        return max(0, self.fetching - branch.coming)

    def _guess_s(self, way: Way, process: Branch) -> float | None:
        """Of the process alone, by what others' took. None where none has climbed so."""
        rungs = (way.rung, Rung.FROZEN) if way.rung is Rung.STORED else (way.rung,)
        found = [self._wrong[way.kind, rung] for rung in rungs if (way.kind, rung) in self._wrong]
        return process.prior_s * _median(found[0], 1.0) if found else None

    def _alone_s(self, way: Way) -> float | None:
        found = self._alone.get(way)
        if found is None and way.rung is Rung.STORED:  # the same process, once its bytes are here
            found = self._alone.get(way._replace(rung=Rung.FROZEN))
        return statistics.median(found) if found else None

    def _moving_s(self, kind: str, missing: Missing, sharing: int = 0) -> float:
        seconds = 0.0
        if missing.total <= FEW_BYTES:  # what a climb alone took has them in it
            return seconds
        if missing.store_bytes:
            a_byte = _median(self._store.get(kind), 1 / self.priors.store_bytes_s)
            others = sharing * _median(self._shared.get(kind), 1.0)
            seconds += missing.store_bytes * a_byte * (1 + others)
        if missing.disk_bytes:
            a_byte = _median(self._disk.get(kind), 1 / self.priors.disk_bytes_s)
            seconds += missing.disk_bytes * a_byte
        return seconds


def _add(samples: dict[K, deque[float]], key: K, value: float) -> None:
    samples.setdefault(key, deque(maxlen=SAMPLES)).append(value)


def _median(samples: deque[float] | None, prior: float) -> float:
    return statistics.median(samples) if samples else prior
