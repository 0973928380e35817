"""How much one may have of what all share: as much as it leaves free for others. Pure.

So who comes next always finds something, and one alone has half.
"""

import ipaddress

_HOST_BITS_V6 = 64  # that one customer has to choose from


class Shares:
    def __init__(self, whole: int) -> None:
        self._whole = whole
        self.held = 0  #: by all together
        self._of: dict[str, int] = {}  # never 0

    def of(self, who: str) -> int:
        return self._of.get(who, 0)

    def take(self, who: str, amount: int = 1) -> bool:
        """Whether it has it now; then it is to be given back."""
        own = self._of.get(who, 0) + amount
        if own > self._whole - self.held:
            return False
        if own:
            self._of[who] = own
        self.held += amount
        return True

    def give(self, who: str, amount: int = 1) -> None:
        own = self._of.pop(who, 0) - amount
        if own:
            self._of[who] = own
        self.held -= amount


def peer(host: str) -> str:
    """An address as one who asks: of IPv6 the network, since its hosts cost nothing."""
    if ":" not in host:
        return host
    try:
        address = ipaddress.IPv6Address(host)
    except ValueError:
        return host
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.IPv6Address(int(address) >> _HOST_BITS_V6 << _HOST_BITS_V6))
