"""Orders of a scheduler whose term is over."""

import time

import pytest

from woodfrog.errors import FailedPrecondition
from woodfrog.node_agent import fence
from woodfrog.node_agent.fence import Fence


def test_an_older_term_is_refused_once_a_newer_was_heard() -> None:
    found = Fence()
    for term in (5, 5, 9, 0, 9):
        found.check(term)
    with pytest.raises(FailedPrecondition) as refused:
        found.check(5)
    assert refused.value.reason == "TERM_OVER"
    assert "term 9 leads" in refused.value.message
    found.check(0)  # anybody's order


def test_terms_that_count_anew_are_heard_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    found = Fence()
    found.check(9)
    later = time.monotonic() + fence.MEMORY_S
    monkeypatch.setattr(time, "monotonic", lambda: later)
    found.check(5)
    with pytest.raises(FailedPrecondition):
        found.check(4)
