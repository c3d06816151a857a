"""Fifty clients at once on one large cold blob, for whatever part of it: each byte once, little memory."""

import asyncio
import mmap
from dataclasses import dataclass

import aiohttp
import pytest

from tests.e2e.command import until
from tests.hub.content import write_random

pytestmark = pytest.mark.e2e

CLIENTS = 50
SIZE_BYTES = 200_000_000
STALL_AFTER_BYTES = 20_000_000
MEMORY_BYTES = 150_000_000
SEED = "crowd"


@dataclass(frozen=True)
class Ask:
    """What one client wants: a Range header, and the bytes [start, stop) that it names."""

    header: str | None
    start: int
    stop: int
    leaves: bool  # half-way

    @property
    def status(self) -> int:
        return 206 if self.header else 200


def asks():
    """Whole, open-ended, closed and suffix ranges by turns, near the beginning, in the middle and far ahead."""
    for number in range(CLIENTS):
        first = number * SIZE_BYTES // CLIENTS + number
        match number % 4:
            case 0:
                header, start, stop = None, 0, SIZE_BYTES
            case 1:
                header, start, stop = f"bytes={first}-", first, SIZE_BYTES
            case 2:
                start, stop = first, min(first + 30_000_001, SIZE_BYTES)
                header = f"bytes={start}-{stop - 1}"
            case _:
                header, start, stop = f"bytes=-{first}", SIZE_BYTES - first, SIZE_BYTES
        yield Ask(header, start, stop, leaves=number % 3 == 2)


class Client:
    """Takes what it asked for and compares each piece with what it should be; keeps nothing."""

    def __init__(self, session, url, content, ask):
        self._session = session
        self._url = url
        self._content = content
        self.ask = ask
        self.answered = asyncio.Event()
        self.finished = False

    async def run(self):
        headers = {"Range": self.ask.header} if self.ask.header else {}
        async with self._session.get(self._url, headers=headers) as response:
            self.answered.set()
            assert response.status == self.ask.status
            assert int(response.headers["Content-Length"]) == self.ask.stop - self.ask.start
            if self.ask.header:
                expected = f"bytes {self.ask.start}-{self.ask.stop - 1}/{SIZE_BYTES}"
                assert response.headers["Content-Range"] == expected
            await self._read(response)

    async def _read(self, response):
        position, half = self.ask.start, (self.ask.start + self.ask.stop) // 2
        async for piece in response.content.iter_chunked(1 << 20):
            assert piece == self._content[position : position + len(piece)], f"{self.ask}: wrong bytes at {position}"
            position += len(piece)
            if self.ask.leaves and position >= half:
                response.close()
                return
        assert position == self.ask.stop
        self.finished = True


async def run_clients(url, hub, content):
    """All clients have their headers before upstream goes on: every one of them meets a cold blob."""
    timeout = aiohttp.ClientTimeout(total=100)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as session:
        clients = [Client(session, url, content, ask) for ask in asks()]
        async with asyncio.TaskGroup() as group:
            for client in clients:
                group.create_task(client.run())
            await asyncio.gather(*(client.answered.wait() for client in clients))
            await asyncio.to_thread(hub.clear_faults)
    return clients


@pytest.fixture
def content(tmp_path):
    """The blob as it should be."""
    path = tmp_path / "content"
    with path.open("wb+") as file:
        write_random(file, SEED, SIZE_BYTES)
        file.flush()
        with mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
            yield mapped
    path.unlink()


async def test_fifty_clients_on_one_cold_blob(start_cache, hub, repository, content):
    hub.image(repository, "1", make="image")  # without one there is no such repository
    digest = hub.random_blob(repository, SIZE_BYTES, SEED)["digest"]
    cache = start_cache()
    hub.fault(service="cdn", kind="blob", method="GET", stall_after_bytes=STALL_AFTER_BYTES)
    clients = await run_clients(f"{cache.url}/v2/{repository}/blobs/{digest}", hub, content)

    assert [client.finished for client in clients] == [not client.ask.leaves for client in clients]
    assert sum(client.finished for client in clients) == 34
    until(lambda: cache.stats()["flights"] == 0, "the flight has landed")
    counters = hub.counters(records=True)
    assert SIZE_BYTES <= counters["blob_bytes"] <= 1.05 * SIZE_BYTES
    ranges = [record["range"] for record in counters["records"] if record["service"] == "cdn"]
    assert ranges[0] is None
    assert len(set(ranges)) == len(ranges)  # more than one where this machine is slow, each once
    results = sorted(line["cache"] for line in cache.settled())
    assert results == ["collapsed"] * (CLIENTS - 1) + ["miss"]
    assert cache.peak_memory_bytes() < MEMORY_BYTES
    assert cache.blob(repository, digest, "HEAD").cache_status == "registry-cache; hit"


def test_client_has_every_byte_that_has_arrived(start_cache, hub, repository):
    """A slow upstream is passed on as it is: nothing waits in the cache for more to come."""
    image = hub.image(repository, "1", make="image", layers=[2_000_000])
    cache = start_cache(read_timeout="100s")
    hub.fault(service="cdn", kind="blob", method="GET", stall_after_bytes=1_000_000)
    with cache.stream(f"/v2/{repository}/blobs/{image['layers'][0]['digest']}") as response:
        pieces, count = response.iter_raw(), 0
        while count < 1_000_000:
            count += len(next(pieces))  # fails when the client loses patience, long before the cache does
        hub.clear_faults()
        assert count + sum(map(len, pieces)) == 2_000_000
