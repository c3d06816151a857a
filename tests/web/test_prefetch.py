"""Layers are fetched before they are asked for: only for pulls, within bounds, at nobody's cost."""

import asyncio
import json

import pytest

from registry_cache.model import events
from registry_cache.model.oci import OCI_MANIFEST, Digest
from registry_cache.pull import prefetch
from tests.cache import open_content
from tests.hub import Fault

SIZE = 200_000


@pytest.fixture
def start_cache(start_cache):
    """With prefetch as it is by default; other tests have it turned off."""
    return lambda **flags: start_cache(**{"prefetch_concurrency": 6, **flags})


@pytest.fixture
async def cache(start_cache):
    return await start_cache()


async def until(condition) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.005)


async def landed(cache) -> None:
    """Wait until nothing is fetched ahead any more, nor on its way to the disk."""
    await until(lambda: not cache.proxy.pull_through._prefetcher._tasks)
    await cache.settled()


def ahead_bytes(cache) -> int:
    return cache.proxy.pull_through._prefetcher._ahead_bytes


def stall(hub) -> Fault:
    return hub.faults.add(Fault(service="cdn", stall_after_bytes=1000))


def on(layer, **misdeed) -> Fault:
    """A fault that only the transfer of *layer* meets."""
    return Fault(service="cdn", path=layer.digest.partition(":")[2], **misdeed)


async def an_image(hub, name: str, layers: int = 4, size: int = SIZE):
    return await hub.images.image(f"library/{name}", "1", [size] * layers)


async def begin(cache, image, first: int = 0):
    """What shows a pull: the manifest, the config, one layer."""
    await cache.manifest(image.repository, image.tag)
    await cache.blob(image.repository, image.config.digest)
    return await cache.blob(image.repository, image.layers[first].digest)


async def test_layers_behind_the_first_cold_one_are_fetched_before_they_are_asked_for(cache, hub):
    image = await an_image(hub, "ahead")
    await begin(cache, image, first=1)
    await landed(cache)
    fetched = {record.reference for record in hub.counters.select(service="cdn")}
    assert fetched == {image.config.digest, *(layer.digest for layer in image.layers[1:])}  # a client has the base
    assert cache.requests() == ["miss"] * 3  # nothing that no client asked for is counted as asked for
    assert ahead_bytes(cache) == 2 * SIZE
    assert not cache.proxy.pull_through._prefetcher._slots  # nothing stays of a registry, which a client may have named
    for _ in range(2):
        for layer in image.layers[2:]:
            assert (await cache.blob(image.repository, layer.digest)).body == hub.images.read(layer.digest)
    # The first request for it shares what its pull has cost upstream; only the second one cost nothing.
    assert cache.requests()[3:] == ["collapsed"] * 2 + ["hit"] * 2
    assert hub.counters.blob_gets() == 4
    assert ahead_bytes(cache) == 0
    stats = await cache.stats()
    assert stats["prefetch"] == {"fetched_bytes": 2 * SIZE, "wasted_bytes": 0}


async def test_who_only_inspects_costs_no_layer(cache, hub):
    image = await an_image(hub, "inspected")
    for method in ("HEAD", "GET"):
        await cache.manifest(image.repository, image.tag, method)
    await cache.blob(image.repository, image.config.digest)
    for layer in image.layers:
        await cache.blob(image.repository, layer.digest, "HEAD")
    await landed(cache)
    assert [record.reference for record in hub.counters.select(service="cdn", method="GET")] == [image.config.digest]


async def test_evicted_layers_of_a_cached_manifest_are_fetched_ahead_too(cache, hub):
    image = await an_image(hub, "evicted")
    await begin(cache, image)
    await landed(cache)
    for layer in image.layers:
        await cache.blob(image.repository, layer.digest)
    await cache.proxy.store.purge([Digest(layer.digest) for layer in image.layers])
    hub.reset_counters()
    await begin(cache, image)
    await landed(cache)
    assert hub.counters.manifest_gets() == 0
    assert hub.counters.blob_gets() == 4


async def test_number_is_bounded(start_cache, hub):
    cache = await start_cache(prefetch_concurrency=2)
    image = await an_image(hub, "bounded", layers=8)
    stall(hub)
    first = asyncio.create_task(begin_stalled(cache, image))
    await hub.counters.wait_for(lambda: hub.faults.waiting == 3)
    assert len(cache.proxy.flights) == 3  # the client's own, and two
    hub.faults.clear()
    await first
    await landed(cache)
    assert hub.counters.blob_gets() == 8


async def begin_stalled(cache, image):
    await cache.manifest(image.repository, image.tag)
    return await cache.blob(image.repository, image.layers[0].digest)


@pytest.mark.parametrize("bound", [{"prefetch_max_size": 2 * SIZE + 1}, {"max_size": 8 * SIZE + 8}])
async def test_bytes_are_bounded_and_each_request_lets_it_go_on(start_cache, hub, bound):
    cache = await start_cache(**bound)
    image = await an_image(hub, "bytes", layers=5)
    await begin_stalled(cache, image)
    await landed(cache)
    assert hub.counters.blob_gets() == 3
    assert ahead_bytes(cache) == 2 * SIZE
    await cache.blob(image.repository, image.layers[1].digest)
    await landed(cache)
    assert hub.counters.blob_gets() == 4
    assert ahead_bytes(cache) == 2 * SIZE


async def test_a_manifest_that_understates_its_layers_uses_up_the_bound(start_cache, hub):
    cache = await start_cache(prefetch_max_size=3 * SIZE, prefetch_concurrency=1)
    image = await an_image(hub, "liar", layers=5)
    body = hub.images.read(image.digest).replace(b'"size": %d' % SIZE, b'"size": 1')
    liar = await hub.images.manifest(image.repository, "liar", body, image.descriptor.media_type)
    await cache.manifest(image.repository, liar.digest)
    await cache.blob(image.repository, image.layers[0].digest)
    await landed(cache)
    assert ahead_bytes(cache) == 4 * SIZE  # chosen while they seemed small: counted as what they are
    await cache.blob(image.repository, image.layers[1].digest)
    assert ahead_bytes(cache) == 3 * SIZE


async def test_a_client_joins_what_is_under_way(cache, hub):
    image = await an_image(hub, "joined", layers=2)
    await cache.manifest(image.repository, image.tag)
    stall(hub)
    asked = [asyncio.create_task(cache.blob(image.repository, image.layers[0].digest))]
    await hub.counters.wait_for(lambda: hub.faults.waiting == 2)
    asked += [asyncio.create_task(cache.blob(image.repository, image.layers[1].digest)) for _ in range(3)]
    await until(lambda: len(cache.proxy.flights.get(image.layers[1].digest).readers) == 4)
    hub.faults.clear()
    replies = await asyncio.gather(*asked)
    assert [reply.cache_status.rpartition(" ")[2] for reply in replies] == ["stored"] + ["collapsed"] * 3
    assert hub.counters.blob_gets() == 2
    assert all(hub.images.read(image.layers[1].digest) == reply.body for reply in replies[1:])


async def test_a_client_does_not_wait_behind_what_is_fetched_ahead(start_cache, hub):
    cache = await start_cache(max_flights=1, prefetch_concurrency=2)
    image = await an_image(hub, "behind", layers=5)
    await cache.manifest(image.repository, image.tag)
    for layer in image.layers[1:3]:
        hub.faults.add(on(layer, stall_after_bytes=1000))
    await cache.blob(image.repository, image.layers[0].digest)
    await hub.counters.wait_for(lambda: hub.faults.waiting == 2)  # every slot of it is taken
    last = image.layers[4].digest  # chosen, and waiting for a slot
    assert (await cache.blob(image.repository, last)).body == hub.images.read(last)
    hub.faults.clear()
    await landed(cache)
    assert hub.counters.blob_gets() == 5  # the client was faster: it is not fetched again


@pytest.mark.parametrize("fault", [{"status": 404}, {"flip_byte_at": 5}, {"status": 500}, {"reset_after_bytes": 9}])
async def test_its_failure_harms_nobody(start_cache, hub, fault):
    cache = await start_cache(retries=0)
    image = await an_image(hub, "failing", layers=3)
    await cache.manifest(image.repository, image.tag)
    broken = [hub.faults.add(on(layer, times=1, **fault)) for layer in image.layers[1:]]
    assert (await cache.blob(image.repository, image.layers[0].digest)).status == 200
    await until(lambda: all(fault.met for fault in broken))
    await landed(cache)
    assert len(cache.seen(events.FlightFailed)) == 2
    assert ahead_bytes(cache) == 0
    for layer in image.layers[1:]:
        reply = await cache.blob(image.repository, layer.digest)
        assert (reply.status, reply.body) == (200, hub.images.read(layer.digest))
    assert "error" not in cache.requests()


async def test_layers_that_do_not_exist_are_not_asked_for_by_the_hundred(start_cache, hub):
    """Their author would spend what the host may ask upstream."""
    cache = await start_cache(prefetch_concurrency=2)
    image = await an_image(hub, "real", layers=2)
    made_up = [{**image.layers[0].document(), "digest": f"sha256:{number:064x}"} for number in range(200)]
    document = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": image.config.document()}
    text = json.dumps({**document, "layers": [image.layers[0].document(), *made_up]})
    headers = {"Content-Type": OCI_MANIFEST, "Docker-Content-Digest": Digest.of(text.encode())}
    hub.faults.add(Fault(kind="manifest", method="GET", status=200, body=text, headers=headers))
    assert (await begin(cache, image)).status == 200
    await landed(cache)
    asked = {event.url for event in cache.seen(events.UpstreamRequest) if "blobs/sha256:0000" in event.url}
    assert 3 <= len(asked) <= 4  # the last of them at the same time


async def test_cap_holds_and_the_pull_succeeds(start_cache, hub):
    cap = 3 * SIZE
    cache = await start_cache(max_size=cap, prefetch_max_size="1GB")
    image = await an_image(hub, "capped", layers=6, size=SIZE // 2)
    most = 0

    def watch(_event):
        nonlocal most
        most = max(most, cache.proxy.store.total_bytes)

    cache.bus.subscribe(watch)
    await cache.manifest(image.repository, image.tag)
    for layer in image.layers:
        assert (await cache.blob(image.repository, layer.digest)).body == hub.images.read(layer.digest)
        await landed(cache)  # what a slow disk has not got yet is nobody's victim, and the next one would pass by
    assert 0 < most <= cap
    assert cache.seen(events.NotStored) == []


async def test_shutdown_ends_it_and_leaves_no_file_open(start_cache, hub):
    cache = await start_cache()
    other = await an_image(hub, "before", layers=8)
    await begin(cache, other)  # opens the connections upstream that are kept
    await landed(cache)
    image = await an_image(hub, "shutdown", layers=4)
    stall(hub)
    first = asyncio.create_task(begin_stalled(cache, image))
    await hub.counters.wait_for(lambda: hub.faults.waiting == 4)
    prefetcher, flights = cache.proxy.pull_through._prefetcher, cache.proxy.flights
    await prefetcher.aclose()
    assert not prefetcher._tasks
    assert [len(flight.readers) for flight in flights._flights.values()] == [1, 0, 0, 0]
    await flights.aclose()
    await asyncio.gather(first, return_exceptions=True)
    assert len(flights) == 0
    await until(lambda: not open_content(cache.root))
    hub.faults.clear()
    await cache.blob(other.repository, other.layers[0].digest)  # the rest of it still answers
    assert (await cache.blob(image.repository, image.layers[2].digest)).status == 200
    await until(lambda: not open_content(cache.root))


async def test_nothing_stays_open_behind_it(cache, hub):
    image = await an_image(hub, "files", layers=6)
    await begin(cache, image)
    await landed(cache)
    assert hub.counters.blob_gets() == 7
    assert open_content(cache.root) == []


async def test_waste_is_told(start_cache, hub, monkeypatch):
    cache = await start_cache()
    image = await an_image(hub, "wasted", layers=3)
    await begin_stalled(cache, image)
    await landed(cache)
    await cache.proxy.store.purge([Digest(image.layers[1].digest)])
    await cache.blob(image.repository, image.layers[1].digest)
    assert [event.digest for event in cache.seen(events.PrefetchWasted)] == [image.layers[1].digest]
    assert cache.requests()[-1] == "miss"
    monkeypatch.setattr(prefetch, "_PATIENCE_SECONDS", 0.0)
    image = await an_image(hub, "forgotten", layers=2)
    await begin_stalled(cache, image)
    await until(lambda: len(cache.seen(events.PrefetchWasted)) == 2)
    assert (await cache.stats())["prefetch"]["wasted_bytes"] == 2 * SIZE
    # It is a hit if somebody asks for it after all.
    assert (await cache.blob(image.repository, image.layers[1].digest)).cache_status == "registry-cache; hit"


async def test_it_can_be_turned_off(start_cache, hub):
    cache = await start_cache(prefetch_concurrency=0)
    image = await an_image(hub, "off")
    await begin(cache, image)
    await cache.settled()
    assert hub.counters.blob_gets() == 2
