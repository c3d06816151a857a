"""Small requests (manifests, tags, tokens, HEADs), over aiohttp's connections.

Source of the choice: docs/DECISIONS.md; a missed manifest comes 0.6-0.7 ms sooner than by httpcore.
"""

import contextlib
import ssl
from collections.abc import Callable, Iterator
from typing import Any

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver
from yarl import URL

from proxy.errors import HeadRefused, UpstreamError
from proxy.upstream.addresses import AddressRefused, AddressRules
from proxy.upstream.ask import Ask
from proxy.upstream.forward import proxy_for
from proxy.upstream.headers import Headers, content_length
from proxy.upstream.redact import Redactor
from proxy.upstream.reply import SHORT_MAX_BYTES

# A redirect to a signed URL is a long line; what stands in front of a registry may add lines of its own.
_HEADER_MAX_BYTES = 64 * 1024
HEADER_LINES_MAX = 1000
_KEEPALIVE_SECONDS = 30.0


class SmallClient:
    """A pool of connections. Follows nothing, decodes nothing, keeps no cookies, knows no credentials but the proxy's.

    Made on the event loop that uses it.

    Args:
        connections: how many at a time; who wants one more waits.
    """

    def __init__(
        self,
        *,
        tls: ssl.SSLContext,
        connections: int,
        addresses: AddressRules,
        redactor: Redactor,
        connect_timeout_seconds: float,
        read_timeout_seconds: float,
        user_agent: str,
    ) -> None:
        self._addresses = addresses
        self._redactor = redactor
        self._headers = {"User-Agent": user_agent, "Accept": "*/*", "Accept-Encoding": "identity"}
        self._resolver = _Resolver(addresses)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                ssl=tls, limit=connections, keepalive_timeout=_KEEPALIVE_SECONDS, resolver=self._resolver
            ),
            timeout=aiohttp.ClientTimeout(sock_connect=connect_timeout_seconds, sock_read=read_timeout_seconds),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            max_line_size=_HEADER_MAX_BYTES,
            max_field_size=_HEADER_MAX_BYTES,
            max_headers=HEADER_LINES_MAX,
        )

    async def send(self, ask: Ask) -> "SmallReply":
        """Send *ask*; the reply comes back with its body unread.

        Raises:
            UpstreamError: no answer.
        """
        with self._translated(is_head=ask.method == "HEAD"):
            self._addresses.check_url(ask.url)
            by_proxy = self._by_proxy(ask.url)
            headers = {**self._headers, **ask.headers, **by_proxy.pop("headers", {})}
            response = await self._session.request(
                ask.method, URL(ask.url, encoded=True), headers=headers, allow_redirects=False, **by_proxy
            )
        return SmallReply(response, self._translated)

    def _by_proxy(self, url: str) -> dict[str, Any]:
        proxy = proxy_for(url)
        if proxy is None:
            return {}
        self._resolver.proxies.add(proxy.host)
        if proxy.username is not None:
            self._redactor.learn_login(proxy.username, proxy.password)
        if url.startswith("http:"):  # the proxy reads the request itself
            return {"proxy": proxy.url, "headers": proxy.headers}
        return {"proxy": proxy.url, "proxy_headers": proxy.headers}

    @contextlib.contextmanager
    def _translated(self, *, is_head: bool = False) -> Iterator[None]:
        """Turn what aiohttp raises into UpstreamError; never with a URL in its text, which may be a credential.

        A HEAD that is answered with a body looks like no HTTP at all.
        """
        try:
            yield
        except UpstreamError:
            raise
        except Exception as error:
            text = _reason(error)
            if text is None:
                raise
            garbled = is_head and type(error) is aiohttp.ClientResponseError
            raise (HeadRefused if garbled else UpstreamError)(self._redactor.clean(text)[:300]) from error

    async def aclose(self) -> None:
        """Close every connection."""
        await self._session.close()


class SmallReply:
    """See :class:`proxy.upstream.reply.Reply`."""

    def __init__(self, response: aiohttp.ClientResponse, translated: Any) -> None:
        self._response = response
        self._translated = translated
        self.status = response.status
        self.headers = Headers(response.raw_headers)

    async def read_small(self, limit: int) -> bytes:
        """See :class:`proxy.upstream.reply.Reply`."""
        body = bytearray()
        with self._translated():
            async for piece in self._response.content.iter_any():
                body += piece
                if len(body) > limit:
                    raise UpstreamError(f"upstream sent more than {limit} bytes where a small answer was due")
        return bytes(body)

    async def aclose(self) -> None:
        """See :class:`proxy.upstream.reply.Reply`. A body left unread takes its connection with it, if it is long."""
        length = content_length(self.headers)
        if self._response.method != "HEAD" and length is not None and length <= SHORT_MAX_BYTES:
            with contextlib.suppress(UpstreamError):
                await self.read_small(SHORT_MAX_BYTES)  # so that the connection can be used again
        self._response.release()


class _Resolver(AbstractResolver):
    """Names as the system resolves them, without the addresses that upstream may not lead to."""

    def __init__(self, addresses: AddressRules) -> None:
        self.proxies: set[str] = set()
        self._addresses = addresses
        self._inner = ThreadedResolver()

    async def resolve(self, host: str, *args: Any, **kwargs: Any) -> list[ResolveResult]:
        """See the base class."""
        found = await self._inner.resolve(host, *args, **kwargs)
        if host in self.proxies:
            return found
        allowed, refusal = [], None
        for result in found:
            try:
                self._addresses.check(host, result["host"])
            except AddressRefused as error:
                refusal = error
            else:
                allowed.append(result)
        if not allowed and refusal is not None:
            raise refusal
        return allowed

    async def close(self) -> None:
        """See the base class."""
        await self._inner.close()


def _reason(error: Exception) -> str | None:
    """What went wrong on the way, for an operator; None for what is nobody's answer, but a bug here."""
    if isinstance(error, AddressRefused):
        return str(error)
    for kind, told in _REASONS:
        if isinstance(error, kind):
            return told(error)
    return None


def _not_connected(error: Any) -> str:
    if isinstance(error.os_error, AddressRefused):
        return str(error.os_error)
    failure = getattr(error, "certificate_error", None) or error.os_error
    return f"cannot connect to {error.host}:{error.port}: {getattr(failure, 'strerror', None) or failure}"


# The first that fits.
_REASONS: list[tuple[type[Exception], Callable[[Any], str]]] = [
    (aiohttp.ConnectionTimeoutError, lambda _: "upstream took too long to connect"),
    (TimeoutError, lambda _: "upstream took too long to answer"),
    (aiohttp.ClientConnectorError, _not_connected),
    (aiohttp.ClientHttpProxyError, lambda error: f"the forward proxy answered {error.status} {error.message}"),
    (aiohttp.ClientResponseError, lambda error: f"no HTTP: {' '.join(error.message.split())}"),
    (aiohttp.InvalidURL, lambda _: "not a URL that can be asked"),
    (ValueError, lambda _: "not a URL that can be asked"),
    (aiohttp.ClientError, lambda error: str(error) or type(error).__name__),
    (OSError, lambda error: str(error) or type(error).__name__),
]
