"""Which clients may be sent elsewhere for a blob, and how they are told.

The address is a capability: whoever has it may read that blob for a while. It is in the answer, and in nothing else.
"""

from aiohttp import web

from registry_cache.model.oci import STAY, Digest
from registry_cache.pull.answers import Place, Served
from registry_cache.web.exchange import Exchange, answer_headers, matches_etag, namespace

_WHOLE = ("", "bytes=0-")


class RedirectRule:
    """See the module.

    Args:
        host: of all places elsewhere.
    """

    def __init__(self, host: str) -> None:
        self._host = host.lower()

    def allows(self, exchange: Exchange, digest: Digest) -> bool:
        """Whether who asks may be sent elsewhere.

        A part is answered from here: as a rule it is the rest of what broke. So is who is sent bytes at a pace.
        """
        headers = exchange.request.headers
        return (
            exchange.request.method == "GET"
            and headers.get("Range", "").replace(" ", "") in _WHOLE
            and headers.get(next(iter(STAY)), "").lower() != "no"
            and (exchange.account is None or exchange.account.pace is None)
            and not matches_etag(exchange.request, digest)
            and not ("Authorization" in headers and self._is_near(headers.get("Host", "")))
        )

    def _is_near(self, host: str) -> bool:
        """Whether clients would show the login that they have here there, too: Go's do so for hosts below."""
        host = host.lower()
        host = host.partition("]")[0] + "]" if host.startswith("[") else host.partition(":")[0]
        return self._host == host.strip("[]") or self._host.endswith(f".{host}")


def redirect(registry: str, served: Served, place: Place) -> web.Response:
    """The answer that sends a client to *place*."""
    headers = {**answer_headers(served), **namespace(registry), "Location": place.url, "Cache-Control": "no-store"}
    return web.Response(status=307, headers=headers)
