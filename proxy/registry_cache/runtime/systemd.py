"""What systemd is told: ready, stopping, how it goes, and that the event loop still turns.

Datagrams to the socket that ``NOTIFY_SOCKET`` names. Source: sd_notify(3), sd_watchdog_enabled(3).
"""

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Self

from registry_cache.model.errors import reason_of

_STATUS_SECONDS = 30.0
_STOP_MARGIN_SECONDS = 15.0  # after the grace for transfers: the index is flushed, the directory let go


class Notifier:
    """Speaks to systemd from the event loop; started by something else, it says nothing.

    What cannot be sent goes along with the next message: a full socket loses no READY.

    Args:
        environ: where NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID are looked up.
        warn: told, once, that systemd cannot be reached or is not understood.
    """

    def __init__(self, environ: Mapping[str, str], *, warn: Callable[[str], None]) -> None:
        self._warn: Callable[[str], None] | None = warn
        self._socket: socket.socket | None = None
        self._address = _socket_address(environ.get("NOTIFY_SOCKET", ""))
        self._watchdog_seconds = self._read_watchdog(environ)
        self._unsent: dict[str, str] = {}
        self._is_stopping = False
        self._beats: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        if self._address:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._beats is not None:
            self._beats.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._beats
        if self._socket is not None:
            self._socket.close()

    def ready(self, status: Callable[[], str]) -> None:
        """The service answers; from now on *status*, one line for people, is sent with each beat of the watchdog.

        A beat is sent at half of WATCHDOG_USEC, by the event loop: when that stands still, systemd restarts us.
        """
        if self._socket is not None:
            self._send({"READY": "1", "STATUS": status()})
            self._beats = asyncio.create_task(self._beat(status), name="systemd")

    def stopping(self, grace_seconds: float) -> None:
        """The service stops, which may take *grace_seconds* whatever the unit's TimeoutStopSec= says."""
        self._is_stopping = True
        microseconds = int((grace_seconds + _STOP_MARGIN_SECONDS) * 1_000_000)
        status = f"Stopping: transfers under way have {grace_seconds:g} s"
        self._send({"STOPPING": "1", "STATUS": status, "EXTEND_TIMEOUT_USEC": str(microseconds)})

    async def _beat(self, status: Callable[[], str]) -> None:
        pause_seconds = self._watchdog_seconds / 2 if self._watchdog_seconds else _STATUS_SECONDS
        beat = {"WATCHDOG": "1"} if self._watchdog_seconds else {}
        said = ""
        while True:
            await asyncio.sleep(pause_seconds)
            # After STOPPING the last word stands.
            news = {} if (text := status()) == said or self._is_stopping else {"STATUS": text}
            said = text
            self._send(beat | news)

    def _send(self, fields: dict[str, str]) -> None:
        self._unsent |= fields
        if self._socket is None or not self._unsent:
            return
        message = "".join(f"{name}={value}\n" for name, value in self._unsent.items())
        try:
            self._socket.sendto(message.encode(), self._address)
        except BlockingIOError:
            return
        except OSError as error:
            self._warn_once(f"NOTIFY_SOCKET: systemd cannot be told: {reason_of(error)}")
            return
        self._unsent.clear()

    def _read_watchdog(self, environ: Mapping[str, str]) -> float | None:
        try:
            return watchdog_seconds(environ, os.getpid())
        except ValueError as error:
            self._warn_once(f"WATCHDOG_USEC: there will be no watchdog: {error}")
            return None

    def _warn_once(self, message: str) -> None:
        if self._warn is not None:
            self._warn(message)
            self._warn = None


def watchdog_seconds(environ: Mapping[str, str], pid: int) -> float | None:
    """How long the process *pid* may be silent before systemd holds it to be stuck; ``None``: for ever.

    Raises:
        ValueError: a variable is not a number.
    """
    if int(environ.get("WATCHDOG_PID") or pid) != pid:
        return None
    return int(environ.get("WATCHDOG_USEC") or 0) / 1_000_000 or None


def _socket_address(name: str) -> str:
    """``@`` begins an abstract name, as in unix(7) a zero byte does."""
    return f"\0{name[1:]}" if name.startswith("@") else name
