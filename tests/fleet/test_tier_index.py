"""The index of the bucket in a real Redis, and what keeps it and the bucket together: the cap, the sweep."""

import asyncio

import pytest
import redis
from aiohttp import web

from registry_cache.fleet import bucket as bucket_module
from registry_cache.fleet.connection import FleetRedis
from registry_cache.fleet.s3 import StoreTrouble
from registry_cache.fleet.sweep import Seen
from registry_cache.fleet.tier_index import TierIndex
from registry_cache.model import events
from registry_cache.model.bus import Events
from registry_cache.model.oci import Digest
from tests.fakes import REPOSITORY
from tests.fleet.conftest import running_redis
from tests.fleet.test_tier import entries

BLOBS = [Digest.of(b"%d" % number) for number in range(300)]


@pytest.fixture
def index(replicas, fleet_name):
    return TierIndex(replicas[0].redis, name=fleet_name)


async def value_of(index, digest):
    cursor = 0
    while True:
        cursor, entries = await index.scan(cursor)
        for one, value in entries:
            if one == digest:
                return value
        if not cursor:
            return None


async def test_a_blob_costs_redis_less_than_280_bytes(tmp_path):
    """docs/fleet.md says what a million of them need."""
    with running_redis(tmp_path) as (port, _):
        client = redis.Redis(port=port)
        own = FleetRedis(f"redis://127.0.0.1:{port}", password_file=None, events=Events())
        index = TierIndex(own, name="memory")
        many = [Digest.of(b"%d" % number) for number in range(5000)]
        await index.shared([(digest, 10_000_000, None) for digest in many[:1]])  # the script, and the keys
        before = client.info("memory")["used_memory"]
        for start in range(0, len(many), 100):
            await index.shared([(digest, 10_000_000, None) for digest in many[start : start + 100]])
        grown = client.info("memory")["used_memory"] - before
        client.close()
        await own.aclose()
    assert 150 < grown / len(many) < 280


async def total(index):
    return (await index.turn("none")).size_bytes


async def fill(part, stand_in, count, size=100):
    """*count* blobs that have been used one after the other."""
    for number, digest in enumerate(BLOBS[:count]):
        stand_in.keep(part.bucket.key(digest), b"x" * size)
        await part.index.shared([(digest, size, 1000 + number)])


def left(part, stand_in):
    return [digest for digest in BLOBS if part.bucket.key(digest) in stand_in.objects]


async def test_what_is_known_is_not_shared_twice_and_counts_once(index):
    assert await index.admit(BLOBS[0], 10, 100) == "share"
    assert await index.shared([(BLOBS[0], 10, None), (BLOBS[1], 5, None)]) == 2
    assert await index.shared([(BLOBS[0], 10, None)]) == 0
    assert await index.admit(BLOBS[0], 10, 100) == "known"
    assert await index.admit(BLOBS[2], 86, 100) == "full"
    assert await total(index) == 15


async def test_a_size_that_was_wrong_is_set_right(index):
    await index.shared([(BLOBS[0], 10, None)])
    await index.shared([(BLOBS[0], 12, None)])
    assert ((await value_of(index, BLOBS[0])).partition(":")[0], await total(index)) == ("12", 12)


async def test_only_what_was_found_missing_is_forgotten(index):
    await index.shared([(BLOBS[0], 10, None)])
    found = await value_of(index, BLOBS[0])
    assert await index.forget([(BLOBS[0], found)]) == 1
    await index.shared([(BLOBS[0], 10, None)])  # somebody has brought it again meanwhile
    assert await index.forget([(BLOBS[0], found)]) == 0
    assert await total(index) == 10


async def test_many_at_once_go_in_many_calls(index):
    assert await index.shared([(digest, 1, None) for digest in BLOBS]) == len(BLOBS)
    assert await total(index) == len(BLOBS)


async def test_below_its_cap_nothing_is_evicted(clients, stand_in):
    await fill(clients[0], stand_in, 9)
    assert not await clients[0].evictor.evict()
    assert len(stand_in.objects) == 9


async def test_what_was_used_the_longest_ago_goes_until_nine_tenths_are_left(clients, stand_in):
    part = clients[0]
    await fill(part, stand_in, 12)
    await part.index.touch([BLOBS[0], BLOBS[299]])
    await part.evictor.evict()
    assert left(part, stand_in) == [BLOBS[0], *BLOBS[4:12]]
    turn = await part.index.turn("none")
    assert (turn.size_bytes, turn.going) == (900, 0)
    assert (part.counts.evicted, part.counts.evicted_bytes) == (3, 300)


async def test_what_is_kept_does_not_go(clients, stand_in, database, fleet_name, redis_port):
    part = clients[0]
    await fill(part, stand_in, 12)
    with redis.Redis(port=redis_port) as raw:
        raw.sadd(f"{{rc1:{fleet_name}}}:keep", *(bytes.fromhex(digest.encoded) for digest in BLOBS[:2]))
    await part.evictor.evict()
    assert left(part, stand_in) == [*BLOBS[:2], *BLOBS[5:12]]


async def test_one_replica_evicts_at_a_time(clients, stand_in):
    await fill(clients[0], stand_in, 12)
    assert (await clients[0].index.turn("evict")).is_mine
    assert not await clients[1].evictor.evict()
    assert len(stand_in.objects) == 12


async def test_what_an_evictor_left_behind_is_deleted_by_the_next(clients, stand_in, database, fleet_name, monkeypatch):
    monkeypatch.setattr(bucket_module, "_DELETE_SECONDS", 5)
    first, second = clients[:2]
    await fill(first, stand_in, 12)
    stand_in.hangs = {"DELETE"}
    dying = asyncio.create_task(first.evictor.evict())
    async with asyncio.timeout(5):
        while stand_in.count("DELETE") < 3:
            await asyncio.sleep(0.005)
    dying.cancel()  # kill -9: nothing is given back
    await asyncio.gather(dying, return_exceptions=True)
    turn = await second.index.turn("none")
    assert (turn.going, turn.size_bytes) == (3, 1200)
    assert await second.index.admit(BLOBS[0], 100, 10_000) == "known"
    await database.delete(f"{{rc1:{fleet_name}}}:q:evict")  # as after 15 s
    stand_in.hangs = set()
    second.evictor._cap_bytes = 10_000  # what was begun is ended, also where there is room
    await second.evictor.evict()
    assert left(second, stand_in) == BLOBS[3:12]
    assert await total(second.index) == 900


async def test_what_is_going_is_claimed_by_nobody_and_not_shared(clients, stand_in, replicas):
    part = clients[0]
    await fill(part, stand_in, 12)
    await part.index.condemn(900)
    claims = [
        (await replicas[number].leases.claim(REPOSITORY, BLOBS[place], may_be_shared=True)).what
        for number, place in enumerate((0, 5))
    ]
    assert claims == ["yours", "stored"]
    assert await part.index.shared([(BLOBS[0], 100, None)]) == 0


async def test_a_store_that_deletes_nothing_is_left_alone(clients, stand_in, monkeypatch):
    monkeypatch.setattr(bucket_module, "_DELETE_SECONDS", 0.05)
    part = clients[0]
    await fill(part, stand_in, 12)
    stand_in.hangs = {"DELETE"}
    assert not await part.evictor.evict()
    asked = stand_in.count("DELETE")
    assert not await part.evictor.evict()
    assert (stand_in.count("DELETE"), bool(part.bucket.deleting.trouble), part.bucket.reading.trouble) == (
        asked,
        True,
        "",
    )
    assert await total(part.index) == 1200


async def test_an_object_that_may_not_be_deleted_keeps_no_other_one_there(clients, stand_in):
    part = clients[0]
    await fill(part, stand_in, 12)
    stand_in.locked = {part.bucket.key(BLOBS[0])}
    for _ in range(2):
        await part.evictor.evict()
    assert left(part, stand_in) == [BLOBS[0], *BLOBS[3:12]]
    assert part.bucket.deleting.trouble == "the store answered 403 AccessDenied"  # since it was the only one
    asked = stand_in.count("DELETE")
    await part.evictor.evict()
    assert stand_in.count("DELETE") == asked
    stand_in.locked.clear()
    part.bucket.deleting._retry_at = 0.0
    await part.evictor.evict()
    assert left(part, stand_in) == BLOBS[3:12]
    assert part.bucket.deleting.trouble == ""


async def test_a_sweep_adopts_orphans_and_forgets_what_is_not_there(clients, stand_in):
    part = clients[0]
    stand_in.page_size = 3
    await fill(part, stand_in, 5)
    for digest in BLOBS[3:5]:
        del stand_in.objects[part.bucket.key(digest)]
    for digest in BLOBS[10:13]:
        stand_in.keep(part.bucket.key(digest), b"orphan", modified=500)
    stand_in.keep("v1/another/sha256/ab/" + "ab" * 32, b"of another fleet")
    stand_in.keep(part.bucket.key(BLOBS[20])[:-1], b"no blob")
    await part.sweeper.sweep()
    swept = [event for event in part.seen if isinstance(event, events.FleetSwept)]
    assert [(event.objects, event.adopted, event.forgotten) for event in swept] == [(6, 3, 2)]
    assert await total(part.index) == 3 * 100 + 3 * 6
    assert set(await part.index.condemn(300)) == set(BLOBS[10:13])  # last used when they came
    assert (await part.index.turn("none")).complete_at


async def test_a_sweep_that_sees_no_end_of_the_listing_forgets_nothing(clients, stand_in, monkeypatch):
    part = clients[0]
    await fill(part, stand_in, 5)
    text = "<ListBucketResult><IsTruncated>true</IsTruncated></ListBucketResult>"
    monkeypatch.setattr(stand_in, "_list", lambda _: web.Response(text=text))
    with pytest.raises(StoreTrouble):
        await part.sweeper.sweep()
    assert await total(part.index) == 500
    assert not (await part.index.turn("none")).complete_at


async def test_what_is_shared_while_a_sweep_looks_is_not_forgotten(clients, stand_in, monkeypatch):
    part = clients[0]
    await fill(part, stand_in, 2)
    page = part.bucket.page

    async def then_shared(after):
        got = await page(after)
        await part.index.shared([(BLOBS[9], 7, None)])
        return got

    monkeypatch.setattr(part.bucket, "page", then_shared)
    await part.sweeper.sweep()
    assert await value_of(part.index, BLOBS[9])


async def test_a_sweep_comes_once_a_week_and_by_one_replica(clients, stand_in, database, fleet_name):
    first, second = clients[:2]
    await first.sweeper.sweep()
    await second.sweeper.sweep()
    assert stand_in.count("GET") == 1
    await database.hincrby(f"{{rc1:{fleet_name}}}:meta", "complete", -8 * 86_400)
    await second.sweeper.sweep()
    assert stand_in.count("GET") == 2


async def test_what_is_kept_of_a_listing_is_small_and_finds_all(index):
    seen = Seen()
    for digest in [*BLOBS[:100], Digest.of(b"a", "sha512")]:
        seen.add(digest)
    assert len(seen) == 101
    assert all(digest in seen for digest in BLOBS[:100])
    assert not any(digest in seen for digest in BLOBS[100:])


async def test_what_somebody_else_has_written_there_is_swept_out(clients, stand_in, fleet_name, redis_port):
    part = clients[0]
    await fill(part, stand_in, 3)
    with redis.Redis(port=redis_port) as raw:
        raw.hset(f"{{rc1:{fleet_name}}}:size", mapping={bytes(32): "nonsense", b"x" * 5: b"\xff:\xff", bytes(64): ":"})
        raw.set(f"{{rc1:{fleet_name}}}:bytes", 100_000)
        raw.hset(f"{{rc1:{fleet_name}}}:meta", "complete", "nonsense")
    await part.index.condemn(0)
    await part.sweeper.sweep()
    assert sorted([digest async for digest in entries(part.index)]) == sorted(BLOBS[:3])
