"""How upstream is reached, whichever client does it: whom to trust, where not to go, how long to wait."""

import ssl
from collections.abc import Callable
from typing import NamedTuple
from urllib.parse import urlsplit

from registry_cache import __version__
from registry_cache.upstream.addresses import AddressRules
from registry_cache.upstream.forward import ForwardProxy, proxy_for
from registry_cache.upstream.redact import Redactor

HEADERS = {"User-Agent": f"registry-cache/{__version__}", "Accept": "*/*", "Accept-Encoding": "identity"}


class Dialling(NamedTuple):
    """What both clients of a registry share.

    Attributes:
        tls: for every connection, the token service's and the CDN's too.
        own_tls: with the certificate to show to *own_hosts* (some with a port), and to nobody else: it says who asks.
        proxy: the forward proxy for a URL.
    """

    tls: ssl.SSLContext
    addresses: AddressRules
    redactor: Redactor
    connect_timeout_seconds: float
    read_timeout_seconds: float
    proxy: Callable[[str], ForwardProxy | None] = proxy_for
    own_tls: ssl.SSLContext | None = None
    own_hosts: frozenset[str] = frozenset()

    @property
    def answer_timeout_seconds(self) -> float:
        """The longest that an answer may take: what trickles in is as bad as what stalls."""
        return self.connect_timeout_seconds + 2 * self.read_timeout_seconds

    def tls_for(self, url: str) -> ssl.SSLContext:
        """For a connection to the host of *url*."""
        parts = urlsplit(url)
        is_own = not self.own_hosts.isdisjoint((parts.hostname, parts.netloc.lower()))
        return self.own_tls if is_own and self.own_tls is not None else self.tls
