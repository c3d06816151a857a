"""The HTTP server: which handler a request goes to, and how many connections there may be.

aiohttp's low-level server, without its router and middlewares: paths of the distribution API are parsed once, by us,
and the plain application took twice the time for a hit.
"""

import asyncio
import functools
from typing import Any, cast

from aiohttp import web

from registry_cache.web.connection import Connection
from registry_cache.web.errors import error_body
from registry_cache.web.fast_connection import FastConnection, missing_attributes
from registry_cache.web.fast_path import FastPath
from registry_cache.web.identity import TOKEN_PATH, Identity
from registry_cache.web.ops import Ops
from registry_cache.web.refusals import Refusals
from registry_cache.web.routes import is_api
from registry_cache.web.v2 import V2

# Of operators and what collects their figures.
_OPS_CONNECTIONS = 64
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


class OpsServer(web.Server):
    """The operators' pages on an address of their own.

    Args:
        client_timeout_seconds: as for :class:`Server`.
    """

    def __init__(self, ops: Ops, refusals: Refusals, *, client_timeout_seconds: float) -> None:
        super().__init__(
            ops.handle, handler_cancellation=True, access_log=None, keepalive_timeout=client_timeout_seconds
        )
        self._connection = functools.partial(Connection, self, refusals, client_timeout_seconds=client_timeout_seconds)

    def __call__(self) -> Any:
        """The protocol of a new connection."""
        if len(self.connections) >= _OPS_CONNECTIONS:
            return _Refusal()
        return self._connection(loop=self._loop, **self._kwargs)


class Server(web.Server):
    """See the module.

    Args:
        client_timeout_seconds: how long a connection may go without a whole request.
    """

    def __init__(
        self,
        v2: V2,
        ops: Ops,
        fast: FastPath,
        refusals: Refusals,
        *,
        identity: Identity | None = None,
        max_connections: int,
        client_timeout_seconds: float,
    ) -> None:
        # keepalive_timeout also bounds the wait for the first request of a connection, and for the rest of a slow one.
        super().__init__(
            self._dispatch, handler_cancellation=True, access_log=None, keepalive_timeout=client_timeout_seconds
        )
        kind = functools.partial(Connection) if missing_attributes() else functools.partial(FastConnection, fast=fast)
        accounts = identity.access.accounts if identity is not None else None
        self._connection = functools.partial(
            kind, self, refusals, client_timeout_seconds=client_timeout_seconds, accounts=accounts
        )
        self._v2 = v2
        self._ops = ops
        self._identity = identity
        self._max_connections = max_connections

    def forget_certificates(self) -> None:
        """Have clients show them anew: what they are answered now is the last on their connections."""
        for connection in self.connections:
            if isinstance(connection, Connection) and connection.principal.certificates:
                connection.retire()

    async def _dispatch(self, request: web.BaseRequest) -> web.StreamResponse:
        if isinstance(request.protocol, FastConnection):
            request.protocol.begins(request)
        if is_api(request.rel_url.raw_path):
            try:
                return await self._v2.handle(request)
            except ConnectionError as error:
                # The body cannot be finished, or nobody takes it: aiohttp's way to end a connection without a word.
                request.protocol.force_close()
                raise asyncio.CancelledError(str(error)) from error
        if self._identity is not None and request.rel_url.raw_path == TOKEN_PATH:
            return await self._identity.token(request)
        return await self._ops.handle(request)

    def __call__(self) -> Any:
        """The protocol of a new connection."""
        if len(self.connections) >= self._max_connections:
            return _Refusal()
        return self._connection(loop=self._loop, **self._kwargs)
