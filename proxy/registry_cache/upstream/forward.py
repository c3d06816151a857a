"""The forward proxy of the host, by the standard variables and curl's rules: one answer for both HTTP clients.

Source: curl(1), "Environment"; its NO_PROXY knows hosts, domains, addresses and networks. Ports are understood too, as
Go's and Python's programs do; so is HTTP_PROXY, which curl leaves alone for the sake of CGI.
"""

import base64
import ipaddress
import os
import re
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from registry_cache.model.errors import UpstreamError
from registry_cache.settings.types import DIRECT

_DEFAULT_PORTS = {"http": 80, "https": 443}


class ForwardProxy(NamedTuple):
    """Where requests go in place of the origin itself."""

    scheme: str
    host: str
    port: int
    username: str | None  # decoded
    password: str

    @property
    def url(self) -> str:
        """Without the credential."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"

    @property
    def headers(self) -> dict[str, str]:
        """What it wants to see of a proxy's password."""
        if self.username is None:
            return {}
        login = f"{self.username}:{self.password}".encode()
        return {"Proxy-Authorization": "Basic " + base64.b64encode(login).decode()}


def proxy_for(url: str, environ: Mapping[str, str] = os.environ) -> ForwardProxy | None:
    """The forward proxy for *url*; None to go there directly.

    Raises:
        UpstreamError: the variables name one that is spoken to in another way than HTTP, or none that can be reached.
    """
    parts = urlsplit(url)
    names = (f"{parts.scheme}_proxy", f"{parts.scheme}_proxy".upper(), "all_proxy", "ALL_PROXY")
    name, value = _first(names, environ)
    if not value or _is_bypassed(parts.hostname or "", parts.port or _DEFAULT_PORTS.get(parts.scheme), environ):
        return None
    return _parse(name, value)


def _first(names: Iterable[str], environ: Mapping[str, str]) -> tuple[str, str]:
    """The first variable that is not empty, with its value."""
    said = ((name, environ.get(name, "").strip()) for name in names)
    return next(((name, value) for name, value in said if value), ("", ""))


def chosen_proxy(setting: str | None) -> Callable[[str], ForwardProxy | None]:
    """What gives the forward proxy for a URL where the settings name it: one for all, or none; None: the variables."""
    if setting is None:
        return proxy_for
    proxy = None if setting == DIRECT else _parse("proxy", setting)
    return lambda _: proxy


def _parse(name: str, value: str) -> ForwardProxy:
    try:
        parts = urlsplit(value if "://" in value else f"http://{value}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
        parts = urlsplit("")
    if parts.scheme not in _DEFAULT_PORTS or not host or port == 0:  # it is not shown: it may hold a password
        raise UpstreamError(f"{name.upper()} is not of the form http://HOST:PORT or https://HOST:PORT")
    username = None if parts.username is None else unquote(parts.username)
    port = port or (1080 if parts.scheme == "http" else 443)  # curl's default for a proxy
    return ForwardProxy(parts.scheme, host, port, username, unquote(parts.password or ""))


def _is_bypassed(host: str, port: int | None, environ: Mapping[str, str]) -> bool:
    _, listed = _first(("no_proxy", "NO_PROXY"), environ)
    host = host.lower().rstrip(".")
    return any(_matches(entry, host, port) for entry in re.split(r"[,\s]+", listed.lower()) if entry)


def _matches(entry: str, host: str, port: int | None) -> bool:
    if entry == "*":
        return True
    bracketed = re.fullmatch(r"\[([0-9a-f:.%]+)\](?::(\d{1,5}))?", entry)
    if bracketed:
        entry, wanted = bracketed[1], bracketed[2]
    else:
        name, colon, digits = entry.rpartition(":")
        single = colon and ":" not in name and digits.isdecimal()
        entry, wanted = (name, digits) if single else (entry, None)
    if wanted and int(wanted[:6]) != port:
        return False
    try:
        network = ipaddress.ip_network(entry, strict=False)
    except ValueError:
        domain = entry.removeprefix("*").strip(".")
        return bool(domain) and (host == domain or host.endswith(f".{domain}"))
    try:
        return ipaddress.ip_address(host) in network
    except ValueError:
        return False
