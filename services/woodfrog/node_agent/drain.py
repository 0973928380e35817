"""Whether this node drains, kept in a file: who drained it may restart it, and it drains on."""

import logging
from pathlib import Path

from woodfrog.errors import Unavailable
from woodfrog.node_agent.board import Board

log = logging.getLogger(__name__)
FILE = "draining"


class Drain:
    def __init__(self, board: Board, state_dir: Path) -> None:
        """As it was left."""
        self._board = board
        self._file = state_dir / FILE
        if self._file.exists():
            board.set_draining(True)
            log.info("node still drains")

    def set(self, draining: bool) -> None:
        """Raises Unavailable DISK_FAILED, and nothing changed."""
        try:
            if draining:
                self._file.touch()
            else:
                self._file.unlink(missing_ok=True)
        except OSError as error:
            raise Unavailable(
                "DISK_FAILED",
                f"{self._file} cannot be written ({error.strerror}), so a restart would forget it; mend the disk",
            ) from None
        self._board.set_draining(draining)
        log.info("node drains" if draining else "node takes replicas again")
