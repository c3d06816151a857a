"""Small requests (manifests, tags, tokens, HEADs): httpx's client, over aiohttp's connections.

Below httpx's requests and errors, aiohttp's connector and parser take the place of httpcore: a missed manifest comes
0.6-0.7 ms sooner (see docs/DECISIONS.md).
"""

import contextlib
import http.cookiejar
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import aiohttp
import httpx
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver
from yarl import URL

from registry_cache.model.errors import BrokenOff, HeadRefused, UpstreamError, reason_of
from registry_cache.upstream.addresses import AddressRefused, AddressRules
from registry_cache.upstream.ask import AnswerLost, Ask, NotConnected
from registry_cache.upstream.dialling import HEADERS, Dialling
from registry_cache.upstream.headers import Headers, content_length
from registry_cache.upstream.redact import Redactor
from registry_cache.upstream.reply import SHORT_MAX_BYTES, drained
from registry_cache.upstream.urls import origin_of

# A redirect to a signed URL is a long line; what stands in front of a registry may add lines of its own.
_HEADER_MAX_BYTES = 64 * 1024
HEADER_LINES_MAX = 1000
_KEEPALIVE_SECONDS = 30.0


class SmallClient:
    """Follows nothing, decodes nothing, keeps no cookies, knows no credentials but the forward proxy's.

    Made on the event loop that uses it.

    Args:
        connections: how many at a time; who wants one more waits.
    """

    def __init__(self, dialling: Dialling, *, connections: int) -> None:
        self._redactor = dialling.redactor
        self._client = httpx.AsyncClient(
            transport=AiohttpTransport(dialling, connections=connections),
            trust_env=False,  # the proxies' variables are read by our own rules
            follow_redirects=False,
            timeout=httpx.Timeout(dialling.read_timeout_seconds, connect=dialling.connect_timeout_seconds),
        )
        self._client.cookies.jar.set_policy(http.cookiejar.DefaultCookiePolicy(allowed_domains=[]))

    async def send(self, ask: Ask) -> "SmallReply":
        """Send *ask*; the reply comes back with its body unread.

        Raises:
            HeadRefused: it is a HEAD, and was answered with what is no HTTP: a body, as a rule.
            UpstreamError: no answer.
        """
        with translated(self._redactor):
            # httpx would write a URL in its own way; the line goes out as it was written (see AiohttpTransport).
            request = httpx.Request(
                ask.method,
                origin_of(ask.url),
                headers={**HEADERS, **ask.headers},
                content=ask.body or None,
                extensions={"target": ask.url, "timeout": self._client.timeout.as_dict()},
            )
            try:
                response = await self._client.send(request, stream=True, auth=None)
            except httpx.RemoteProtocolError as error:
                if ask.method != "HEAD":
                    raise
                raise HeadRefused(self._redactor.clean(str(error))[:300]) from error
            except httpx.ReadError as error:
                raise AnswerLost(self._redactor.clean(str(error))[:300]) from error
        return SmallReply(ask.url, response, self._redactor)

    async def aclose(self) -> None:
        """Close every connection."""
        await self._client.aclose()


class SmallReply:
    """See :class:`registry_cache.upstream.reply.Reply`."""

    def __init__(self, url: str, response: httpx.Response, redactor: Redactor) -> None:
        self.url = url
        self._response = response
        self._redactor = redactor
        self.status = response.status_code
        self.headers = Headers(response.extensions["fields"])

    async def read_small(self, limit: int) -> bytes:
        """See :class:`registry_cache.upstream.reply.Reply`."""
        body = bytearray()
        with translated(self._redactor):
            async for piece in self._response.aiter_raw():
                body += piece
                if len(body) > limit:
                    raise UpstreamError(f"upstream sent more than {limit} bytes where a small answer was due")
        return bytes(body)

    async def aclose(self) -> None:
        """See :class:`.reply.Reply`. A body left unread takes its connection with it, if it is long."""
        length = content_length(self.headers)
        is_head = self._response.request.method == "HEAD"
        if not self._response.is_stream_consumed and not is_head and length is not None and length <= SHORT_MAX_BYTES:
            await drained(self)
        with contextlib.suppress(UpstreamError), translated(self._redactor):
            await self._response.aclose()


@contextlib.contextmanager
def translated(redactor: Redactor) -> Iterator[None]:
    """Turn what httpx raises into UpstreamError, with a reason that an operator can use."""
    try:
        yield
    except httpx.ConnectTimeout as error:
        raise NotConnected("upstream took too long to connect") from error
    except httpx.TimeoutException as error:
        raise UpstreamError("upstream took too long to answer") from error
    except (httpx.ConnectError, httpx.ProxyError) as error:
        raise NotConnected(redactor.clean(str(error))[:300]) from error
    except httpx.TransportError as error:
        kind = BrokenOff if isinstance(error, httpx.ReadError | httpx.RemoteProtocolError) else UpstreamError
        raise kind(redactor.clean(str(error))[:300]) from error
    except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, OSError, ValueError) as error:
        raise UpstreamError(redactor.clean(f"{type(error).__name__}: {error}")[:300]) from error


class AiohttpTransport(httpx.AsyncBaseTransport):
    """A pool of aiohttp's connections, to addresses that upstream may lead to, or to the forward proxy.

    A request's ``extensions`` have the timeouts, and as ``target`` the URL whose bytes go into the request line. A
    response's have the header fields, as ``fields``.
    """

    def __init__(self, dialling: Dialling, *, connections: int) -> None:
        self._dialling = dialling
        self._addresses = dialling.addresses
        self._redactor = dialling.redactor
        self._resolver = _Resolver(dialling.addresses)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                ssl=dialling.tls, limit=connections, keepalive_timeout=_KEEPALIVE_SECONDS, resolver=self._resolver
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            max_line_size=_HEADER_MAX_BYTES,
            max_field_size=_HEADER_MAX_BYTES,
            max_headers=HEADER_LINES_MAX,
        )

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send *request*; the response comes back with its body unread.

        Raises:
            httpx.TransportError: no answer.
            UpstreamError: the variables name a forward proxy that cannot be used.
        """
        url, timeouts = request.extensions["target"], request.extensions["timeout"]
        with _as_httpx():
            self._addresses.check_url(url)
            by_proxy = self._by_proxy(url)
            response = await self._session.request(
                request.method,
                URL(url, encoded=True),
                headers=[*request.headers.multi_items(), *by_proxy.pop("headers", {}).items()],
                data=request.content or None,
                allow_redirects=False,
                ssl=self._dialling.tls_for(url),
                timeout=aiohttp.ClientTimeout(sock_connect=timeouts["connect"], sock_read=timeouts["read"]),
                **by_proxy,
            )
        # httpx has no use for the fields, but would read a Location by its own rules, and fail where we do not.
        fields = {"fields": response.raw_headers}
        return httpx.Response(response.status, stream=_Body(response), request=request, extensions=fields)

    def _by_proxy(self, url: str) -> dict[str, Any]:
        proxy = self._dialling.proxy(url)
        if proxy is None:
            return {}
        self._resolver.proxies.add(proxy.host)
        if proxy.username is not None:
            self._redactor.learn_login(proxy.username, proxy.password)
        if url.startswith("http:"):  # the proxy reads the request itself
            return {"proxy": proxy.url, "headers": proxy.headers}
        return {"proxy": proxy.url, "proxy_headers": proxy.headers}

    async def aclose(self) -> None:
        """Close every connection."""
        await self._session.close()


class _Body(httpx.AsyncByteStream):
    """The body of a response; closed before its end, it takes its connection with it."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response

    async def __aiter__(self) -> AsyncIterator[bytes]:
        with _as_httpx():
            async for piece in self._response.content.iter_any():
                yield piece

    async def aclose(self) -> None:
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


@contextlib.contextmanager
def _as_httpx() -> Iterator[None]:
    """Raise what httpx would have raised; never with a URL in its text, which may be a credential."""
    try:
        yield
    except Exception as error:
        for kind, raised, told in _MEANINGS:
            if isinstance(error, kind):
                raise raised(told(error)) from error
        raise


def _not_connected(error: Any) -> str:
    if isinstance(error.os_error, AddressRefused):
        return str(error.os_error)
    failure = getattr(error, "certificate_error", None) or error.os_error
    # asyncio's own words name the address once more; OpenSSL's numbers and those of names are others.
    is_told = isinstance(failure, OSError) and not isinstance(failure, ssl.SSLError) and (failure.errno or 0) > 0
    why = reason_of(failure) if is_told else getattr(failure, "strerror", None) or failure
    return f"cannot connect to {error.host}:{error.port}: {why}"


def _text(error: Exception) -> str:
    return str(error) or type(error).__name__


# The first that fits: what aiohttp raises, what httpx would, and what an operator is told.
_MEANINGS: list[tuple[type[Exception], type[httpx.TransportError], Callable[[Any], str]]] = [
    (AddressRefused, httpx.ConnectError, str),
    (aiohttp.ConnectionTimeoutError, httpx.ConnectTimeout, lambda _: "timed out"),
    (TimeoutError, httpx.ReadTimeout, lambda _: "timed out"),
    (aiohttp.ClientConnectorError, httpx.ConnectError, _not_connected),
    (
        aiohttp.ClientHttpProxyError,
        httpx.ProxyError,
        lambda error: f"the forward proxy answered {error.status} {error.message}",
    ),
    (
        aiohttp.ClientResponseError,
        httpx.RemoteProtocolError,
        lambda error: f"no HTTP: {' '.join(error.message.split())}",
    ),
    (aiohttp.InvalidURL, httpx.UnsupportedProtocol, lambda _: "not a URL that can be asked"),
    (ValueError, httpx.UnsupportedProtocol, lambda _: "not a URL that can be asked"),
    (aiohttp.ClientError, httpx.ReadError, _text),
    (OSError, httpx.ReadError, _text),
]
