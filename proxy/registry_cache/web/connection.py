"""One client's connection, as aiohttp has it: who it is, how long it may take nothing, and what is no HTTP."""

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.web_protocol import RequestPayloadError

from registry_cache.access.limits import Account, Accounts
from registry_cache.access.rules import Principal
from registry_cache.model.errors import BadRequest, LimitReached
from registry_cache.model.units import well_formed
from registry_cache.runtime.unix_sockets import peer_user
from registry_cache.web.certificates import certificate_names
from registry_cache.web.errors import rendered
from registry_cache.web.exchange import INERT, JSON, plain_address
from registry_cache.web.refusals import Refusals

# Of one header's value: podman names up to 1 024 ranges in one, whose numbers may have ten digits, and half as many
# after each 400.
_FIELD_MAX_BYTES = 32 * 1024
_LINGER_SECONDS = 1.0


class Connection(web.RequestHandler):
    """See the module.

    Args:
        client_timeout_seconds: how long the client may leave sent bytes unacknowledged, or its window closed.
        accounts: of what each client has, where that is limited.
    """

    __slots__ = (
        "_account",
        "_accounts",
        "_client_timeout_seconds",
        "_gone",
        "_peer",
        "_refusals",
        "_shuts_down",
        "is_encrypted",
        "principal",
    )

    def __init__(
        self,
        manager: web.Server,
        refusals: Refusals,
        *,
        client_timeout_seconds: float,
        accounts: Accounts | None = None,
        **options: Any,
    ) -> None:
        # Bodies of requests are thrown away, so nobody unpacks them.
        super().__init__(manager, max_field_size=_FIELD_MAX_BYTES, auto_decompress=False, **options)
        self._refusals = refusals
        self._client_timeout_seconds = client_timeout_seconds
        self._accounts = accounts
        self._account: Account | None = None  # that this connection is counted in
        self._peer = ""
        self.principal = Principal("")
        self.is_encrypted = False  # what is sent has to go through the transport
        self._gone = asyncio.Event()  # the client sends no more
        self._shuts_down = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the event loop."""
        super().connection_made(transport)
        peer = transport.get_extra_info("peername")
        self._peer = plain_address(peer[0]) if isinstance(peer, tuple) else ""
        tls = transport.get_extra_info("ssl_object")
        self.is_encrypted = tls is not None
        sock = transport.get_extra_info("socket")
        user = None if sock is None else peer_user(sock)
        self.principal = Principal(self._peer, certificate_names(tls) if tls is not None else (), uid=user)
        if sock is not None and user is None:
            # The kernel drops who takes nothing: small bodies are in its hands, nobody here waits for them.
            milliseconds = max(1, int(self._client_timeout_seconds * 1000))
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
        account = None if self._accounts is None else self._accounts.of(self.principal)
        if account is not None:
            self._count(account)

    def _count(self, account: Account) -> None:
        try:
            account.connected()
            self._account = account
        except LimitReached as error:
            self._refusals.limited(self.principal, error)
            status, body, headers = rendered(error, "other")
            headers = {**INERT, **JSON, **headers, "Connection": "close", "Content-Length": str(len(body))}
            lines = [f"HTTP/1.1 {status} Too Many Requests", *(f"{name}: {value}" for name, value in headers.items())]
            if self.transport is not None:
                self.transport.write("\r\n".join([*lines, "", ""]).encode() + body)
                self.transport.close()

    def connection_lost(self, exc: BaseException | None) -> None:
        """Called by the event loop."""
        if self._account is not None:
            self._account.disconnected()
            self._account = None
        super().connection_lost(exc)

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
        response = _LastWords(self.linger, status=status, body=body, headers={**INERT, **JSON, **headers})
        response.force_close()
        return response

    def retire(self) -> None:
        """End the connection: who is there has to be found out anew."""
        self.force_close()

    async def linger(self) -> None:
        """Take what the client still sends, for a moment: closed at once, the kernel would take the answer back.

        Source: RFC 9112, section 9.6.
        """
        if self.transport is not None and self.transport.can_write_eof():
            self.transport.write_eof()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LINGER_SECONDS):
                    await self._gone.wait()

    def eof_received(self) -> bool | None:  # type: ignore[override]  # asyncio's, which knows half-open connections
        """Called by the event loop."""
        self._gone.set()
        return None

    async def shutdown(self, timeout: float | None = 15.0) -> None:  # noqa: ASYNC109 -- aiohttp's signature
        """As aiohttp's: what is under way has *timeout* seconds to end."""
        self._shuts_down = True
        await super().shutdown(timeout)

    def log_exception(self, *args: Any, **kw: Any) -> None:
        """As aiohttp's, but what is wrong with the body of a request, which nobody needs, is no crash of ours.

        Nor is an answer that ends in the moment in which aiohttp gives up waiting for it: it was sent.
        """
        error = kw.get("exc_info")
        if self._shuts_down and isinstance(error, asyncio.InvalidStateError):
            return
        if isinstance(error, RequestPayloadError | HttpProcessingError):
            self._refusals.count("malformed", self._peer, well_formed(str(error).partition("\n")[0][:200]))
        else:
            super().log_exception(*args, **kw)


class _LastWords(web.Response):
    """An answer after which the connection ends, although the client may not have sent everything."""

    def __init__(self, linger: Callable[[], Awaitable[None]], **options: Any) -> None:
        super().__init__(**options)
        self._linger = linger

    async def write_eof(self, data: bytes = b"") -> None:
        """Called by aiohttp."""
        await super().write_eof(data)
        await self._linger()
