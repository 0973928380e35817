"""Keeps the node's ledger: charges what replicas hold at each change, and writes it every few seconds."""

import asyncio

from woodfrog.clock import Clock
from woodfrog.metering import Ledger
from woodfrog.node_agent.board import Board
from woodfrog.node_agent.meter import Meter, holdings
from woodfrog.node_agent.state import NodeState

_TICK_S = 10.0  # what a kill -9 of the agent, with which its replicas end, leaves uncharged at most


class Charges:
    def __init__(self, board: Board, state: NodeState, ledger: Ledger, clock: Clock) -> None:
        self._board = board
        self._state = state
        self._ledger = ledger
        self._clock = clock
        self._meter = Meter(clock.now())
        board.changed = self._charge

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(_TICK_S)
            self.settle()

    def settle(self) -> None:
        """Brings the ledger up to now."""
        self._charge()
        self._ledger.add(self._meter.take())

    def _charge(self) -> None:
        tenants = {replica_id: spec.tenant for replica_id, spec in self._board.specs.items()}
        now, wall = self._clock.now(), self._clock.wall()
        self._meter.hold(holdings(self._state), tenants, now, wall)
