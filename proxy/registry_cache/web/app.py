"""The HTTP servers: which handler a request goes to.

aiohttp's low-level server, without its router and middlewares: paths of the distribution API are parsed once, by us,
and the plain application took twice the time for a hit.
"""

import asyncio
import functools

from aiohttp import web

from registry_cache.web.bounded import BoundedServer
from registry_cache.web.connection import Connection
from registry_cache.web.fast_connection import FastConnection, missing_attributes
from registry_cache.web.fast_path import FastPath
from registry_cache.web.identity import TOKEN_PATH, Identity
from registry_cache.web.ops import Ops
from registry_cache.web.refusals import Refusals
from registry_cache.web.routes import is_api
from registry_cache.web.v2 import V2

# Of operators and what collects their figures.
_OPS_CONNECTIONS = 64


class OpsServer(BoundedServer):
    """The operators' pages on an address of their own.

    Args:
        client_timeout_seconds: as for :class:`BoundedServer`.
    """

    def __init__(self, ops: Ops, refusals: Refusals, *, client_timeout_seconds: float) -> None:
        super().__init__(
            ops.handle,
            functools.partial(Connection, refusals=refusals, client_timeout_seconds=client_timeout_seconds),
            max_connections=_OPS_CONNECTIONS,
            client_timeout_seconds=client_timeout_seconds,
        )


class Server(BoundedServer):
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
        kind = functools.partial(Connection) if missing_attributes() else functools.partial(FastConnection, fast=fast)
        accounts = identity.access.accounts if identity is not None else None
        super().__init__(
            self._dispatch,
            functools.partial(
                kind, refusals=refusals, client_timeout_seconds=client_timeout_seconds, accounts=accounts
            ),
            max_connections=max_connections,
            client_timeout_seconds=client_timeout_seconds,
        )
        self._v2 = v2
        self._ops = ops
        self._identity = identity

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
