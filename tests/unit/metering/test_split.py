"""Who used what nobody's replicas held, and what would have been held by models that never sleep."""

import math

from hypothesis import given, settings
from hypothesis import strategies as st

from woodfrog.metering import HOUR_S, Row, Usage
from woodfrog.metering.split import Line, Standing, grouped, lines
from woodfrog.metering.usage import fold_before

NOW_HOUR = 24 * 20_000 + 7
TENANTS = ("", "a", "b", "c")
FLOATS = st.floats(0, 1e15)
ROWS = st.lists(
    st.builds(
        Row,
        st.sampled_from([NOW_HOUR, NOW_HOUR - 1, NOW_HOUR - 24 * 90, NOW_HOUR - 24 * 90 + 1]),
        st.sampled_from(TENANTS),
        st.sampled_from(["m", "n"]),
        st.builds(
            Usage,
            requests=st.integers(0, 99),
            slot_s=st.one_of(st.just(0.0), FLOATS),
            gpu_s=FLOATS,
            host_byte_s=FLOATS,
        ),
    ),
    max_size=20,
)


def found(rows: list[Row], *standing: Standing, since: int = 0) -> dict[tuple[int, str, str], Line]:
    return lines(rows, standing, since, (NOW_HOUR + 0.5) * HOUR_S, NOW_HOUR)


def whole(of: dict[tuple[int, str, str], Line]) -> Line:
    return grouped(of, lambda key: ())[()]


@given(ROWS)
@settings(deadline=None)
def test_the_parts_sum_to_the_whole(rows: list[Row]) -> None:
    parts = found(rows)
    for name in Usage.__slots__:
        expected = math.fsum(getattr(row.usage, name) for row in rows)
        values = [getattr(line.usage, name) for line in parts.values()]
        assert math.isclose(math.fsum(values), expected, rel_tol=1e-9, abs_tol=1e-9)
        assert all(value >= 0 for value in values)


def test_nobodys_replicas_are_of_those_who_had_slots_in_that_hour() -> None:
    hour = NOW_HOUR
    parts = found(
        [
            Row(hour, "", "m", Usage(gpu_s=80.0, host_byte_s=8.0)),
            Row(hour - 1, "", "m", Usage(gpu_s=7.0)),
            Row(hour, "a", "m", Usage(requests=1, slot_s=30.0)),
            Row(hour, "b", "m", Usage(requests=2, slot_s=10.0)),
            Row(hour, "a", "own", Usage(gpu_s=5.0)),
        ]
    )
    assert {key: line.usage for key, line in parts.items()} == {
        (hour, "a", "m"): Usage(requests=1, slot_s=30.0, gpu_s=60.0, host_byte_s=6.0),
        (hour, "b", "m"): Usage(requests=2, slot_s=10.0, gpu_s=20.0, host_byte_s=2.0),
        (hour - 1, "", "m"): Usage(gpu_s=7.0),
        (hour, "a", "own"): Usage(gpu_s=5.0),
    }


def test_always_on_is_one_replica_since_the_model_was_added() -> None:
    since = (NOW_HOUR - 2 + 0.25) * HOUR_S
    parts = found([Row(NOW_HOUR, "a", "m", Usage(slot_s=1.0))], Standing("", "m", since, 0.5, 10))
    seconds = {
        (hour, tenant): line.always_on.gpu_s * 2 for (hour, tenant, _), line in parts.items()
    }
    assert seconds == {
        (NOW_HOUR - 2, ""): 0.75 * HOUR_S,
        (NOW_HOUR - 1, ""): HOUR_S,
        (NOW_HOUR, "a"): 0.5 * HOUR_S,
    }
    assert whole(parts).always_on == Usage(gpu_s=1.125 * HOUR_S, host_byte_s=22.5 * HOUR_S)


@given(st.integers(0, 24 * 200), st.floats(0, 24 * 200))
@settings(max_examples=40, deadline=None)
def test_always_on_is_never_counted_twice_where_hours_became_days(ago: int, age: float) -> None:
    """A span of long ago begins with a day, as the command has it."""
    since = NOW_HOUR - ago
    since -= since % 24 if since < fold_before(NOW_HOUR) else 0
    born = (NOW_HOUR - age) * HOUR_S
    line = whole(found([], Standing("", "m", born, 1.0, 0), since=since))
    expected = (NOW_HOUR + 0.5) * HOUR_S - max(born, since * HOUR_S)
    assert math.isclose(line.always_on.gpu_s, expected, abs_tol=0.01)
