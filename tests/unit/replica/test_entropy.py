"""A clone begins with the state of every generator; thaw must part it from its siblings.

OpenSSL notices a fork, though not a restore, so that only a real restore can show its part.
"""

import random

from woodfrog.replica import entropy


def test_a_clone_that_is_reseeded_draws_something_else() -> None:
    state = random.getstate()
    without = []
    for _ in range(2):
        random.setstate(state)
        without.append(entropy.draw()["random"])
    assert without[0] == without[1]
    parted = []
    for _ in range(2):
        random.setstate(state)
        entropy.reseed(b"the agent gave both the same")
        parted.append(entropy.draw()["random"])
    assert len({*without, *parted}) == 3


def test_draws_name_what_is_not_loaded() -> None:
    draw = entropy.draw()
    assert set(draw) == {"openssl", "random", "numpy", "torch", "urandom"}
    assert draw["openssl"] != entropy.draw()["openssl"]
