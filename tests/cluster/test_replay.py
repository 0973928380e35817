"""Many requests to several nodes, one of which dies: nobody sees an error, and restores go where the pages are."""

import random
from pathlib import Path

from loadtest import simulated_load
from loadtest.lab import laboratory
from loadtest.replay import prepare, replay

NODES, MODELS, SECONDS, REQUESTS_S = 2, 3, 10.0, 6.0


def test_a_replayed_trace_with_a_node_killed_has_no_failed_request(tmp_path: Path) -> None:
    chance = random.Random(3)
    arrivals = simulated_load.dealt(
        simulated_load.made(chance, REQUESTS_S), MODELS, SECONDS, chance
    )
    with laboratory(NODES) as lab:
        prepare(lab, MODELS, tmp_path)
        done = replay(lab, arrivals, SECONDS, kill=True)
    assert len(done.answers) == len(arrivals) > MODELS
    assert done.failed == []
    assert done.outage.kills >= 2
    # A node whose pages are a little hotter may be busy; one without any is never chosen instead of one that has them.
    assert [each for each in done.strayed if not each.pages_bytes] == []
    assert [each for each in done.restores if each.pages_bytes and not each.exception]
