"""The connections to the fleet's port: strangers, who have not shown the key, have a bounded part of them.

When that is full, the oldest stranger goes. A replica shows the key with its first request, some milliseconds after it
has connected: it is no stranger for long enough to be the oldest one.
"""

import asyncio
import functools
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from registry_cache.web.bounded import BoundedServer
from registry_cache.web.connection import Connection
from registry_cache.web.refusals import Refusals

_CONNECTIONS = 4096
# Half of the descriptors where there are no more than 1024; hundreds of replicas may connect in one moment.
_STRANGERS = 512


class PeerConnection(Connection):
    """One of them.

    Args:
        strangers: all that have not shown the key, the oldest first.
    """

    __slots__ = ("_strangers",)

    def __init__(
        self, manager: web.Server, refusals: Refusals, *, strangers: dict["PeerConnection", None], **options: Any
    ) -> None:
        super().__init__(manager, refusals, **options)
        self._strangers = strangers

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the event loop."""
        super().connection_made(transport)
        self._strangers[self] = None
        if len(self._strangers) > _STRANGERS:
            oldest = next(iter(self._strangers))
            del self._strangers[oldest]
            if oldest.transport is not None:
                oldest.transport.abort()  # TLS would wait for its word

    def connection_lost(self, exc: BaseException | None) -> None:
        """Called by the event loop."""
        self._strangers.pop(self, None)
        super().connection_lost(exc)

    def has_shown_the_key(self) -> None:
        """It is a replica's."""
        self._strangers.pop(self, None)


class PeerServer(BoundedServer):
    """See the module.

    Args:
        client_timeout_seconds: as for :class:`BoundedServer`.
    """

    def __init__(
        self,
        handle: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]],
        refusals: Refusals,
        *,
        client_timeout_seconds: float,
    ) -> None:
        connection = functools.partial(
            PeerConnection, refusals=refusals, strangers={}, client_timeout_seconds=client_timeout_seconds
        )
        super().__init__(
            handle, connection, max_connections=_CONNECTIONS, client_timeout_seconds=client_timeout_seconds
        )
