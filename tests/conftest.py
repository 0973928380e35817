"""What all tests begin with."""

import signal


def pytest_configure() -> None:
    """Programs that tests interrupt hear it also where these run in the background, and so ignore it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
