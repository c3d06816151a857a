"""How upstream is reached, whichever client does it: whom to trust, where not to go, how long to wait."""

import ssl
from typing import NamedTuple

from registry_cache import __version__
from registry_cache.upstream.addresses import AddressRules
from registry_cache.upstream.redact import Redactor

HEADERS = {"User-Agent": f"registry-cache/{__version__}", "Accept": "*/*", "Accept-Encoding": "identity"}


class Dialling(NamedTuple):
    """What both clients of a registry share. ``tls`` is for every connection, the token service's and the CDN's too."""

    tls: ssl.SSLContext
    addresses: AddressRules
    redactor: Redactor
    connect_timeout_seconds: float
    read_timeout_seconds: float
