"""httpx's requests, sent over aiohttp's connections.

httpx has the requests, headers and errors that :mod:`proxy.upstream.client` speaks in. Below them, aiohttp's connector
and parser take the place of httpcore: a missed manifest comes 0.6-0.7 ms sooner (see docs/DECISIONS.md).
"""

import contextlib
import ssl
from collections.abc import AsyncIterator, Iterator

import aiohttp
import httpx
from yarl import URL

# A redirect to a signed URL is a long line.
_HEADER_MAX_BYTES = 64 * 1024
_KEEPALIVE_SECONDS = 30.0


class AiohttpTransport(httpx.AsyncBaseTransport):
    """A pool of connections. Follows nothing, decodes nothing, keeps no cookies, knows no credentials.

    Made on the event loop that uses it. Heeds ``connect`` and ``read`` of a request's timeouts.

    Args:
        connections: how many at a time; who wants one more waits.
        proxy: the URL of the forward proxy, None to go there directly.
    """

    def __init__(self, *, tls: ssl.SSLContext, connections: int, proxy: str | None) -> None:
        self._proxy = proxy
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=tls, limit=connections, keepalive_timeout=_KEEPALIVE_SECONDS),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            max_line_size=_HEADER_MAX_BYTES,
            max_field_size=_HEADER_MAX_BYTES,
        )

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send *request*; the response comes back with its body unread.

        Raises:
            httpx.TransportError: no answer.
        """
        timeouts = request.extensions["timeout"]
        with _as_httpx():
            response = await self._session.request(
                request.method,
                URL(str(request.url), encoded=True),
                headers=request.headers.multi_items(),
                allow_redirects=False,
                proxy=self._proxy,
                timeout=aiohttp.ClientTimeout(sock_connect=timeouts["connect"], sock_read=timeouts["read"]),
            )
        return httpx.Response(response.status, headers=response.raw_headers, stream=_Body(response), request=request)

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


@contextlib.contextmanager
def _as_httpx() -> Iterator[None]:
    """Raise what httpx would have raised; never with a URL in its text, which may be a credential."""
    try:
        yield
    except aiohttp.ConnectionTimeoutError as error:
        raise httpx.ConnectTimeout("timed out") from error
    except TimeoutError as error:
        raise httpx.ReadTimeout("timed out") from error
    except aiohttp.ClientConnectorError as error:
        failure = getattr(error, "certificate_error", None) or error.os_error
        reason = getattr(failure, "strerror", None) or failure
        raise httpx.ConnectError(f"cannot connect to {error.host}:{error.port}: {reason}") from error
    except aiohttp.ClientHttpProxyError as error:
        raise httpx.ProxyError(f"the forward proxy answered {error.status} {error.message}") from error
    except aiohttp.ClientResponseError as error:
        raise httpx.RemoteProtocolError(f"no HTTP: {' '.join(error.message.split())}") from error
    except (aiohttp.InvalidURL, ValueError) as error:
        raise httpx.UnsupportedProtocol("not a URL that can be asked") from error
    except aiohttp.ClientError as error:
        raise httpx.RemoteProtocolError(str(error) or type(error).__name__) from error
