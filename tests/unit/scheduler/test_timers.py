"""The earliest time wins, and what is dropped never comes up."""

from hypothesis import given
from hypothesis import strategies as st

from woodfrog.scheduler.timers import Timers


def test_an_earlier_time_takes_the_place_of_a_later_one() -> None:
    timers = Timers()
    timers.set(("replica", "f1"), 5.0)
    timers.set(("replica", "f1"), 9.0)
    timers.set(("replica", "f1"), 3.0)
    assert timers.next() == 3.0
    assert timers.due(2.9) == []
    assert timers.due(3.0) == [("replica", "f1")]
    assert timers.next() is None


@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.integers(0, 9), st.sampled_from(["set", "drop"])),
        max_size=200,
    )
)
def test_it_does_what_a_plain_dict_does(steps: list[tuple[str, int, str]]) -> None:
    timers = Timers()
    plain: dict[str, float] = {}
    for name, when, verb in steps:
        if verb == "set":
            timers.set(("k", name), float(when))
            plain[name] = min(plain.get(name, 99.0), float(when))
        else:
            timers.drop(("k", name))
            plain.pop(name, None)
        assert timers.next() == min(plain.values(), default=None)
    due = timers.due(4.0)
    assert sorted(due) == sorted(("k", name) for name, when in plain.items() if when <= 4.0)
    assert [plain[str(name)] for _, name in due] == sorted(plain[str(name)] for _, name in due)


def test_dropped_entries_do_not_pile_up() -> None:
    timers = Timers()
    for number in range(10_000):
        timers.set(("ticket", str(number)), 1e6)
        timers.drop(("ticket", str(number)))
    assert len(timers._heap) < 100
