"""In what order requests for one model get its slots: by turns of the tenants that wait, each by its share. Pure.

Start-time fair queueing (Goyal, Vin, Cheng 1996): a request's turn is the later of when its tenant's former one is through,
at the tenant's share, and of what is served now. So who asks little is served next, however many of others wait.
"""

from woodfrog.model.placement import Caller


class Turns:
    """Of one model; to be forgotten when nobody waits."""

    def __init__(self) -> None:
        self._through: dict[str, float] = {}  # by tenant: when all its requests are
        self._served = 1.0  # 0 is no turn

    def take(self, caller: Caller) -> float:
        turn = max(self._served, self._through.get(caller.tenant, 0.0))
        self._through[caller.tenant] = turn + 1 / caller.share
        return turn

    def served(self, turn: float) -> None:
        self._served = max(self._served, turn)
