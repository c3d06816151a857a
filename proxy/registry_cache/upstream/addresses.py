"""Which addresses upstream's answers may lead to: a public registry has no business in the host's own network.

Redirects, token services and links are upstream's words. Each address is checked when it is connected to, after the
name has been resolved, so that a name cannot change its mind in between (DNS rebinding).
"""

import ipaddress
import socket
from collections.abc import Collection
from urllib.parse import urlsplit

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

# Addresses whose last 32 bits are an IPv4 address: NAT64, a network's own NAT64 (RFC 8215), translated (RFC 2765), and
# the deprecated compatible ones.
_ENDS_IN_IPV4 = [ipaddress.IPv6Network(text) for text in ("64:ff9b::/96", "64:ff9b:1::/48", "::ffff:0:0:0/96", "::/96")]
_IPV6_OF_THE_INTERNET = ipaddress.IPv6Network("2000::/3")  # what else there is was never given to anybody, or is local
# A network's own: RFC 1918, RFC 6598 (carrier-grade NAT), RFC 4193.
_PRIVATE = [
    ipaddress.ip_network(text)
    for text in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7")
]


class AddressRefused(OSError):
    """Nothing was sent: the address is one that upstream may not lead to."""


def _meant(address: Address) -> Address:
    """The IPv4 address inside an IPv6 one: the kernel or a gateway goes there."""
    if isinstance(address, ipaddress.IPv4Address) or address.is_loopback or address.is_unspecified:
        return address
    embedded = address.ipv4_mapped or address.sixtofour or (address.teredo[1] if address.teredo else None)
    if embedded is None and any(address in network for network in _ENDS_IN_IPV4):
        embedded = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return embedded or address


def parse_address(text: str) -> Address | None:
    """An address literal, with or without a zone; None for a name."""
    try:
        return ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None


def host_of(named: str) -> str:
    """The host of HOST or HOST:PORT."""
    return named if parse_address(named) is not None else urlsplit(f"//{named}").hostname or ""


def _written(host: str) -> str | None:
    """The address that *host* is, in any of the forms that resolvers and proxies take for one; None for a name.

    2130706433, 0x7f.1 and 0177.0.0.1 are all 127.0.0.1.
    """
    host = host.rstrip(".")
    if parse_address(host) is not None:
        return host
    try:
        return socket.inet_ntoa(socket.inet_aton(host)) if not host.strip("0123456789abcdefxABCDEFX.") else None
    except OSError:
        return None


def _is_public(address: Address) -> bool:
    address = _meant(address)
    if isinstance(address, ipaddress.IPv6Address) and address not in _IPV6_OF_THE_INTERNET:
        return False
    return address.is_global and not address.is_multicast


def _is_private(address: Address) -> bool:
    """A network's own: not this host, not its link, nothing without a meaning."""
    return any(_meant(address) in network for network in _PRIVATE)


class AddressRules:
    """See the module. Upstream's own host, and those that the operator names, may have any address.

    Where upstream itself was found at a private address, other private ones are allowed, too; where it was found on
    this host, anything on this host as well. The link's own addresses (a cloud's metadata service) never are.

    Args:
        upstream: its URL.
        named_hosts: hosts, or addresses, that may be anywhere.
        public_only: a client has named upstream, not the operator: it and what it leads to has to be asked over TLS,
            and at public addresses.
    """

    def __init__(self, upstream: str, named_hosts: Collection[str] = (), *, public_only: bool = False) -> None:
        self._public_only = public_only
        self._own = (urlsplit(upstream).hostname or "").lower()
        self._named = {host.lower().strip("[]") for host in named_hosts} | {self._own}
        self._was_public = False
        self._is_loopback = self._is_private = False
        literal = parse_address(self._own)
        if literal is not None:
            self._found_upstream(_meant(literal))

    def check(self, host: str, address: str) -> None:
        """Let a connection to *address*, where *host* was found, be made.

        Raises:
            AddressRefused: it may not.
        """
        name, found = host.lower().strip("[]").rstrip("."), parse_address(address)
        if found is None:
            raise AddressRefused(f"{host} has an address that is none")
        if self._public_only:
            if not _is_public(found):
                raise AddressRefused(f"{host} is at {found}: who is not listed is asked at public addresses only")
            return
        if name == self._own:
            self._found_upstream(_meant(found))
        if _is_public(found) or name in self._named or str(found) in self._named or self._is_near_upstream(found):
            return
        raise AddressRefused(
            f"{host} is at {found}, where upstream may not lead to: if that is meant, name the host in PRIVATE_HOSTS"
        )

    def check_url(self, url: str) -> None:
        """As :meth:`check`, for a URL that names an address itself: a forward proxy would go there for us.

        Raises:
            AddressRefused: it may not be asked.
        """
        try:
            parts = urlsplit(url)
            host = parts.hostname or ""
        except ValueError as error:
            raise AddressRefused("not a URL that can be asked") from error
        if self._public_only and parts.scheme != "https":
            raise AddressRefused(f"{host} would be asked without TLS: who is not listed is asked by https only")
        if (written := _written(host)) is not None:
            self.check(host, written)
        elif host.lower().rstrip(".") == "localhost" or host.lower().rstrip(".").endswith(".localhost"):
            self.check(host, "127.0.0.1")

    def _found_upstream(self, address: Address) -> None:
        """Whoever was found at a public address once is public, whatever its name resolves to beside or after that."""
        self._was_public = self._was_public or not (address.is_loopback or _is_private(address))
        self._is_loopback = address.is_loopback and not self._was_public
        self._is_private = not self._was_public

    def _is_near_upstream(self, found: Address) -> bool:
        return (self._is_private and _is_private(found)) or (self._is_loopback and _meant(found).is_loopback)
