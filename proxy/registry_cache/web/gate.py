"""Who may ask at all: no web page of another site, and nobody who calls the cache by a name that is not its own.

A page can make the browser of whoever sits at the host send requests to 127.0.0.1. It can read the answers when a name
of its own resolves there (DNS rebinding). Registry clients send none of what gives a browser away, and the Host that
they were configured with.

Source: RFC 9110, sections 7.2 and 15.5.20; W3C Fetch Metadata.
"""

import ipaddress
import re
from collections.abc import Iterable
from typing import Self
from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.http import HttpVersion11

from registry_cache.model.errors import BadRequest, CrossSite, Misdirected

_AUTHORITY = re.compile(r"(\[[0-9A-Fa-f:.%]+\]|[^\[\]:@/?#\s]+)(?::[0-9]{0,5})?")
_ANY = "*"
_BROWSER = "Mozilla/"
# What a browser says of a request that no other site has caused.
_OWN = frozenset({"none", "same-origin"})


class Gate:
    """See the module.

    Args:
        hosts: names by which the cache may be called, beside ``localhost`` and any address; None: by every name.
    """

    def __init__(self, hosts: Iterable[str] | None) -> None:
        self._hosts = None if hosts is None else frozenset({"localhost", *(host.lower() for host in hosts)})

    @classmethod
    def of(cls, hosts: list[str], *, is_loopback: bool) -> Self:
        """The gate of a cache with these settings.

        Beyond loopback the network has names that nobody told us, so they count only once some of them are set.
        """
        if _ANY in hosts or (not hosts and not is_loopback):
            return cls(None)
        return cls(hosts)

    def check(self, request: web.BaseRequest, *, is_page: bool = False) -> None:
        """Let *request* pass.

        Args:
            is_page: an operator's page, to which a link may lead from anywhere.

        Raises:
            BadRequest, Misdirected, CrossSite: it does not.
        """
        names = request.headers.getall("Host", ())
        if len(names) > 1 or (not names and request.version >= HttpVersion11):
            raise BadRequest("a request has one Host")
        if request.version.major != 1:
            raise BadRequest("this is not HTTP/1")
        # aiohttp's goes by an absolute target before the header (RFC 9112, section 3.2.2); without either it asks DNS.
        named = request.host if names else ""
        if names and not self._is_own(named):
            raise Misdirected(
                f"{named[:100]!r} is not a name of this cache: call it by its address or localhost, or name it in HOSTS"
            )
        self._check_site(request, named, is_page=is_page)

    def _is_own(self, authority: str) -> bool:
        if self._hosts is None:
            return True
        match = _AUTHORITY.fullmatch(authority)
        if match is None:
            return False
        host = match[1].strip("[]").lower().removesuffix(".")
        return host in self._hosts or _is_address(host)

    def _check_site(self, request: web.BaseRequest, named: str, *, is_page: bool) -> None:
        headers = request.headers
        followed = headers.get("Sec-Fetch-Mode") == "navigate" and headers.get("Sec-Fetch-Dest") == "document"
        pages = headers.getall("Origin", ())
        # A browser says where a request comes from only to what it holds for safe, such as loopback. To others it sends
        # the page that caused it. So do Go's clients after a redirect: theirs means nothing.
        if not is_page and headers.get("User-Agent", "").startswith(_BROWSER):
            pages = [*pages, *headers.getall("Referer", ())]
        sites = headers.getall("Sec-Fetch-Site", ())
        if any(not named or _authority(page) != named.lower() for page in pages) or (
            not (is_page and followed) and any(site.lower() not in _OWN for site in sites)
        ):
            raise CrossSite("a web page of another site may not ask the cache")


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _authority(origin: str) -> str:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""
