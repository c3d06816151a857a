"""One client's connection, as aiohttp has it: who it is, how long it may take nothing, and what is no HTTP."""

import asyncio
import socket
from typing import Any

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from proxy.errors import BadRequest
from proxy.units import well_formed
from proxy.web.errors import rendered
from proxy.web.exchange import INERT, JSON, plain_address
from proxy.web.refusals import Refusals

# Of one header's value: podman names hundreds of ranges in one, and half as many after each 400.
_FIELD_MAX_BYTES = 16 * 1024


class Connection(web.RequestHandler):
    """See the module.

    Args:
        client_timeout_seconds: how long the client may leave sent bytes unacknowledged, or its window closed.
    """

    __slots__ = ("_client_timeout_seconds", "_peer", "_refusals")

    def __init__(
        self, manager: web.Server, refusals: Refusals, *, client_timeout_seconds: float, **options: Any
    ) -> None:
        super().__init__(manager, max_field_size=_FIELD_MAX_BYTES, **options)
        self._refusals = refusals
        self._client_timeout_seconds = client_timeout_seconds
        self._peer = ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the event loop."""
        super().connection_made(transport)
        peer = transport.get_extra_info("peername")
        self._peer = plain_address(peer[0]) if isinstance(peer, tuple) else ""
        sock = transport.get_extra_info("socket")
        if sock is not None:
            # The kernel drops who takes nothing: small bodies are in its hands, nobody here waits for them.
            milliseconds = max(1, int(self._client_timeout_seconds * 1000))
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """As aiohttp's, but what is no HTTP is the client's mistake: no crash of ours, and one line for many."""
        if not isinstance(exc, HttpProcessingError):
            return super().handle_error(request, status, exc, message)
        error = BadRequest(well_formed((message or str(exc)).partition("\n")[0][:200]))
        self._refusals.count("malformed", self._peer, str(error))
        status, body, headers = rendered(error, "other")
        response = web.Response(status=status, body=body, headers={**INERT, **JSON, **headers})
        response.force_close()
        return response
