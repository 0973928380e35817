"""What `ps` says of a node, of a model that does not start, and of predictions."""

import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from woodfrog.cli import commands
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


def test_a_model_is_known_once_it_is_listed_over_each_of_many_connections() -> None:
    """Of several routers the kernel lets us reach any."""
    connections: list[tuple[str, int]] = []

    class Listed(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            connections.append(self.client_address)
            self.send_response(200 if len(connections) % 4 else 404)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Listed) as server:
        threading.Thread(target=server.serve_forever).start()
        url = f"http://127.0.0.1:{server.server_port}/v1/models/frog"
        assert commands._answers(url, 3)
        assert not commands._answers(url, 16)
        assert len({*connections}) == len(connections) == 4
        server.shutdown()
