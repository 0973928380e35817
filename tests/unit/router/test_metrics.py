"""Clients cannot make series without end."""

from prometheus_client import generate_latest

from woodfrog.metering import Usage
from woodfrog.router.metrics import Metrics


def test_what_clients_and_engines_name_shares_a_series_in_the_end() -> None:
    metrics = Metrics()
    for number in range(3000):
        metrics.refused(f"REASON_{number}")
        metrics.used(f"tenant-{number}", Usage(requests=1))
    text = generate_latest(metrics.registry).decode()
    assert text.count("woodfrog_router_refusals_total{") == 201
    assert text.count('unit="requests"') <= 2 * 1001  # each with the time of its creation
    assert 'woodfrog_router_refusals_total{reason="others"} 2800.0' in text
