from woodfrog.coordination.connection import OPTIONS


def test_etcd_tolerates_our_pings() -> None:
    """It ends connections that are pinged more often than every 5 s, or while no call is open."""
    options = dict(OPTIONS)
    interval_ms = options["grpc.keepalive_time_ms"]
    assert isinstance(interval_ms, int)
    assert interval_ms > 5000
    assert options["grpc.keepalive_permit_without_calls"] == 0
    assert options["grpc.lb_policy_name"] == "round_robin"
