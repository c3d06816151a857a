"""One client's connection: the fast path when nothing else is going on, else aiohttp's.

It stands on attributes of ``RequestHandler`` that are not documented; tests/web/test_fast_path.py finds out when they
change.
"""

import asyncio
import socket
from typing import Any

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from proxy.errors import BadRequest
from proxy.units import well_formed
from proxy.web.errors import rendered
from proxy.web.exchange import INERT, JSON, plain_address
from proxy.web.fast_path import FastPath, FileAnswer
from proxy.web.refusals import Refusals
from proxy.web.routes import Route

_HEAD_MAX_BYTES = 1024
# Of one header's value: podman names hundreds of ranges in one, and twice as few after each 400.
_FIELD_MAX_BYTES = 16 * 1024
_END = b"\r\n\r\n"


class Connection(web.RequestHandler):
    """See the module.

    Args:
        client_timeout_seconds: how long the client may leave sent bytes unacknowledged, or its window closed.
    """

    __slots__ = (
        "_client_timeout_seconds", "_fast", "_head", "_held", "_peer", "_refusals", "_sending", "_within_head",
    )  # fmt: skip

    def __init__(
        self,
        manager: web.Server,
        fast: FastPath,
        refusals: Refusals,
        *,
        client_timeout_seconds: float,
        **options: Any,
    ) -> None:
        super().__init__(manager, max_field_size=_FIELD_MAX_BYTES, **options)
        self._fast = fast
        self._refusals = refusals
        self._client_timeout_seconds = client_timeout_seconds
        self._peer = ""
        self._within_head = False  # aiohttp's parser waits for the rest of one
        self._sending: asyncio.Task[None] | None = None  # a file is on its way
        self._held = b""  # what the client sent meanwhile
        self._head = b""  # of the request that aiohttp is about to handle, if it came alone and whole

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

    def data_received(self, data: bytes) -> None:
        """Called by the event loop."""
        if self._sending is not None:
            if data and self.transport is not None:
                self._held += data
                self.transport.pause_reading()  # this is all that is kept
            return
        if self._is_idle():
            answer = self._fast.answer(data, self, self._peer)
            if isinstance(answer, bytes) and self.transport is not None:
                self.transport.write(answer)
                self._was_used()
                return
            if isinstance(answer, FileAnswer):
                if answer.begin():
                    self._was_used()
                else:
                    self._sending = self._loop.create_task(self._finish(answer))
                return
            alone = len(data) <= _HEAD_MAX_BYTES and data.find(_END) == len(data) - len(_END)
            self._head = data if alone else b""
        elif data:
            self._head = b""  # pipelined, or in pieces
        if data:
            self._within_head = not data.endswith(_END)
        super().data_received(data)

    def learn(self, request: web.BaseRequest, route: Route) -> None:
        """*request* was let in and asks for *route*: when the same bytes come again, nobody has to parse them."""
        self._fast.learn(self._head, request, route)

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

    async def _finish(self, answer: FileAnswer) -> None:
        good = False
        try:
            good = await answer.finish()
        finally:
            self._sending = None
            if good:
                self._was_used()
            else:
                self.force_close()
        if self._held and self.transport is not None:
            held, self._held = self._held, b""
            self.transport.resume_reading()
            self.data_received(held)

    def _was_used(self) -> None:
        """aiohttp's timer looks at this before it closes an idle connection."""
        self._next_keepalive_close_time = self._loop.time() + self._keepalive_timeout

    def _process_keepalive(self) -> None:
        if self._sending is not None:
            self._was_used()  # how long the client may take nothing is the sender's to judge
        super()._process_keepalive()

    async def shutdown(self, timeout: float | None = 15.0) -> None:  # noqa: ASYNC109 -- aiohttp's signature
        """As aiohttp's: what is under way has *timeout* seconds to end."""
        if self._sending is not None:
            await asyncio.wait([self._sending], timeout=timeout)
        await super().shutdown(timeout)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Called by the event loop."""
        if self._sending is not None:
            self._loop.call_soon(self._sending.cancel)  # once it has begun: then it closes its file, and logs
        super().connection_lost(exc)

    def _is_idle(self) -> bool:
        """Whether everything before has been answered and taken, so that what comes now begins a request."""
        waiter = self._waiter
        return (
            (self._request_count == 0 if waiter is None else not waiter.done())
            and not self._messages
            and not self._within_head
            and not self._paused
            and not self._upgraded
            and not self._close
            and not self._force_close
        )
