"""Sets of addresses, as settings name them."""

import ipaddress
from collections.abc import Iterable

_Network = ipaddress.IPv4Network | ipaddress.IPv6Network
LOOPBACK = ("127.0.0.0/8", "::1/128")
_MAPPED_PREFIX = 96  # ::ffff:0:0/96, IPv4 addresses as a socket for both sees them
_IPV6_PREFIX = 64  # what one host is given, to choose its addresses from


class Networks:
    """Whether an address is in one of some networks.

    Args:
        words: networks such as ``10.1.0.0/16``, or single addresses.

    Raises:
        ValueError: one of them is neither; the text says which.
    """

    def __init__(self, words: Iterable[str]) -> None:
        self._networks: tuple[_Network, ...] = tuple(map(network_from, words))

    def __contains__(self, address: str) -> bool:
        """Whether *address* is in one of them. What is no address is in none."""
        found = _parsed(address)
        return found is not None and any(found in network for network in self._networks)


def network_from(word: str) -> _Network:
    """The network that *word* is: of IPv4 addresses, also where it is written as one of mapped ones.

    Raises:
        ValueError: it is none.
    """
    network = ipaddress.ip_network(word)
    mapped = getattr(network.network_address, "ipv4_mapped", None)
    if mapped is None or network.prefixlen < _MAPPED_PREFIX:
        return network
    return ipaddress.ip_network((mapped, network.prefixlen - _MAPPED_PREFIX))


def network_of(address: str) -> str:
    """Whom an address counts for: an IPv6 host has a network to choose from. What is no address stays as it is."""
    found = _parsed(address)
    if isinstance(found, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((found, _IPV6_PREFIX), strict=False))
    return address if found is None else str(found)


def is_loopback(address: str) -> bool:
    """Whether who is there is on this host."""
    found = _parsed(address)
    return found is not None and found.is_loopback


def _parsed(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        # The zone (fe80::1%eth0) is this host's name for a link, and says nothing of who is there.
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return None
    if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is not None:
        return found.ipv4_mapped  # an IPv4 client of a socket for both
    return found
