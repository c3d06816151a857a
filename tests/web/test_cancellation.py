"""A cancelled reader, flight or shutdown leaves everything as it was: rooms, threads, locks and files."""

import asyncio
import contextlib
import ssl
import threading
from pathlib import Path

import pytest

from registry_cache.model.oci import Digest, Repository
from registry_cache.upstream.addresses import AddressRules
from registry_cache.upstream.ask import Ask
from registry_cache.upstream.bulk import BulkClient
from registry_cache.upstream.dialling import Dialling
from registry_cache.upstream.redact import Redactor
from tests.cache import run_cache
from tests.hub import Fault

SIZE = 3_000_000


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.fixture
async def flight(cache, hub, request):
    """A flight that stands still in the middle, nobody reading."""
    name = f"library/{request.node.name.lower()}"
    image = await hub.images.image(name, "1", [SIZE, 1000])
    await cache.blob(name, image.layers[1].digest)  # opens the connections upstream that are kept
    await cache.settled()
    cache.open_files = open_files()
    hub.faults.add(Fault(service="cdn", stall_after_bytes=1_500_000, times=1))
    reader = cache.proxy.flights.join(Repository.parse(name), Digest(image.layers[0].digest))
    await reader.size()
    while reader.flight.available <= 1_000_000:
        await reader.flight.change()
    yield reader
    reader.close()


async def test_cancelled_flight_keeps_what_it_has_and_gives_back_the_rest(cache, hub, flight):
    flights, store = cache.proxy.flights, cache.proxy.store
    assert len(flights._runways["docker.io"].boarding._slots._held) == 1
    await flights.aclose()
    flight.close()
    assert len(flights) == 0
    assert not flights._runways["docker.io"].boarding._slots._held
    assert store.ingests == 0
    partial = cache.root / "partials" / flight.flight.digest.replace(":", "-")
    assert store.totals().partial_bytes == partial.stat().st_size > 0
    assert flight.flight.error is not None
    async with asyncio.timeout(10):
        while open_files() > cache.open_files:  # the look-alike's end of the connection
            await asyncio.sleep(0.02)
    hub.faults.clear()
    reply = await cache.blob(flight.flight.repository.name, flight.flight.digest)
    assert reply.body == hub.images.read(flight.flight.digest)


async def test_cancelled_readers_leave_the_flight_and_nothing_else(cache, hub, flight):
    path = f"/v2/{flight.flight.repository.name}/blobs/{flight.flight.digest}"
    asked = [asyncio.create_task(cache.get(path)) for _ in range(5)]
    async with asyncio.timeout(10):
        while len(flight.flight.readers) < 6:
            await asyncio.sleep(0.02)
    for task in asked:
        task.cancel()
    await asyncio.gather(*asked, return_exceptions=True)
    assert not flight.flight.over
    hub.faults.release()
    await flight.landed()
    async with asyncio.timeout(10):  # who has only shut its sending half is known by what it does not take
        while len(flight.flight.readers) > 1:
            await asyncio.sleep(0.02)
    flight.close()
    await cache.settled()
    assert hub.counters.blob_gets(flight.flight.digest) == 1
    assert flight.flight.partial is None  # the last reader closed the file


async def test_a_cancelled_transfer_takes_no_more_than_the_piece_under_way():
    """Of what has arrived by then, megabytes lie in the socket's buffers."""

    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % SIZE + bytes(SIZE))
        with contextlib.suppress(ConnectionError):
            await writer.drain()
        writer.close()

    rules = AddressRules("http://127.0.0.1")
    bulk = BulkClient(Dialling(ssl.create_default_context(), rules, Redactor(), 5, 5), connections=1)
    taken, interrupted = threading.Event(), threading.Event()
    pieces = []

    def take(piece):
        pieces.append(len(piece))
        taken.set()
        assert interrupted.wait(20)

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        url = "http://{}:{}/".format(*server.sockets[0].getsockname())
        reply = await bulk.send(Ask("GET", url, ""))
        interrupt = reply.interrupt
        reply.interrupt = lambda: (interrupt(), interrupted.set())
        draining = asyncio.create_task(reply.drain(take))
        await asyncio.to_thread(taken.wait, 20)
        draining.cancel()
        with pytest.raises(asyncio.CancelledError):
            await draining
        reply.close()
    bulk.close()
    assert len(pieces) == 1


async def test_an_upstream_that_says_nothing_keeps_no_thread_after_the_end(tmp_path, hub):
    """A process waits for its threads: it ended after READ_TIMEOUT, whatever the grace."""
    image = await hub.images.image("library/silent", "1", [SIZE, SIZE])
    digests = [layer.digest for layer in image.layers]
    async with run_cache(tmp_path / "silent", hub, read_timeout="1h", request_timeout="1h") as cache:
        hub.faults.add(Fault(service="cdn", path=digests[0].partition(":")[2], delay_seconds=3600))
        hub.faults.add(Fault(service="cdn", path=digests[1].partition(":")[2], stall_after_bytes=1000))
        asked = [asyncio.create_task(cache.blob("library/silent", digest)) for digest in digests]
        await hub.counters.wait_for(lambda: hub.faults.waiting == 2)
        upstream = cache.proxy.upstream
        for task in asked:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)
    threads = upstream._bulk._threads._pool._threads
    for thread in threads:
        await asyncio.to_thread(thread.join, 20)
    assert not any(thread.is_alive() for thread in threads)
