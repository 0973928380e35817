"""The ready replicas that this router knows, and how many of its requests run on each.

Pure: nothing here waits. `schedulers.py` feeds it from the schedulers' streams and sends its reports.
"""

from collections.abc import Collection, Iterable

from woodfrog.model.placement import ReadyReplica, ReplicaUsage


class ReplicaTable:
    def __init__(self) -> None:
        self._ready: dict[str, ReadyReplica] = {}
        self._of_model: dict[str, dict[str, ReadyReplica]] = {}  # the same, by model
        self._active: dict[
            str, int
        ] = {}  # never 0; may name replicas that are not ready (yet, or any more)
        self._suspects: set[str] = set()  #: ready, but failed here; not picked until seen well
        self._started: dict[str, int] = {}  # since the last report
        self._changed: set[str] = set()  # active count or started differ from the last report
        self._flipped: set[str] = set()  # idle and last reported busy, or the other way round

    def apply(self, ready: Iterable[ReadyReplica], gone: Iterable[str]) -> list[ReadyReplica]:
        """One step of a scheduler's stream. Returns those that left."""
        left = [replica for replica_id in gone if (replica := self._drop(replica_id))]
        for replica in ready:
            self._drop(replica.replica_id)
            self._ready[replica.replica_id] = replica
            self._of_model.setdefault(replica.model, {})[replica.replica_id] = replica
        return left

    def pick(self, model: str, excluded: Collection[str] = ()) -> ReadyReplica | None:
        """The one with the fewest requests of ours and a free slot; of equals the one that became ready first."""
        best: ReadyReplica | None = None
        fewest = 0
        for replica_id, replica in self._of_model.get(model, {}).items():
            active = self.active(replica_id)
            if active >= replica.slots or replica_id in excluded or replica_id in self._suspects:
                continue
            if best is None or active < fewest:
                best, fewest = replica, active
        return best

    def start(self, replica_id: str) -> None:
        active = self.active(replica_id)
        self._active[replica_id] = active + 1
        self._started[replica_id] = self._started.get(replica_id, 0) + 1
        self._changed.add(replica_id)
        if active == 0:
            self._flipped ^= {replica_id}

    def end(self, replica_id: str) -> None:
        active = self._active[replica_id] - 1
        if active:
            self._active[replica_id] = active
        else:
            del self._active[replica_id]
            self._flipped ^= {replica_id}
        self._changed.add(replica_id)

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
        """A replica is idle that was last reported as busy, or the other way round."""
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
        assert self._flipped <= self._changed, "an urgent change would not be reported"
        assert self._started.keys() <= self._changed, "a start would not be reported"

    def _drop(self, replica_id: str) -> ReadyReplica | None:
        replica = self._ready.pop(replica_id, None)
        if replica is not None:
            self._suspects.discard(replica_id)
            of_model = self._of_model[replica.model]
            del of_model[replica_id]
            if not of_model:
                del self._of_model[replica.model]
        return replica
