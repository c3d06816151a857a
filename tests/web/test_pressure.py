"""Slots, noes, lists and what cannot be stored, through the whole cache: what clients get and upstream is asked."""

import asyncio
import os

import pytest

from registry_cache.model import events
from registry_cache.pull import parallel
from tests.hub import Fault

SIZE = 300_000


@pytest.fixture
async def stuck(hub):
    """An image whose layer stands still in the middle."""
    image = await hub.images.image("library/stuck", "1", [SIZE])
    hub.faults.add(Fault(service="cdn", path=image.layers[0].digest.partition(":")[2], stall_after_bytes=1000))
    return image


async def begun(hub, number: int = 1) -> None:
    await hub.counters.wait_for(lambda: hub.faults.waiting == number)


async def test_who_gets_no_slot_gets_the_blob_past_the_flights(start_cache, hub, stuck, monkeypatch):
    """All slots are taken by what is slow, and read: the 33rd was a 502 after 25 s."""
    monkeypatch.setattr("registry_cache.pull.blobs._BOARDING_SECONDS", 0.05)
    cache = await start_cache(max_flights=1, request_timeout="1s")
    other = await hub.images.image("library/other", "1", [SIZE])
    slow = asyncio.create_task(cache.blob(stuck.repository, stuck.layers[0].digest))
    await begun(hub)
    reply = await cache.blob(other.repository, other.layers[0].digest)
    assert (reply.status, reply.body) == (200, hub.images.read(other.layers[0].digest))
    assert reply.cache_status == "registry-cache; fwd=bypass"
    hub.faults.clear()
    assert (await slow).status == 200
    await cache.blob(other.repository, other.layers[0].digest)
    await cache.settled()
    assert (await cache.blob(other.repository, other.layers[0].digest)).cache_status == "registry-cache; hit"


async def test_a_range_is_not_called_too_far_by_the_word_of_upstream_alone(start_cache, hub, stuck, monkeypatch):
    """What goes past the store is not verified before it is sent: upstream may have announced too little."""
    monkeypatch.setattr("registry_cache.pull.blobs._BOARDING_SECONDS", 0.05)
    cache = await start_cache(max_flights=1, request_timeout="1s")
    other = await hub.images.image("library/other", "1", [SIZE])
    slow = asyncio.create_task(cache.blob(stuck.repository, stuck.layers[0].digest))
    await begun(hub)
    short = Fault(kind="blob", method="HEAD", status=200, headers={"Content-Length": "600"})
    hub.faults.add(short)
    reply = await cache.blob(other.repository, other.layers[0].digest, Range="bytes=1000-")
    assert (reply.status, reply.error_code) == (502, "UNAVAILABLE")
    hub.faults.clear()
    assert (await slow).status == 200


async def test_first_bytes_of_cold_blobs_that_are_left_at_once_keep_nobody_waiting(start_cache, hub, monkeypatch):
    monkeypatch.setattr("registry_cache.pull.runway._GRACE_SECONDS", 0.0)
    cache = await start_cache(max_flights=4, request_timeout="5s")
    hub.faults.add(Fault(service="cdn", stall_after_bytes=1000, times=4))
    rude = await hub.images.image("library/rude", "1", [SIZE] * 4)
    for number, layer in enumerate(rude.layers, 1):
        path = f"{cache.url}/v2/{rude.repository}/blobs/{layer.digest}"
        async with cache.session.get(path, headers={"Range": "bytes=0-0"}) as response:
            assert await response.read() == hub.images.read(layer.digest)[:1]
        await begun(hub, number)
    polite = await hub.images.image("library/polite", "1", [SIZE])
    reply = await cache.blob(polite.repository, polite.layers[0].digest)
    assert (reply.body, reply.cache_status) == (
        hub.images.read(polite.layers[0].digest),
        "registry-cache; fwd=miss; stored",
    )
    assert not cache.seen(events.FlightFailed)
    hub.faults.clear()
    for layer in rude.layers:
        assert (await cache.blob(rude.repository, layer.digest)).body == hub.images.read(layer.digest)


async def test_a_full_disk_costs_one_get_a_blob(start_cache, hub, monkeypatch):
    """Also with prefetch, and although the disk says only in the middle that it is full."""
    cache = await start_cache(prefetch_concurrency=6)
    image = await hub.images.image("library/unstored", "1", [SIZE] * 8)
    await cache.manifest(image.repository, "1")
    await cache.settled()
    pwrite = os.pwrite

    def full(fd, data, offset):
        if offset + len(data) > 1000:
            raise OSError(28, "No space left on device")
        return pwrite(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", full)
    await cache.blob(image.repository, image.config.digest)
    for first in range(0, 8, 2):
        layers = image.layers[first : first + 2]
        replies = await asyncio.gather(*(cache.blob(image.repository, layer.digest) for layer in layers))
        assert [reply.body for reply in replies] == [hub.images.read(layer.digest) for layer in layers]
    gets = {layer.digest: hub.counters.blob_gets(layer.digest) for layer in image.layers}
    assert set(gets.values()) == {1}


@pytest.mark.parametrize("kind", ["manifests/nope", f"manifests/sha256:{'0' * 64}", f"blobs/sha256:{'1' * 64}"])
@pytest.mark.parametrize("methods", [("HEAD", "GET"), ("GET", "HEAD")])
async def test_a_no_is_asked_for_once(start_cache, hub, kind, methods):
    cache = await start_cache()
    await hub.images.image("library/noes", "1", [10])
    await cache.manifest("library/noes", "1")
    hub.reset_counters()
    for method in methods:
        replies = await asyncio.gather(*(cache.get(f"/v2/library/noes/{kind}", method) for _ in range(20)))
        assert {reply.status for reply in replies} == {404}
    assert len(hub.counters.select(service="registry")) == 1
    await hub.registry.stop()
    cache.proxy.pull_through._blobs._registries["docker.io"].negatives._ttl_seconds = 1e-9  # it has expired
    assert (await cache.get(f"/v2/library/noes/{kind}")).status == 404


async def test_lists_have_the_patience_of_tags(start_cache, hub):
    cache = await start_cache(stale_timeout="200ms", read_timeout="60s", request_timeout="60s")
    image = await hub.images.image("library/hung", "1", [10])
    paths = ("/v2/library/hung/tags/list", f"/v2/library/hung/referrers/{image.digest}")
    kept = [await cache.get(path) for path in paths]
    missing = "/v2/library/nothing/tags/list"
    assert (await cache.get(missing)).status in (401, 404)
    cache.proxy.pull_through._blobs._registries["docker.io"].negatives._ttl_seconds = 1e-9
    hub.faults.add(Fault(service="registry", delay_seconds=3600, challenges=True))
    async with asyncio.timeout(20):
        for path, before in zip(paths, kept, strict=True):
            stale = await cache.get(path)
            assert (stale.status, stale.body) == (200, before.body)
            assert "fwd=stale" in stale.cache_status
        assert (await cache.get(missing)).status in (401, 404)


@pytest.mark.parametrize("framing", ["chunked", "close"])
async def test_a_blob_without_length_may_take_longer_than_a_client_waits(start_cache, hub, framing):
    """Its length comes from a HEAD, and bytes flow; it was a 502 after REQUEST_TIMEOUT."""
    cache = await start_cache(request_timeout="500ms")
    image = await hub.images.image("library/endless", "1", [SIZE])
    digest = image.layers[0].digest
    hub.faults.add(Fault(service="cdn", method="GET", framing=framing, stall_after_bytes=200_000))
    async with cache.session.get(f"{cache.url}/v2/{image.repository}/blobs/{digest}") as response:
        assert (response.status, response.headers["Content-Length"]) == (200, str(SIZE))
        first = await response.content.readexactly(50_000)
        hub.faults.release()
        assert first + await response.read() == hub.images.read(digest)
    assert not cache.seen(events.FlightResumed)  # nobody waited for the end of the stall


@pytest.mark.parametrize("status", [403, 404])
async def test_a_refused_range_among_several_costs_no_pull(start_cache, hub, monkeypatch, status):
    monkeypatch.setattr(parallel, "SEGMENT_BYTES", 50_000)
    monkeypatch.setattr(parallel, "WORTH_BYTES", 100_000)
    monkeypatch.setattr(parallel, "_WATCHED_SECONDS", 0.0)
    monkeypatch.setattr(parallel, "_SLOW_BYTES_PER_SECOND", 1e12)
    monkeypatch.setattr(parallel, "_WORTH_SECONDS", 0.0)
    cache = await start_cache(blob_connections=4)
    image = await hub.images.image("library/parts", "1", [40 * 30_000])
    digest = image.layers[0].digest
    hub.behaviour.bandwidth_bytes_per_second = 6_000_000
    hub.faults.add(Fault(service="cdn", path=digest.partition(":")[2], after=2, times=1, status=status))
    assert (await cache.blob(image.repository, digest)).body == hub.images.read(digest)
    await cache.settled()
    assert (await cache.blob(image.repository, digest)).cache_status == "registry-cache; hit"


@pytest.mark.parametrize("status", [400, 403, 404, 405, 416, 501])
async def test_a_partial_is_taken_up_where_ranges_are_refused(start_cache, hub, status):
    cache = await start_cache(retries=0)
    image = await hub.images.image("library/no-ranges", "1", [SIZE])
    digest = image.layers[0].digest
    hub.faults.add(Fault(service="cdn", reset_after_bytes=100_000, times=1))
    with pytest.raises(Exception, match=r"payload|closed|disconnected"):
        await cache.blob(image.repository, digest)
    await cache.settled()
    assert cache.proxy.store.totals().partial_bytes > 0
    hub.faults.add(Fault(service="cdn", status=status, times=1))
    reply = await cache.blob(image.repository, digest)
    assert reply.body == hub.images.read(digest)
    assert hub.counters.select(service="cdn", method="GET")[-1].range is None
