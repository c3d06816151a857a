"""What the look-alike can do wrong."""

import asyncio
from collections.abc import Callable
from typing import Literal

import msgspec

from .http import Connection

ServiceName = Literal["registry", "token", "cdn", "untrusted"]
Kind = Literal["manifest", "blob", "tags", "referrers", "ping", "token", "other"]


class Fault(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """One misdeed and the requests that meet it; the first fault that matches is used.

    Which requests (an unset field matches all):
        service, kind, method; path: a part of the request's target, query included; times: how often before it wears
        off (None: for ever); after: so many matching requests go unharmed first; challenges: also meet requests which
        would only get the 401 challenge (the others are left alone, so that ``times`` counts real answers).

    What happens (may be combined; every byte count is of the response's own body):
        status, body, headers: say this instead; ``body`` or ``headers`` without ``status`` change the true answer.
        drop_headers: leave these out.
        drop_connection: close before the headers.
        delay_seconds: wait before the headers (ends early with ``Faults.release``).
        reset_after_bytes: RST. end_after_bytes: close early. stall_after_bytes: wait for ``Faults.release``.
        flip_byte_at: wrong byte. truncate_to_bytes: shorter and well framed. append_bytes: longer by so many spaces and
        well framed. extra_bytes: so many bytes beyond Content-Length.
        framing: "chunked" or "close" (neither length nor chunks) instead of Content-Length.
        range_start_shift: added to the start that Content-Range claims. range_total: the total that it claims.
        ignore_range: the whole blob with 200. range_as_200: the part that was asked for, but as 200.
        redirect_loop: 307 to itself. redirect_to: 307 to there. expired_redirect: the CDN's URL has expired.
        bandwidth_bytes_per_second: of this response.
    """

    service: ServiceName | None = None
    kind: Kind | None = None
    method: str | None = None
    path: str = ""
    times: int | None = None
    after: int = 0
    challenges: bool = False

    status: int | None = None
    body: str | None = None
    headers: dict[str, str] = {}
    drop_headers: tuple[str, ...] = ()
    drop_connection: bool = False
    delay_seconds: float | None = None
    reset_after_bytes: int | None = None
    end_after_bytes: int | None = None
    stall_after_bytes: int | None = None
    flip_byte_at: int | None = None
    truncate_to_bytes: int | None = None
    append_bytes: int = 0
    extra_bytes: int = 0
    framing: Literal["length", "chunked", "close"] = "length"
    range_start_shift: int = 0
    range_total: int | None = None
    ignore_range: bool = False
    range_as_200: bool = False
    redirect_loop: bool = False
    redirect_to: str | None = None
    expired_redirect: bool = False
    bandwidth_bytes_per_second: int | None = None

    met: int = 0

    def matches(self, service: str, kind: str, method: str, target: str, *, challenge: bool) -> bool:
        return (
            self.service in (None, service)
            and self.kind in (None, kind)
            and self.method in (None, method)
            and self.path in target
            and (self.challenges or not challenge)
            and (self.times is None or self.met - self.after < self.times)
        )


NO_FAULT = Fault()


class Faults:
    """The misdeeds in force. ``add`` one, ``clear`` them all, ``release`` those who stall."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self.active: list[Fault] = []
        self.waiting = 0  # clients that a fault keeps waiting now
        self._released = asyncio.Event()
        self._changed = changed

    def add(self, fault: Fault) -> Fault:
        """Put *fault* in force; its ``met`` counts the requests that it matched, unharmed ones included."""
        self.active.append(fault)
        return fault

    def clear(self) -> None:
        """End all faults; responses that stall go on."""
        self.active.clear()
        self.release()

    def release(self) -> None:
        """Let everything go on that waits now; later requests stall again."""
        self._released.set()
        self._released = asyncio.Event()

    async def hold(self, fault: Fault, connection: Connection, seconds: float | None) -> None:
        """Keep a client waiting until ``release``; not at all once *fault* was cleared.

        Raises:
            ConnectionResetError: the client left meanwhile.
        """
        if not any(active is fault for active in self.active):
            return
        self.waiting += 1
        self._changed()
        try:
            await connection.pause(seconds, self._released)
        finally:
            self.waiting -= 1
            self._changed()

    def take(self, service: str, kind: str, method: str, target: str, *, challenge: bool = False) -> Fault:
        """Return the fault that this request meets, and count it; ``NO_FAULT`` when there is none."""
        for fault in self.active:
            if fault.matches(service, kind, method, target, challenge=challenge):
                fault.met += 1
                if fault.met > fault.after:
                    return fault
        return NO_FAULT
