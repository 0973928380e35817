from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from woodfrog.model.placement import ReadyReplica, ReplicaUsage
from woodfrog.router.replicas import ReplicaTable


def replica(name: str, model: str = "m", slots: int = 2) -> ReadyReplica:
    return ReadyReplica(name, model, "node", f"/run/{name}.sock", slots)


def picked(table: ReplicaTable, model: str = "m") -> str | None:
    found = table.pick(model)
    return found.replica_id if found else None


def test_picks_the_least_busy_and_of_equals_the_first() -> None:
    table = ReplicaTable()
    table.apply([replica("b"), replica("a"), replica("other", "x")], ())
    assert picked(table) == "b"
    table.start("b")
    assert picked(table) == "a"
    table.start("a")
    assert picked(table) == "b"


def test_a_full_replica_is_not_picked() -> None:
    table = ReplicaTable()
    table.apply([replica("a", slots=1)], ())
    table.start("a")
    assert picked(table) is None
    table.end("a")
    assert picked(table) == "a"


def test_slots_that_other_routers_use_are_not_free() -> None:
    table = ReplicaTable()
    table.apply([replica("a"), replica("b")], ())
    table.hear([ReplicaUsage("a", 1), ReplicaUsage("b", 2)], full=True)
    assert picked(table) == "a"
    table.start("a")
    assert picked(table) is None
    table.hear([ReplicaUsage("b", 1)], full=False)
    assert picked(table) == "b"
    table.hear([], full=True)
    assert picked(table) == "b", "a runs one of ours still"


def test_a_slot_that_comes_free_is_told_at_once() -> None:
    """Somebody may wait for it, at another router too."""
    table = ReplicaTable()
    table.apply([replica("a", slots=3)], ())
    table.hear([ReplicaUsage("a", 1)], full=True)
    table.start("a")
    table.report()
    table.start("a")
    assert table.urgent, "it is full"
    table.report()
    table.end("a")
    assert table.urgent
    table.start("a")
    assert not table.urgent, "as it was told"
    table.end("a")
    table.report()
    table.end("a")
    table.start("a")
    assert not table.urgent


def test_excluded_and_suspects_are_passed_over() -> None:
    table = ReplicaTable()
    table.apply([replica("a"), replica("b")], ())
    assert table.pick("m", {"a"}) == replica("b")
    table.suspect("a")
    assert picked(table) == "b"
    table.suspect("b")
    assert picked(table) is None
    table.trust("b")
    assert picked(table) == "b"
    table.apply([replica("a")], ())
    table.start("b")
    assert picked(table) == "a", "the scheduler offered it again"


def test_what_is_gone_is_returned() -> None:
    table = ReplicaTable()
    table.apply([replica("a"), replica("b")], ())
    assert table.apply([replica("b")], ["a"]) == [replica("a")]
    assert list(table.ids) == ["b"]
    assert table.apply((), ["b", "unknown"]) == [replica("b")]
    assert table.pick("m") is None


def test_a_slot_of_a_replica_that_others_filled_is_told_at_once() -> None:
    """Whether it was full when it was last told does not matter: the others filled it since."""
    table = ReplicaTable()
    table.apply([replica("a", slots=4)], ())
    table.start("a")
    table.start("a")
    table.report()
    table.hear([ReplicaUsage("a", 2)], full=False)
    assert not table.urgent, "nothing is to be told"
    table.end("a")
    assert table.urgent
    table.hear([ReplicaUsage("a", 1)], full=False)
    assert not table.urgent, "there was a slot all the same"
    table.hear([ReplicaUsage("a", 2)], full=True)
    assert table.urgent
    table.hear([], full=True)
    assert not table.urgent


def test_counts_outlive_the_replica() -> None:
    """A replica that leaves, or was acquired before it was announced, still runs what was sent to it."""
    table = ReplicaTable()
    table.start("a")
    table.apply([replica("a", slots=1)], ())
    assert picked(table) is None
    table.apply((), ["a"])
    table.end("a")
    assert table.report() == [ReplicaUsage("a", 0, 1)]


def test_reports_what_changed_and_urgently_between_idle_and_busy() -> None:
    table = ReplicaTable()
    table.start("a")
    assert table.urgent
    assert table.report() == [ReplicaUsage("a", 1, 1)]
    assert not table.urgent
    assert table.report() == []
    table.start("a")
    assert not table.urgent
    table.end("a")
    assert table.report() == [ReplicaUsage("a", 1, 1)], "it started one, though as many run"
    table.end("a")
    assert table.urgent
    assert table.report() == [ReplicaUsage("a", 0, 0)]


def test_what_is_as_it_was_reported_is_not_urgent() -> None:
    table = ReplicaTable()
    table.start("a")
    table.report()
    table.end("a")
    table.start("a")
    assert not table.urgent, "busy again"
    table.end("a")
    assert table.urgent
    table.report()
    table.start("a")
    table.end("a")
    assert not table.urgent, "idle again"
    assert table.report() == [ReplicaUsage("a", 0, 1)]


def test_all_that_runs_is_told_without_starts() -> None:
    table = ReplicaTable()
    table.start("b")
    table.report()
    table.start("a")
    assert table.running() == [ReplicaUsage("a", 1, 0), ReplicaUsage("b", 1, 0)]
    assert table.report() == [ReplicaUsage("a", 1, 1)], "the next report has it all the same"


NAMES = st.sampled_from("abcd")


class Tables(RuleBasedStateMachine):
    """Whatever comes in whatever order: no slot is promised twice, and the scheduler can count along."""

    def __init__(self) -> None:
        super().__init__()
        self.table = ReplicaTable()
        self.running: list[str] = []
        self.elsewhere: dict[str, int] = {}
        self.reported: dict[str, int] = {}
        self.started = self.told = 0

    @rule(ready=st.sets(NAMES), gone=st.sets(NAMES))
    def update(self, ready: set[str], gone: set[str]) -> None:
        self.table.apply(map(replica, sorted(ready)), sorted(gone - ready))

    @rule(excluded=st.sets(NAMES))
    def forward(self, excluded: set[str]) -> None:
        found = self.table.pick("m", excluded)
        if found is not None:
            others = self.elsewhere.get(found.replica_id, 0)
            assert self.running.count(found.replica_id) + others < found.slots
            assert found.replica_id not in excluded
            self.start(found.replica_id)

    @rule(name=NAMES)
    def start(self, name: str) -> None:
        self.table.start(name)
        self.running.append(name)
        self.started += 1

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(self.running))
        self.running.remove(name)
        self.table.end(name)

    @rule(counts=st.dictionaries(NAMES, st.integers(0, 2)), full=st.booleans())
    def hear(self, counts: dict[str, int], full: bool) -> None:
        self.elsewhere = counts if full else self.elsewhere | counts
        self.table.hear([ReplicaUsage(name, n) for name, n in counts.items()], full=full)

    @rule(name=NAMES, suspect=st.booleans())
    def judge(self, name: str, suspect: bool) -> None:
        (self.table.suspect if suspect else self.table.trust)(name)

    @rule(anew=st.booleans())
    def report(self, anew: bool) -> None:
        if anew:
            self.reported = {each.replica_id: each.active for each in self.table.running()}
        for usage in self.table.report():
            self.reported[usage.replica_id] = usage.active
            self.told += usage.started
        counts = {name: self.running.count(name) for name in self.running}
        assert {name: n for name, n in self.reported.items() if n} == counts
        assert self.told == self.started

    @invariant()
    def holds(self) -> None:
        self.table.check()


TestTables = Tables.TestCase
