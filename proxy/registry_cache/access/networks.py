"""Sets of addresses, as settings name them."""

import ipaddress
from collections.abc import Iterable

_Network = ipaddress.IPv4Network | ipaddress.IPv6Network
LOOPBACK = ("127.0.0.0/8", "::1/128")


class Networks:
    """Whether an address is in one of some networks.

    Args:
        words: networks such as ``10.1.0.0/16``, or single addresses.

    Raises:
        ValueError: one of them is neither; the text says which.
    """

    def __init__(self, words: Iterable[str]) -> None:
        self._networks: tuple[_Network, ...] = tuple(map(ipaddress.ip_network, words))

    def __contains__(self, address: str) -> bool:
        """Whether *address* is in one of them. What is no address is in none."""
        try:
            # The zone (fe80::1%eth0) is this host's name for a link, and says nothing of who is there.
            found = ipaddress.ip_address(address.partition("%")[0])
        except ValueError:
            return False
        if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is not None:
            found = found.ipv4_mapped  # an IPv4 client of a socket for both
        return any(found in network for network in self._networks)
