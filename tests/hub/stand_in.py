"""A server that says byte for byte what a test wants: a registry, a token service or a CDN with habits of its own."""

import asyncio
import ssl
from collections.abc import Callable, Iterable

from .http import Connection, Listener, Request

Fields = Iterable[tuple[str, str]]


def reply(status: int = 200, body: bytes | str = b"", fields: Fields = (), *, length: int | None = -1) -> bytes:
    """An answer; ``length`` is what it announces, None nothing, and -1 the truth."""
    body = body.encode() if isinstance(body, str) else body
    lines = [f"HTTP/1.1 {status} Said", *(f"{name}: {value}" for name, value in fields)]
    if length is not None:
        lines.append(f"Content-Length: {len(body) if length == -1 else length}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


class StandIn:
    """Runs from ``start`` to ``close``; ``seen`` has every request, ``says`` makes the bytes of each answer."""

    def __init__(
        self,
        says: Callable[[Request], bytes],
        host: str = "127.0.0.1",
        contexts: Callable[[str], ssl.SSLContext] | None = None,
    ) -> None:
        self.says = says
        self.seen: list[Request] = []
        self.holds = False  # keep connections open whatever was said
        self.drips = False  # a byte now and then behind each answer, until the client hangs up
        self._listener = Listener(host, 0, self._exchange, contexts)
        self.url = self._listener.url

    async def start(self) -> None:
        await self._listener.start()

    async def close(self) -> None:
        await self._listener.close()

    @property
    def connections(self) -> int:
        """How many are open."""
        return self._listener.connections

    async def disconnect(self) -> None:
        """Cut every open connection, as a relay that has forgotten them."""
        await self._listener.disconnect()

    def targets(self, method: str | None = None) -> list[str]:
        return [request.target for request in self.seen if method in (None, request.method)]

    async def _exchange(self, request: Request, connection: Connection) -> bool:
        self.seen.append(request)
        said = self.says(request)
        if said and request.method == "HEAD" and b"X-Body-To-Head" not in said:
            said = said.partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
        await connection.send(said)
        while self.drips:
            await connection.send(b" ")
            await asyncio.sleep(0.02)
        framed = b"Content-Length" in said or b"chunked" in said
        return self.holds or (framed and b"Connection: close" not in said)
