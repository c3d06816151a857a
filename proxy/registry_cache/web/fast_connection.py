"""A client's connection with the fast path: taken when nothing else is going on, else aiohttp's way.

It stands on attributes of ``RequestHandler`` that are not documented. They are looked for at the start
(:func:`missing_attributes`): where they are gone, connections are plain ones, and hits are slower.
"""

import asyncio
from typing import Any

from aiohttp import web

from registry_cache.model import events
from registry_cache.web.connection import Connection
from registry_cache.web.fast_path import FastPath, FileAnswer
from registry_cache.web.refusals import Refusals
from registry_cache.web.routes import Route

_HEAD_MAX_BYTES = 1024
_END = b"\r\n\r\n"
_STANDS_ON = (
    "_close", "_current_request", "_force_close", "_keepalive_timeout", "_loop", "_messages",
    "_next_keepalive_close_time", "_paused", "_process_keepalive", "_request_count", "_upgraded", "_waiter",
)  # fmt: skip


def missing_attributes() -> list[str]:
    """What :class:`FastConnection` stands on and this aiohttp does not have; it must not be used then."""
    return [name for name in _STANDS_ON if not hasattr(web.RequestHandler, name)]


class FastConnection(Connection):
    """See the module."""

    __slots__ = ("_ended", "_fast", "_head", "_held", "_sending", "_within_head")

    def __init__(self, manager: web.Server, refusals: Refusals, *, fast: FastPath, **options: Any) -> None:
        super().__init__(manager, refusals, **options)
        self._fast = fast
        self._ended = False  # the client sends no more, and waits for its answers
        self._within_head = False  # aiohttp's parser waits for the rest of one
        self._sending: asyncio.Task[None] | None = None  # a file is on its way
        self._held = b""  # what the client sent meanwhile
        self._head = b""  # of the request that aiohttp is about to handle, if it came alone and whole

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

    def learn_refusal(self, request: web.BaseRequest, response: web.Response, event: events.Request | None) -> None:
        """*request* was refused by *response*, because of where its login comes from."""
        self._fast.learn_refusal(self._head, request, response, event)

    def eof_received(self) -> bool:  # type: ignore[override]  # asyncio's, which knows half-open connections
        """Called by the event loop: the client has shut its sending half, and gets its answers all the same.

        Whether the transport stays open. One that has closed the whole connection looks the same until it is sent
        something.
        """
        super().eof_received()
        if self.is_encrypted or (self._sending is None and self._waits_for_a_request()):
            return False  # TLS has no half-closed connections here: its transport ends
        self._ended = True
        self.begins(self._current_request)
        return True

    def begins(self, request: web.BaseRequest | None) -> None:
        """*request* is being answered; if it is the last one of a client that sends no more, nothing comes after it."""
        if self._ended and not self._messages and self._sending is None:
            self._close = True
            if request is not None and not request.content.is_eof():
                request.content.feed_eof()  # the rest of its body will not come

    def retire(self) -> None:
        """As :class:`Connection`'s, but for the answer that is under way: it is the last one."""
        self._close = True
        if self._sending is None and self.transport is not None and self._waits_for_a_request():
            self.transport.close()

    def _waits_for_a_request(self) -> bool:
        waiter = self._waiter
        return not self._messages and (self._request_count == 0 if waiter is None else not waiter.done())

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
        if self._close and self.transport is not None:
            self.transport.close()
        elif self._held and self.transport is not None:
            held, self._held = self._held, b""
            self.transport.resume_reading()
            self.data_received(held)
        self._end_if_ended()

    def _end_if_ended(self) -> None:
        if self._ended and self._sending is None and self.transport is not None:
            if self._waits_for_a_request():
                self.transport.close()
            else:
                self.begins(None)

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
        waiter = self._waiter  # as in _waits_for_a_request(): every hit comes here
        return (
            (self._request_count == 0 if waiter is None else not waiter.done())
            and not self._messages
            and not self._within_head
            and not self._paused
            and not self._upgraded
            and not self._close
            and not self._force_close
        )
