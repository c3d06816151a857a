"""A piece of network that a test can break: a TCP proxy that forwards, refuses, or swallows everything."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Literal

State = Literal["works", "refuses", "frozen"]


class Wire:
    """Leads from ``address`` to *target*."""

    def __init__(self, target: tuple[str, int], host: str) -> None:
        self.target = target
        self._host = host
        self._port = 0
        self._server: asyncio.Server | None = None
        self._flows = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def address(self) -> str:
        return f"{self._host}:{self._port}"

    async def set(self, state: State) -> None:
        """What becomes of connections from now on, those that are there too."""
        if state == "frozen":
            self._flows.clear()
        else:
            self._flows.set()
        if state == "refuses":
            await self._close()
        elif self._server is None:
            self._server = await asyncio.start_server(self._connected, self._host, self._port)
            self._port = self._server.sockets[0].getsockname()[1]

    async def _close(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        for writer in self._writers:
            writer.transport.abort()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self._writers.add(writer)
        try:
            with contextlib.suppress(OSError):
                back, forth = await asyncio.open_connection(*self.target)
                self._writers.add(forth)
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._copy(reader, forth))
                    group.create_task(self._copy(back, writer))
        except asyncio.CancelledError:
            pass
        finally:
            writer.transport.abort()

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(64 * 1024):
                await self._flows.wait()
                writer.write(data)
                await writer.drain()
        with contextlib.suppress(OSError, RuntimeError):
            writer.close()


@contextlib.asynccontextmanager
async def wire(target: tuple[str, int], host: str = "127.0.0.1") -> AsyncIterator[Wire]:
    made = Wire(target, host)
    await made.set("works")
    try:
        yield made
    finally:
        await made._close()
