"""The log that lives in memory."""

import logging

from woodfrog.replica.logs import LINES_MAX, LogRing


def test_lines_keep_their_fields_and_the_oldest_go() -> None:
    ring = LogRing()
    logger = logging.Logger("frog")
    logger.addHandler(ring)
    for number in range(LINES_MAX + 1):
        logger.info("croaked", extra={"number": number})
    lines = ring.lines(LINES_MAX + 1)
    assert len(lines) == LINES_MAX
    assert "INFO frog: croaked number=1" in lines[0]
    assert ring.lines(1) == lines[-1:]
