"""URLs that others wrote: their bytes go out as they came, since a signature covers them.

Source: RFC 3986, section 5.2; RFC 9110, section 10.2.2.
"""

import re
from urllib.parse import urljoin, urlsplit

from registry_cache.model.errors import UpstreamError

_ABSOLUTE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
_HOST = re.compile(r"[A-Za-z0-9._-]{1,255}|[0-9a-fA-F.]*:[0-9a-fA-F:.]*(?:%[A-Za-z0-9._-]+)?")
_KINDS = frozenset({"manifests", "blobs", "tags", "referrers"})
_MAX_CHARACTERS = 32 * 1024


def origin_of(url: str) -> str:
    """Scheme, host and port, without a credential and without the default port."""
    parts = urlsplit(url)
    netloc = parts.netloc.rpartition("@")[2].lower()
    default = {"http": ":80", "https": ":443"}.get(parts.scheme, "")
    return f"{parts.scheme}://{netloc.removesuffix(default) if default else netloc}"


def shown(url: str) -> str:
    """A URL fit for a log: a signed one is a credential."""
    return url.partition("?")[0].partition("#")[0][:200]


def joined(base: str, location: str) -> str:
    """The URL that *location* names, seen from *base*. What it holds of path and query stays as it is written.

    Raises:
        UpstreamError: it names none.
    """
    location = _sendable(location.partition("#")[0])
    try:
        parts = urlsplit(base)
        if absolute := _ABSOLUTE.match(location):
            url = absolute[0].lower() + location[absolute.end() :]  # it is no part of what is sent
        elif location.startswith("//"):
            url = f"{parts.scheme}:{location}"
        elif location.startswith("/"):
            url = f"{parts.scheme}://{parts.netloc}{location}"
        elif location.startswith("?"):
            url = base.partition("?")[0] + location
        else:
            url = urljoin(base, location)
        _check(url)
    except ValueError as error:
        raise UpstreamError("upstream names a URL that is none") from error
    return _without_userinfo(url)


def _check(url: str) -> None:
    parts = urlsplit(url)
    if len(url) > _MAX_CHARACTERS or parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0:
        raise ValueError(url)
    if not _HOST.fullmatch(parts.hostname):
        raise ValueError(url)


def _without_userinfo(url: str) -> str:
    scheme, separator, rest = url.partition("://")
    netloc = re.split(r"[/?]", rest, maxsplit=1)[0]
    return scheme + separator + netloc.rpartition("@")[2] + rest[len(netloc) :]


def _sendable(text: str) -> str:
    """What cannot stand in a request line at all is percent-encoded, byte by byte; nothing else is touched."""
    return "".join(char if "!" <= char <= "~" else "".join(f"%{byte:02X}" for byte in _bytes(char)) for char in text)


def _bytes(char: str) -> bytes:
    try:
        return char.encode("latin-1")  # headers were decoded so: this is the byte that came
    except UnicodeEncodeError:
        return char.encode()


def path_and_query(url: str) -> str:
    """What goes into the request line."""
    rest = url.partition("://")[2]
    at = min((at for at in (rest.find("/"), rest.find("?")) if at >= 0), default=len(rest))
    target = rest[at:]
    return target if target.startswith("/") else f"/{target}"


def repository_in(url: str) -> str:
    """The repository that a URL of a registry names; empty if it names none."""
    # No regular expression: one that tries each /v2/ takes seconds for a path that is made of them.
    name, _, kind = urlsplit(url).path.partition("/v2/")[2].rpartition("/")[0].rpartition("/")
    return name if kind in _KINDS else ""
