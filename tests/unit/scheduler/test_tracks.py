"""A router that reads slowly gets the newest state, and each knows of what the others run and were asked."""

from collections import Counter
from contextlib import aclosing

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from woodfrog.model.placement import (
    ReadyReplica,
    ReplicaUsage,
    RouterReport,
    TenantUse,
    TrackUpdate,
)
from woodfrog.scheduler.tracks import Track, Tracks

F1 = ReadyReplica("f1", "frog", "a", "/run/f1", 2)
F2 = ReadyReplica("f2", "frog", "a", "/run/f2", 2)


async def test_first_everything_then_changes_run_together() -> None:
    track = Track([F1])
    async with aclosing(track.updates()) as updates:
        assert await anext(updates) == TrackUpdate(True, (F1,))
        track.announce((F2,), ("f1",))
        track.announce((F1,), ())
        track.announce((), ("f2",))
        assert await anext(updates) == TrackUpdate(False, (F1,), ("f2",))
        track.announce((), (), ("f1",))
        track.announce((F1,), (), ("f2", "f1"))
        assert await anext(updates) == TrackUpdate(False, (F1,), (), ("f1", "f2"))
        track.announce((F2,), ())
        track.close()
        assert [update async for update in updates] == [TrackUpdate(False, (F2,))]


async def test_a_router_that_joins_or_leaves_is_told_of_and_to_the_others() -> None:
    tracks = Tracks()
    async with (
        aclosing(tracks.join("one", [F1]).updates()) as one,
        aclosing(tracks.join("two", [F1]).updates()) as two,
    ):
        assert await anext(one) == await anext(two) == TrackUpdate(True, (F1,))
        tracks.report("one", RouterReport((ReplicaUsage("f1", 2, 2),), (TenantUse("t", 2, 2, 9),)))
        told = TrackUpdate(
            False, elsewhere=(ReplicaUsage("f1", 2),), tenants=(TenantUse("t", 2, 2, 9),)
        )
        assert await anext(two) == told
        async with aclosing(tracks.join("late", [F1]).updates()) as late:
            assert await anext(late) == TrackUpdate(
                True, (F1,), elsewhere=(ReplicaUsage("f1", 2),), tenants=(TenantUse("t", 2),)
            )
        tracks.report("two", RouterReport((ReplicaUsage("f1", 1, 1),)))
        assert (await anext(one)).elsewhere == (ReplicaUsage("f1", 1),)
        tracks.leave("one")
        assert await anext(two) == TrackUpdate(
            False, elsewhere=(ReplicaUsage("f1", 0),), tenants=(TenantUse("t", 0),)
        )


ROUTERS, NAMES = st.sampled_from("xyz"), st.sampled_from("ab")


class Routers(RuleBasedStateMachine):
    """Whatever comes in whatever order, who has read all that it was told knows what the others have, and has been told
    once of all that began there while it was there.
    """

    def __init__(self) -> None:
        super().__init__()
        self.tracks = Tracks()
        self.there: dict[str, Track] = {}
        self.truth: dict[str, Counter[tuple[str, str]]] = {}  # by router: replicas, and tenants
        self.begun: dict[str, Counter[str]] = {}  # at others, since it came
        self.known: dict[str, Counter[tuple[str, str]]] = {}
        self.heard: dict[str, Counter[str]] = {}

    @rule(router=ROUTERS)
    def join(self, router: str) -> None:
        if router in self.there:
            self.leave(router)
        self.there[router] = self.tracks.join(router, ())
        self.truth[router], self.known[router] = Counter(), Counter()
        self.begun[router], self.heard[router] = Counter(), Counter()
        self.hear(router, self.there[router]._full)

    def leave(self, router: str) -> None:
        self.tracks.leave(router)
        for state in (self.there, self.truth, self.begun, self.known, self.heard):
            del state[router]

    @precondition(lambda self: self.there)
    @rule(data=st.data())
    def lose(self, data: st.DataObject) -> None:
        self.leave(data.draw(st.sampled_from(sorted(self.there))))

    @precondition(lambda self: self.there)
    @rule(
        data=st.data(),
        replicas=st.dictionaries(NAMES, st.integers(0, 3)),
        tenants=st.dictionaries(NAMES, st.tuples(st.integers(0, 3), st.integers(0, 3))),
    )
    def report(
        self, data: st.DataObject, replicas: dict[str, int], tenants: dict[str, tuple[int, int]]
    ) -> None:
        router = data.draw(st.sampled_from(sorted(self.there)))
        for name, active in replicas.items():
            self.truth[router]["replica", name] = active
        for name, (active, begun) in tenants.items():
            self.truth[router]["tenant", name] = active
            for other in self.there.keys() - {router}:
                self.begun[other][name] += begun
        self.tracks.report(
            router,
            RouterReport(
                tuple(ReplicaUsage(name, active) for name, active in replicas.items()),
                tuple(TenantUse(name, *counts) for name, counts in tenants.items()),
            ),
        )

    @precondition(lambda self: self.there)
    @rule(data=st.data())
    def read(self, data: st.DataObject) -> None:
        router = data.draw(st.sampled_from(sorted(self.there)))
        while (update := self.there[router]._take()) is not None:
            self.hear(router, update)
        others: Counter[tuple[str, str]] = Counter()
        for other in self.there.keys() - {router}:
            others += self.truth[other]
        assert +self.known[router] == +others
        assert +self.heard[router] == +self.begun[router]

    def hear(self, router: str, update: TrackUpdate) -> None:
        for usage in update.elsewhere:
            self.known[router]["replica", usage.replica_id] = usage.active
        for use in update.tenants:
            self.known[router]["tenant", use.tenant] = use.active
            self.heard[router][use.tenant] += use.requests

    @invariant()
    def holds(self) -> None:
        assert len(self.tracks) == len(self.there)


TestRouters = Routers.TestCase
