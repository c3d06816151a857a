"""Several connections for a large blob: only where one is slow, the same bytes, and no end of them."""

import asyncio
import threading

import pytest

from registry_cache.model import events
from registry_cache.model.oci import Digest, Repository
from registry_cache.pull import parallel
from registry_cache.store.partial import DiskPartial
from tests.hub import Fault

SIZE = 40 * 300_000
REPOSITORY = "library/large"


@pytest.fixture
def segments(monkeypatch):
    monkeypatch.setattr(parallel, "SEGMENT_BYTES", 1_000_000)
    monkeypatch.setattr(parallel, "WORTH_BYTES", 2_000_000)


@pytest.fixture
async def blob(hub, segments):
    image = await hub.images.image(REPOSITORY, "1", [SIZE])
    return image.layers[0].digest


@pytest.fixture
async def cache(start_cache):
    return await start_cache(blob_connections=4)


def slow(hub, bytes_per_second: int = 6_000_000) -> None:
    hub.behaviour.bandwidth_bytes_per_second = bytes_per_second


def is_settled(cache) -> bool:
    source = cache.proxy.flights._runways["docker.io"].source
    return source._spare == parallel.EXTRA_CONNECTIONS


@pytest.fixture
def at_once(monkeypatch):
    """Any connection is slow enough, from its first piece on: no test waits for the processor to be free."""
    monkeypatch.setattr(parallel, "_WATCHED_SECONDS", 0.0)
    monkeypatch.setattr(parallel, "_SLOW_BYTES_PER_SECOND", 1e12)
    monkeypatch.setattr(parallel, "_WORTH_SECONDS", 0.0)


async def test_a_slow_connection_gets_help_and_the_bytes_are_the_same(cache, hub, blob):
    slow(hub, 1_500_000)
    assert (await cache.blob(REPOSITORY, blob)).body == hub.images.read(blob)
    await cache.settled()
    assert hub.counters.blob_gets(blob) > 4
    assert is_settled(cache)
    assert (await cache.blob(REPOSITORY, blob)).cache_status == "registry-cache; hit"
    assert not cache.seen(events.FlightResumed)


async def test_a_fast_one_stays_alone(cache, hub, blob, monkeypatch):
    monkeypatch.setattr(parallel, "_SLOW_BYTES_PER_SECOND", 1.0)
    assert (await cache.blob(REPOSITORY, blob)).status == 200
    assert hub.counters.blob_gets(blob) == 1


async def test_by_default_one_that_is_not_large_is_fetched_by_one_get(start_cache, hub, blob, monkeypatch):
    monkeypatch.setattr(parallel, "WORTH_BYTES", 32 * 1024 * 1024)
    cache = await start_cache()
    slow(hub)
    assert (await cache.blob(REPOSITORY, blob)).status == 200
    assert hub.counters.blob_gets(blob) == 1


@pytest.mark.parametrize(("connections", "gets"), [(None, range(2, 20)), (1, range(1, 2))])
async def test_a_large_one_over_a_slow_link_gets_more_and_no_byte_twice(start_cache, hub, connections, gets):
    """The default; 1 switches it off. What was under way on the first connection when it is told to stop is all."""
    size = 48_000_000
    image = await hub.images.image("library/huge", "1", [size])
    digest = image.layers[0].digest
    cache = await start_cache(**({} if connections is None else {"blob_connections": connections}))
    slow(hub, 20_000_000)
    assert (await cache.blob("library/huge", digest)).body == hub.images.read(digest)
    assert hub.counters.blob_gets(digest) in gets
    assert hub.counters.blob_bytes(digest) <= 1.05 * size


async def test_no_more_connections_than_there_are_for_all_blobs(start_cache, hub, segments, monkeypatch, at_once):
    monkeypatch.setattr(parallel, "EXTRA_CONNECTIONS", 5)
    cache = await start_cache(blob_connections=4)
    image = await hub.images.image("library/several", "1", [SIZE, SIZE, SIZE])
    slow(hub)
    source, given = cache.proxy.flights._runways["docker.io"].source, []
    take = source.take
    monkeypatch.setattr(source, "take", lambda: given.append(take()) or given[-1])
    digests = [layer.digest for layer in image.layers]
    replies = await asyncio.gather(*(cache.blob("library/several", digest) for digest in digests))
    assert [reply.body for reply in replies] == [hub.images.read(digest) for digest in digests]
    await cache.settled()
    assert set(given) == {0, 3}  # five are enough for one blob at a time
    assert is_settled(cache)


@pytest.mark.parametrize(
    "misdeed",
    [
        {"reset_after_bytes": 300_000},
        {"end_after_bytes": 300_000},
        {"status": 503},
        {"ignore_range": True},
        {"range_start_shift": 7},
        {"append_bytes": 2_000_000, "framing": "chunked"},
    ],
    ids=lambda misdeed: next(iter(misdeed)),
)
async def test_a_range_that_fails_costs_a_resume_and_no_byte(cache, hub, blob, misdeed, at_once):
    slow(hub)
    hub.faults.add(Fault(service="cdn", path=blob.partition(":")[2], after=2, times=1, **misdeed))
    assert (await cache.blob(REPOSITORY, blob)).body == hub.images.read(blob)
    await cache.settled()
    assert cache.seen(events.FlightResumed)
    assert is_settled(cache)
    assert cache.proxy.flights._runways["docker.io"].source.ranges_work == misdeed.keys().isdisjoint(
        {"ignore_range", "range_start_shift"}
    )


async def test_a_wrong_byte_in_a_range_is_found(cache, hub, blob, at_once):
    slow(hub)
    hub.faults.add(Fault(service="cdn", path=blob.partition(":")[2], after=2, times=1, flip_byte_at=10))
    with pytest.raises(Exception, match=r"payload|closed|disconnected"):
        await cache.blob(REPOSITORY, blob)
    await cache.settled()
    assert list((cache.root / "blobs").rglob(blob.partition(":")[2])) == []


async def test_it_ends_with_the_cache(start_cache, hub, blob, at_once):
    async with asyncio.timeout(30):
        cache = await start_cache(blob_connections=4)
        hub.faults.add(Fault(service="cdn", path=blob.partition(":")[2], after=2, stall_after_bytes=1000))
        slow(hub)
        asking = asyncio.create_task(cache.blob(REPOSITORY, blob))
        await hub.counters.wait_for(lambda: hub.faults.waiting >= 1)
        await cache.proxy.flights.aclose()
        await asyncio.gather(asking, return_exceptions=True)
        assert is_settled(cache)


async def test_a_cancelled_flight_waits_for_the_write_under_way(cache, hub, blob, at_once, monkeypatch):
    """Or the file would be closed, and its number used again, under a thread that writes to it."""
    slow(hub)
    writing, go_on = threading.Event(), threading.Event()
    write = DiskPartial.write

    def held(partial, data):
        if not threading.current_thread().name.startswith("upstream"):  # the bytes of a range
            writing.set()
            assert go_on.wait(20)
        write(partial, data)

    monkeypatch.setattr(DiskPartial, "write", held)
    reader = cache.proxy.flights.join(Repository.parse(REPOSITORY), Digest(blob))
    assert await asyncio.to_thread(writing.wait, 20)
    closing = asyncio.create_task(cache.proxy.flights.aclose())
    done, _ = await asyncio.wait([closing], timeout=0.3)
    go_on.set()
    await closing
    reader.close()
    assert not done
