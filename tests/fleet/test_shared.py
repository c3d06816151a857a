"""What comes from the fleet's bucket cost upstream nothing, and everybody who is told of it is told so."""

import asyncio

import pytest

from registry_cache.fleet import s3
from registry_cache.model import events
from tests.fleet.conftest import REPOSITORY, settled, shared
from tests.fleet.conftest import soon as until

HALF = 400_000
SHARED = "registry-cache; hit; detail=shared"


@pytest.fixture
def impatient(monkeypatch):
    """Silence of the bucket is found out soon."""
    monkeypatch.setattr(s3, "HEAD_SECONDS", 0.2)


def told(member):
    return [event.cache for event in member.cache.seen(events.Request)]


async def test_a_blob_from_the_bucket_is_a_hit_that_was_shared(stocked, hub):
    digest, data, member = stocked
    reply = await member.blob(REPOSITORY, digest)
    assert (reply.cache_status, told(member)) == (SHARED, ["shared"])
    await settled(member)
    assert (await member.blob(REPOSITORY, digest)).cache_status == "registry-cache; hit"
    stats = await member.cache.stats()
    assert (stats["requests"]["shared"], stats["hit_ratio"], stats["byte_hit_ratio"]) == (1, 1.0, 1.0)
    assert (stats["bytes"]["from_upstream"], hub.counters.blob_gets(digest)) == (0, 0)
    assert [row["from_cache"] for row in stats["repositories"]] == [2 * len(data)]
    # It took as long as the bucket did.
    assert [stats["latency_seconds"][kind]["p50"] is not None for kind in ("hit", "miss")] == [True, True]


async def test_who_joins_is_told_the_same(stocked, stand_in):
    digest, data, member = stocked
    stand_in.stalls = HALF
    first = asyncio.create_task(member.blob(REPOSITORY, digest))
    await until(lambda: [flight.available for flight in member.cache.proxy.flights] == [HALF])
    second = asyncio.create_task(member.blob(REPOSITORY, digest))
    await until(lambda: [len(flight.readers) for flight in member.cache.proxy.flights] == [2])
    stand_in.goes_on.set()
    replies = await asyncio.gather(first, second)
    assert [(reply.cache_status, reply.body == data) for reply in replies] == 2 * [(SHARED, True)]
    assert told(member) == ["shared", "shared"]


async def test_where_the_bucket_breaks_off_the_log_knows_it_for_a_miss(
    stocked, hub, stand_in, impatient
):  # fmt: skip
    digest, data, member = stocked
    stand_in.stalls = HALF
    reply = await member.blob(REPOSITORY, digest)
    assert (reply.body == data, hub.counters.blob_gets(digest)) == (True, 1)
    # Its head had gone out before.
    assert (reply.cache_status, told(member)) == (SHARED, ["miss"])
    assert (await member.cache.stats())["hit_ratio"] == 0.0


async def test_where_the_bucket_brings_nothing_it_is_a_miss(stocked, stand_in):
    digest, _, member = stocked
    stand_in.objects.clear()
    assert (await member.blob(REPOSITORY, digest)).cache_status == "registry-cache; fwd=miss; stored"
    assert told(member) == ["miss"]


async def test_what_another_replica_brings_is_a_miss_wherever_that_has_it_from(
    start_sharing, make_blob, stand_in, database, fleet_name, hub, patient
):
    first, leader, follower = [await start_sharing() for _ in range(3)]
    digest, data = await make_blob()
    await first.blob(REPOSITORY, digest)
    await shared(first)
    await first.wire.set("refuses")
    hub.reset_counters()
    # The index is lost, so that one asks the bucket for all.
    await database.set(f"{{rc1:{fleet_name}}}:q:sweep", "somebody")
    lost = ("size", "lru", "bytes", "gen", "meta", f"at:{digest}")
    await database.delete(*(f"{{rc1:{fleet_name}}}:{name}" for name in lost))
    stand_in.stalls = HALF
    pulls = [asyncio.create_task(leader.blob(REPOSITORY, digest))]
    await until(lambda: [flight.available for flight in leader.cache.proxy.flights] == [HALF])
    await until(lambda: not leader.fleet.tier._tasks)
    await database.delete(*(f"{{rc1:{fleet_name}}}:{name}" for name in lost))  # it was adopted at once
    await follower.fleet.tier.bucket.look()
    follower.fleet.tier.bucket.reading.trouble = "it cannot reach it"
    pulls.append(asyncio.create_task(follower.blob(REPOSITORY, digest)))
    await until(lambda: [flight.available for flight in follower.cache.proxy.flights] == [HALF])
    stand_in.goes_on.set()
    replies = await asyncio.gather(*pulls)
    assert [reply.body for reply in replies] == [data, data]
    assert [reply.cache_status for reply in replies] == [SHARED, "registry-cache; fwd=miss; stored"]
    assert (follower.fleet.counts.peer_bytes, hub.counters.blob_gets(digest)) == (len(data), 0)


async def test_what_was_fetched_ahead_from_the_bucket_is_told_as_such(start_sharing, hub):
    image = await hub.images.image(REPOSITORY, "ahead", [200_000] * 4)
    first = await start_sharing()
    for layer in image.layers:
        await first.blob(REPOSITORY, layer.digest)
    await shared(first)
    await first.wire.set("refuses")
    hub.reset_counters()
    member = await start_sharing(prefetch_concurrency=6)
    await member.cache.manifest(REPOSITORY, "ahead")
    await member.blob(REPOSITORY, image.layers[0].digest)
    await until(lambda: len(member.cache.seen(events.Prefetched)) == 3)
    await settled(member)
    replies = [await member.blob(REPOSITORY, layer.digest) for layer in image.layers]
    assert [reply.cache_status for reply in replies] == ["registry-cache; hit", SHARED, SHARED, SHARED]
    assert hub.counters.blob_gets() == 0


@pytest.mark.parametrize("breaks", [False, True])
async def test_only_what_came_from_upstream_is_on_a_clients_account(
    stocked, stand_in, impatient, start_sharing, make_blob, breaks
):  # fmt: skip
    digest, data, first = stocked
    await first.wire.set("refuses")
    member = await start_sharing(limits=[{"cold_bytes_per_day": len(data) // 2}])
    stand_in.stalls = HALF if breaks else None
    assert (await member.blob(REPOSITORY, digest)).body == data
    other, _ = await make_blob()
    assert (await member.blob(REPOSITORY, other)).status == (429 if breaks else 200)
