"""A server with so many connections at once and no more, none of which waits for long."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, cast

from aiohttp import web

from registry_cache.web.errors import error_body

_BUSY_BODY = error_body("TOOMANYREQUESTS", "too many connections")
_BUSY = (
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nConnection: close\r\n"
    b"X-Content-Type-Options: nosniff\r\nContent-Security-Policy: default-src 'none'; sandbox\r\n"
    b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(_BUSY_BODY), _BUSY_BODY)
)


class _Refusal(asyncio.Protocol):
    """One connection too many: told so, and closed."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast(asyncio.WriteTransport, transport).write(_BUSY)  # which uvloop's do not inherit
        transport.close()


class BoundedServer(web.Server):
    """See the module.

    Args:
        connection: makes the protocol of a new connection of this server.
        max_connections: further ones are told that it is busy.
        client_timeout_seconds: how long a connection may go without a whole request.
    """

    def __init__(
        self,
        handle: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]],
        connection: Callable[..., web.RequestHandler],
        *,
        max_connections: int,
        client_timeout_seconds: float,
    ) -> None:
        # keepalive_timeout also bounds the wait for the first request of a connection, and for the rest of a slow one.
        super().__init__(handle, handler_cancellation=True, access_log=None, keepalive_timeout=client_timeout_seconds)
        self._connection = connection
        self._max_connections = max_connections

    def __call__(self) -> Any:
        """The protocol of a new connection."""
        if len(self.connections) >= self._max_connections:
            return _Refusal()
        return self._connection(self, loop=self._loop, **self._kwargs)
