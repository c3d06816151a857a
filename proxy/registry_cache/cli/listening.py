"""The addresses that `serve` listens on."""

import contextlib
import errno
import os
import socket
import ssl
from pathlib import Path

from aiohttp import web

from registry_cache.model.errors import reason_of
from registry_cache.runtime.unix_sockets import bound, is_free
from registry_cache.settings.types import host_and_port

_BACKLOG = 1024


class Listeners:
    """Opens addresses and closes them together.

    Args:
        transfers_seconds: how long what is under way may go on when they close.
    """

    def __init__(self, transfers_seconds: float) -> None:
        # aiohttp waits this long twice, before and after it stops reading request bodies, and takes zero for ever.
        self._timeout_seconds = max(transfers_seconds / 2, 0.001)
        self._paths: list[Path] = []
        self._runners: list[web.ServerRunner] = []

    async def listen(
        self, server: web.Server, address: str, setting: str = "LISTEN", *, tls: ssl.SSLContext | None = None
    ) -> str:
        """Serve *server* on *address*, which *setting* has; the URL.

        Raises:
            OSError: that is not possible; the text names both.
        """
        runner = web.ServerRunner(server, shutdown_timeout=self._timeout_seconds)
        await runner.setup()
        self._runners.append(runner)
        try:
            await _site(runner, address, tls).start()
        except OSError as error:
            raise OSError(f"{setting} {address}: {reason_of(error)}") from error
        host, port = runner.addresses[0][:2]
        scheme = "http" if tls is None else "https"
        return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"

    async def listen_at(self, path: Path) -> None:
        """Serve what was last listened for at a Unix socket, too; every user of this host may ask there.

        Raises:
            OSError: that is not possible; the text names it.
        """
        try:
            listener = bound(path, mode=0o666, backlog=_BACKLOG)
            await web.SockSite(self._runners[-1], listener, backlog=_BACKLOG).start()
            self._paths.append(path)
        except OSError as error:
            raise OSError(f"LISTEN_SOCKET {path}: {reason_of(error)}") from error

    async def aclose(self) -> None:
        """No new connections; those that are there have their time. The one that was opened first goes first."""
        for runner in self._runners:
            await runner.cleanup()
        for path in self._paths:
            with contextlib.suppress(OSError):
                path.unlink()


def _site(runner: web.ServerRunner, address: str, tls: ssl.SSLContext | None) -> web.BaseSite:
    """Where clients connect. ``[::]`` is every address, IPv4 ones too: the event loop would make it IPv6 alone."""
    host, port = host_and_port(address)
    if host != "::":
        return web.TCPSite(runner, host or None, port, ssl_context=tls, backlog=_BACKLOG)
    listener = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=_BACKLOG)
    return web.SockSite(runner, listener, ssl_context=tls, backlog=_BACKLOG)


def see_that_it_is_free(address: str, setting: str = "LISTEN") -> None:
    """Before anything is opened: a start that fails leaves no cache directory behind.

    Raises:
        OSError: somebody else listens there, or this user may not. Whatever else is wrong shows when it listens.
    """
    host, port = host_and_port(address)
    with contextlib.suppress(socket.gaierror):
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, kind, protocol, _, place in found:
            with socket.socket(family, kind, protocol) as trying:
                trying.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    trying.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, host != "::")
                try:
                    trying.bind(place)
                except OSError as error:
                    if error.errno in (errno.EADDRINUSE, errno.EACCES):
                        raise OSError(f"{setting} {address}: {os.strerror(error.errno)}") from error


def see_that_socket_is_free(path: Path) -> None:
    """As :func:`see_that_it_is_free`; LISTEN_SOCKET has *path*.

    Raises:
        OSError: somebody listens there, it is no socket, or this user may not look.
    """
    try:
        is_there = not is_free(path)
    except OSError as error:
        raise OSError(f"LISTEN_SOCKET {path}: {reason_of(error)}") from error
    if is_there:
        raise OSError(f"LISTEN_SOCKET {path}: {os.strerror(errno.EADDRINUSE)}")
