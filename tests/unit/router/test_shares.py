"""As much as it leaves free for others."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from woodfrog.router.shares import Shares, peer


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 9), st.booleans())))
def test_nobody_has_more_than_is_left_for_others(steps: list[tuple[str, int, bool]]) -> None:
    shares, held = Shares(20), dict.fromkeys("abc", 0)
    for who, amount, takes in steps:
        if takes:
            free = 20 - shares.held
            if shares.take(who, amount):
                held[who] += amount
                assert held[who] <= free
            else:
                assert held[who] + amount > free
        else:
            amount = min(amount, held[who])
            shares.give(who, amount)
            held[who] -= amount
        assert {name: shares.of(name) for name in held} == held
        assert shares.held == sum(held.values()) <= 20


def test_who_comes_next_finds_something() -> None:
    shares = Shares(1024)
    while shares.take("a"):
        pass
    while shares.take("b"):
        pass
    assert (shares.of("a"), shares.of("b")) == (512, 256)
    assert shares.take("c")


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("2001:db8::1", "2001:db8::"),
        ("2001:db8::ffff:0:0:1", "2001:db8::"),
        ("2001:db8:0:1::1", "2001:db8:0:1::"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("fe80::1%eth0", "fe80::"),
        ("nonsense:", "nonsense:"),
        ("", ""),
    ],
)
def test_peers(host: str, expected: str) -> None:
    assert peer(host) == expected
