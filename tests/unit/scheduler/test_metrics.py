"""What a scrape says of climbs."""

import asyncio
import urllib.request
from contextlib import closing
from dataclasses import replace

from tests.service.processes import free_addresses
from tests.unit.scheduler.cell import facts, replica, spec

from woodfrog.model.node import Climbed
from woodfrog.model.placement import ClusterView, ModelView
from woodfrog.model.rung import Rung
from woodfrog.scheduler import events as on
from woodfrog.scheduler.metrics import Metrics

FROG = spec()


def order(rung: Rung, predicted_s: float) -> on.StartClimb:
    return on.StartClimb("c", "c.1", "a", FROG, None, None, rung, predicted_s, 1)


def finished(rung: Rung) -> on.ClimbFinished:
    return on.ClimbFinished("c.1", Climbed(replica("f1", FROG, "a"), rung))


def test_climbs_by_outcome_and_how_far_off_predictions_were() -> None:
    metrics = Metrics()
    metrics.ended(order(Rung.FROZEN, 1.5), finished(Rung.FROZEN), 2.0)
    metrics.ended(order(Rung.FROZEN, 1.5), finished(Rung.ABSENT), 20.0)  # its snapshot was bad
    metrics.ended(order(Rung.PARKED, 0.1), on.ClimbRefused("c.1", facts("a"), "full"), 0.1)
    metrics.ended(order(Rung.PARKED, 0.1), on.ClimbFailed("c.1", "LOST", "it broke"), 0.1)
    value = metrics.registry.get_sample_value
    for rung, outcome in (
        ("frozen", "finished"),
        ("absent", "finished"),
        ("parked", "refused"),
        ("parked", "failed"),
    ):
        labels = {"rung": rung, "outcome": outcome}
        assert value("woodfrog_scheduler_climbs_total", labels) == 1
    error = "woodfrog_scheduler_prediction_error_ratio"
    assert value(error + "_sum", {"rung": "frozen"}) == 0.25
    assert value(error + "_count", {"rung": "frozen"}) == 1
    assert value(error + "_count", {"rung": "absent"}) is None


def test_each_models_climbs_and_next_wake_up_to_a_number_of_models() -> None:
    metrics = Metrics()
    for number in range(1001):
        order_of = replace(order(Rung.FROZEN, 1.0), spec=replace(FROG, name=f"m{number}"))
        metrics.ended(order_of, finished(Rung.FROZEN), 2.0)
    value = metrics.registry.get_sample_value
    taken = "woodfrog_scheduler_model_climb_seconds"
    for model in ("m0", "m999", "others"):
        assert value(taken + "_sum", {"model": model, "rung": "frozen"}) == 2.0
    assert value(taken + "_sum", {"model": "m1000", "rung": "frozen"}) is None
    wakes = (
        ModelView("a", Rung.FROZEN, (), None, 250.0),
        ModelView("b", Rung.ABSENT, (), None, None),
    )
    metrics.view = lambda: ClusterView(wakes, ())
    metrics.look()
    assert value("woodfrog_scheduler_model_predicted_seconds", {"model": "a"}) == 0.25
    assert value("woodfrog_scheduler_model_predicted_seconds", {"model": "b"}) is None


async def test_they_are_served_where_that_is_wanted() -> None:
    metrics, (address,) = Metrics(), free_addresses(1)
    metrics.ended(order(Rung.FROZEN, 1.0), finished(Rung.FROZEN), 1.0)
    metrics.waiting = lambda: 7

    def scraped() -> bytes:
        with closing(urllib.request.urlopen(f"http://{address}/metrics", timeout=5)) as answer:
            said: bytes = answer.read()
        return said

    for _ in range(2):  # the port is free again afterwards
        with metrics.served(address):
            told = await asyncio.to_thread(scraped)
        assert b'climbs_total{outcome="finished",rung="frozen"} 1.0' in told
        assert b"woodfrog_scheduler_waiting_requests 7.0" in told
    with metrics.served(""):
        pass
