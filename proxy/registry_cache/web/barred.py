"""Logins that are not looked at, because their address has sent too many wrong ones: refused with the bytes of before.

One that comes by aiohttp's objects costs as much as some hits, and hits wait for it.
"""

import http
import time
from typing import NamedTuple

import msgspec
from aiohttp import hdrs, web
from aiohttp.helpers import rfc822_formatted_time
from aiohttp.http import HttpVersion11

from registry_cache.access.control import Access
from registry_cache.access.rules import Principal
from registry_cache.model import events
from registry_cache.model.bus import Events
from registry_cache.model.errors import LoginNeeded
from registry_cache.web.fast_path import end_of_head, start_of_head
from registry_cache.web.identity import decoded

_LOGIN_LINE = b"\r\nAuthorization: Basic "
_HEADS_MAX = 1024


class _Refusal(NamedTuple):
    start: bytes
    body: bytes
    event: events.Request | None


class BarredLogins:
    """See the module."""

    def __init__(self, access: Access, events: Events) -> None:
        self._access = access
        self._events = events
        self._refusals: dict[bytes, _Refusal] = {}  # by heads without the line of the login

    def learn(
        self, head: bytes, request: web.BaseRequest, response: web.Response, event: events.Request | None
    ) -> None:
        """*request*, which came as *head*, was refused so, and told of as *event*, if it is told of."""
        head, login = _without_login(head)
        if not login or request.version != HttpVersion11 or not request.keep_alive:
            return
        if len(self._refusals) >= _HEADS_MAX:
            self._refusals.clear()
        body = response.body if isinstance(response.body, bytes) else b""
        status = http.HTTPStatus(response.status)
        start = start_of_head(f"{status.value} {status.phrase}", dict(response.headers), len(body))
        self._refusals[head] = _Refusal(start, b"" if request.method == hdrs.METH_HEAD else body, event)

    def answer(self, head: bytes, principal: Principal, client: str) -> bytes | None:
        """What to send for *head*, if its login is not looked at; it is logged as sent.

        Args:
            principal: who sends it, by the connection.
            client: its address, for the log.
        """
        began = time.perf_counter()
        head, login = _without_login(head)
        refusal = self._refusals.get(head)
        if refusal is None or not self._is_barred(login, principal):
            return None
        if refusal.event is not None:
            took_ms = round((time.perf_counter() - began) * 1000, 3)
            whose = {"client": client, "principal": principal.name, "auth": principal.auth}
            event = msgspec.structs.replace(refusal.event, time=time.time(), duration_ms=took_ms, **whose)
            self._events.emit(event)
        return refusal.start + end_of_head(rfc822_formatted_time()) + refusal.body

    def _is_barred(self, login: bytes, principal: Principal) -> bool:
        if not self._access.bars(principal.origin):
            return False
        try:
            user, password = decoded(login.decode("ascii"))
        except (LoginNeeded, UnicodeDecodeError):
            return False
        return not self._access.knows(user, password)


def _without_login(head: bytes) -> tuple[bytes, bytes]:
    before, found, rest = head.partition(_LOGIN_LINE)
    login, _, after = rest.partition(b"\r\n")
    return (before + b"\r\n" + after, login) if found else (head, b"")
