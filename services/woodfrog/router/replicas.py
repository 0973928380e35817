"""The ready replicas that this router knows, and how many requests run on each: its own, and other routers'.

Pure: nothing here waits. `schedulers.py` feeds it from the schedulers' streams and sends its reports.
"""

from collections.abc import Collection, Iterable
from enum import Enum

from woodfrog.model.placement import ReadyReplica, ReplicaUsage


class _Load(Enum):
    IDLE = "idle"
    BUSY = "busy"
    FULL = "full"


class ReplicaTable:
    def __init__(self) -> None:
        self._ready: dict[str, ReadyReplica] = {}
        self._of_model: dict[str, dict[str, ReadyReplica]] = {}  # the same, by model
        self._active: dict[
            str, int
        ] = {}  # never 0; may name replicas that are not ready (yet, or any more)
        self._elsewhere: dict[str, int] = {}  # of other routers, as last told; never 0
        self._suspects: set[str] = set()  #: ready, but failed here; not picked until seen well
        self._started: dict[str, int] = {}  # since the last report
        self._changed: set[str] = set()  # active count or started differ from the last report
        self._told: dict[str, int] = {}  # active in the last report; never 0
        self._flipped: set[str] = set()  # of another load than was told

    def apply(self, ready: Iterable[ReadyReplica], gone: Iterable[str]) -> list[ReadyReplica]:
        """One step of a scheduler's stream. Returns those that left."""
        left = [replica for replica_id in gone if (replica := self._drop(replica_id))]
        for replica in ready:
            self._drop(replica.replica_id)
            self._ready[replica.replica_id] = replica
            self._of_model.setdefault(replica.model, {})[replica.replica_id] = replica
        return left

    def hear(self, elsewhere: Iterable[ReplicaUsage], *, full: bool) -> None:
        """What other routers run, where it changed; `full`: nothing else runs there."""
        before = [*self._elsewhere] if full else []
        if full:
            self._elsewhere.clear()
        for usage in elsewhere:
            before.append(usage.replica_id)
            self._elsewhere[usage.replica_id] = usage.active
            if usage.active <= 0:
                del self._elsewhere[usage.replica_id]
        for name in before:
            # It may be full now with what was told, and not with what runs.
            if name in self._changed:
                self._count(name)

    def pick(self, model: str, excluded: Collection[str] = ()) -> ReadyReplica | None:
        """The one with the fewest requests and a free slot; of equals the one that became ready first."""
        best: ReadyReplica | None = None
        fewest = 0
        for replica_id, replica in self._of_model.get(model, {}).items():
            active = self.active(replica_id) + self._elsewhere.get(replica_id, 0)
            if active >= replica.slots or replica_id in excluded or replica_id in self._suspects:
                continue
            if best is None or active < fewest:
                best, fewest = replica, active
        return best

    def start(self, replica_id: str) -> None:
        self._active[replica_id] = self.active(replica_id) + 1
        self._started[replica_id] = self._started.get(replica_id, 0) + 1
        self._count(replica_id)

    def end(self, replica_id: str) -> None:
        active = self._active[replica_id] - 1
        if active:
            self._active[replica_id] = active
        else:
            del self._active[replica_id]
        self._count(replica_id)

    def suspect(self, replica_id: str) -> None:
        """It failed a request: the scheduler must offer it before it is used again."""
        if replica_id in self._ready:
            self._suspects.add(replica_id)

    def trust(self, replica_id: str) -> None:
        self._suspects.discard(replica_id)

    @property
    def ids(self) -> Collection[str]:
        """Of all that are ready."""
        return self._ready.keys()

    def active(self, replica_id: str) -> int:
        return self._active.get(replica_id, 0)

    @property
    def changed(self) -> bool:
        return bool(self._changed)

    @property
    def urgent(self) -> bool:
        """A replica is idle, busy or full, and with what was last told it is not: others may wait for its slot."""
        return bool(self._flipped)

    def running(self) -> list[ReplicaUsage]:
        """All that runs, with no starts."""
        return [ReplicaUsage(name, active, 0) for name, active in sorted(self._active.items())]

    def report(self) -> list[ReplicaUsage]:
        """What changed since the last report; it counts as sent."""
        usage = [
            ReplicaUsage(name, self.active(name), self._started.get(name, 0))
            for name in sorted(self._changed)
        ]
        for each in usage:
            self._told[each.replica_id] = each.active
            if not each.active:
                del self._told[each.replica_id]
        self._changed.clear()
        self._started.clear()
        self._flipped.clear()
        return usage

    def check(self) -> None:
        by_model = {r: v for replicas in self._of_model.values() for r, v in replicas.items()}
        assert by_model == self._ready, "the two views of the ready replicas differ"
        assert all(self._of_model.values()), "a model without replicas is kept"
        assert self._suspects <= self._ready.keys(), "a suspect is not ready"
        assert all(count > 0 for count in self._active.values()), "an idle replica is counted"
        assert all(count > 0 for count in self._elsewhere.values()), "one that idles elsewhere too"
        assert self._flipped <= self._changed, "an urgent change would not be reported"
        assert self._started.keys() <= self._changed, "a start would not be reported"

    def _count(self, replica_id: str) -> None:
        self._changed.add(replica_id)
        told, active = self._told.get(replica_id, 0), self.active(replica_id)
        if told == active or self._load(replica_id, told) is self._load(replica_id, active):
            self._flipped.discard(replica_id)
        else:
            self._flipped.add(replica_id)

    def _load(self, replica_id: str, active: int) -> "_Load":
        """Of that many requests here."""
        if not active:
            return _Load.IDLE
        replica = self._ready.get(replica_id)
        total = active + self._elsewhere.get(replica_id, 0)
        return _Load.FULL if replica is not None and total >= replica.slots else _Load.BUSY

    def _drop(self, replica_id: str) -> ReadyReplica | None:
        replica = self._ready.pop(replica_id, None)
        if replica is not None:
            self._suspects.discard(replica_id)
            of_model = self._of_model[replica.model]
            del of_model[replica_id]
            if not of_model:
                del self._of_model[replica.model]
        return replica
