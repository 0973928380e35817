"""How many requests run on each replica: what routers report, and what was granted but not reported yet. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass

from woodfrog.model.placement import ReplicaUsage


@dataclass(frozen=True, slots=True)
class Promise:
    """One granted request of which no router has said yet that it runs."""

    replica_id: str
    router: str


class Usage:
    """A router's report is the truth about what it runs. A promise counts until its router reports a start on that
    replica, or releases it, or is lost, or the promise is too old.
    """

    def __init__(self) -> None:
        self._reports: dict[str, dict[str, int]] = {}  # replica, router; never 0
        self._promises: dict[str, Promise] = {}  # by placement
        self._of_replica: dict[str, dict[str, str]] = {}  # replica, placement: router; oldest first

    def active(self, replica_id: str) -> int:
        reported = sum(self._reports.get(replica_id, {}).values())
        return reported + len(self._of_replica.get(replica_id, ()))

    def promise(self, placement_id: str, replica_id: str, router: str) -> None:
        assert placement_id not in self._promises
        self._promises[placement_id] = Promise(replica_id, router)
        self._of_replica.setdefault(replica_id, {})[placement_id] = router

    def keep(self, placement_id: str) -> str | None:
        """Ends a promise. Returns its replica, None when there is no such promise (any more)."""
        promise = self._promises.pop(placement_id, None)
        if promise is None:
            return None
        of_replica = self._of_replica[promise.replica_id]
        del of_replica[placement_id]
        if not of_replica:
            del self._of_replica[promise.replica_id]
        return promise.replica_id

    def report(self, router: str, usage: ReplicaUsage) -> list[str]:
        """Returns the placements that it keeps."""
        reports = self._reports.setdefault(usage.replica_id, {})
        reports[router] = usage.active
        if usage.active <= 0:
            del reports[router]
        if not reports:
            del self._reports[usage.replica_id]
        promised = self._of_replica.get(usage.replica_id, {})
        mine = [placement for placement, owner in promised.items() if owner == router]
        kept = mine[: max(0, usage.started)]
        for placement_id in kept:
            self.keep(placement_id)
        return kept

    def lose(self, router: str) -> tuple[set[str], list[str]]:
        """All that the router ran ends. Returns the replicas and the placements."""
        placements = [name for name, p in self._promises.items() if p.router == router]
        replicas = {self._promises[name].replica_id for name in placements}
        for name in placements:
            self.keep(name)
        reported = [name for name, reports in self._reports.items() if router in reports]
        for replica_id in reported:
            self.report(router, ReplicaUsage(replica_id, 0))
        return replicas.union(reported), placements

    def forget(self, replica_id: str) -> list[str]:
        """The replica ended, or its node was lost. Returns its placements.

        Reports stay: what runs there goes on if the node comes back, and routers tell when it broke.
        """
        placements = list(self._of_replica.get(replica_id, ()))
        for name in placements:
            self.keep(name)
        return placements

    def promised(self) -> Iterable[str]:
        return self._promises.keys()

    def check(self) -> None:
        assert all(self._reports.values()), "a replica without reports is kept"
        assert all(n > 0 for reports in self._reports.values() for n in reports.values())
        indexed = {
            name: Promise(replica_id, router)
            for replica_id, placements in self._of_replica.items()
            for name, router in placements.items()
        }
        assert indexed == self._promises, "the two views of the promises differ"
        assert all(self._of_replica.values()), "a replica without promises is kept"
