"""What `ps` says of a node, of a model that does not start, and of predictions."""

from dataclasses import replace

from woodfrog.cli.commands import node_line, predictions_line, trouble_line
from woodfrog.model.node import GpuFacts
from woodfrog.model.placement import ModelView, NodeView, Predictions
from woodfrog.model.rung import Rung


def test_a_node_shows_its_memory_and_each_gpu() -> None:
    node = NodeView("a", 16_000_000_000, 4_000_000_000)
    assert node_line(node) == "node a: 4.0 GB of 16.0 GB promised"
    drained = replace(node, draining=True)
    assert node_line(drained) == "node a: 4.0 GB of 16.0 GB promised, draining"
    gpus = tuple(GpuFacts(f"GPU-{n}", 80_000_000_000, n * 10**9, ()) for n in (0, 7))
    both = NodeView("a", 16_000_000_000, 4_000_000_000, gpus)
    assert node_line(both) == (
        "node a: 4.0 GB of 16.0 GB; GPU-0 0 B of 80.0 GB; GPU-7 7.0 GB of 80.0 GB promised"
    )


def test_a_model_that_does_not_start_says_why_and_since_when() -> None:
    model = ModelView("frog", Rung.ABSENT, (), None, None, "it broke", 12.3)
    assert trouble_line(model) == "frog did not start 12 s ago: it broke"
    now = replace(model, trouble="no node has room", trouble_age_s=None)
    assert trouble_line(now) == "frog cannot start: no node has room"


def test_of_few_climbs_nine_in_ten_are_not_told() -> None:
    one, many = Predictions(1, 0.53), Predictions(10, 0.246)
    assert predictions_line(one) == "the last 1 predicted climb: off by 53% at most"
    assert predictions_line(many) == (
        "nine in ten of the last 10 predicted climbs: off by 25% at most"
    )
