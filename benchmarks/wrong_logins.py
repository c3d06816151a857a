"""Wrong logins at a rate, from many addresses, by a process that takes little of the machine itself."""

import asyncio
import base64
import contextlib
import multiprocessing
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import cast
from urllib.parse import urlsplit

import uvloop

from benchmarks.systems import System

PER_SECOND = 500
# Each has a connection, and waits for its answer before it sends the next one: so many reach that rate.
ADDRESSES = 250


@contextmanager
def flood(system: System) -> Iterator[dict[int, int]]:
    """Wrong logins at that rate, each another password, while the block runs; their statuses, once it is over."""
    context, seen = multiprocessing.get_context("spawn"), dict[int, int]()
    mine, theirs = context.Pipe()
    process = context.Process(target=_run, args=(system.url, theirs))
    process.start()
    theirs.close()
    try:
        mine.recv()
        yield seen
        mine.send("over")
        seen.update(mine.recv())
        if not seen:
            raise RuntimeError("no login was answered")
    finally:
        mine.close()
        process.join()


def _run(url: str, parent: Connection) -> None:
    with contextlib.suppress(EOFError, OSError):
        uvloop.run(_send(url, parent))


async def _send(url: str, parent: Connection) -> None:
    """Say that it begins, send until told that it is over, and say what was answered."""
    split = urlsplit(url)
    loop, statuses, idle = asyncio.get_running_loop(), Counter[int](), deque[_Client]()
    for number in range(ADDRESSES):
        local = (f"127.0.{1 + number // 250}.{1 + number % 250}", 0)
        await loop.create_connection(
            lambda: _Client(split.netloc, statuses, idle), split.hostname, split.port, local_addr=local
        )
    parent.send("begun")
    over = loop.run_in_executor(None, parent.recv)
    began, sent = loop.time(), 0
    while not over.done():
        if idle:
            idle.popleft().send(f"ci:wrong {sent}")
        sent += 1
        await asyncio.sleep(began + sent / PER_SECOND - loop.time())
    await over
    parent.send(statuses)


class _Client(asyncio.Protocol):
    """A connection; it is among *idle* while it waits for no answer."""

    def __init__(self, host: str, statuses: Counter[int], idle: "deque[_Client]") -> None:
        self._start = f"GET /v2/ HTTP/1.1\r\nHost: {host}\r\nAccept-Encoding: identity\r\nAuthorization: Basic "
        self._statuses = statuses
        self._idle = idle
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)
        self._idle.append(self)

    def send(self, login: str) -> None:
        encoded = base64.b64encode(login.encode()).decode()
        self._transport.write(f"{self._start}{encoded}\r\n\r\n".encode())

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, found, body = self._received.partition(b"\r\n\r\n")
        _, _, length = head.lower().partition(b"\r\ncontent-length: ")
        if found and len(body) >= int(length.partition(b"\r\n")[0]):
            self._statuses[int(head.split(b" ", 2)[1])] += 1
            self._received = b""
            self._idle.append(self)
