"""Replicas that share a bucket: what is in it is fetched from upstream no more, and no trouble of it fails a pull."""

import asyncio
import random

import pytest
import redis.asyncio

from registry_cache.fleet import bucket, s3, shelf
from registry_cache.fleet.counts import Counts
from registry_cache.fleet.eviction import Evictor
from registry_cache.fleet.s3 import ObjectReply
from registry_cache.fleet.sweep import Sweeper
from registry_cache.fleet.tier import TierBody
from registry_cache.model import events
from registry_cache.model.bus import Events
from registry_cache.model.errors import PeerLost
from registry_cache.model.oci import Digest
from tests.fleet.conftest import REPOSITORY, shared
from tests.fleet.store import SECRET
from tests.fleet.test_following import HALF, until


def key_of(member, digest):
    return member.fleet.tier.bucket.key(Digest(digest))


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(s3, "HEAD_SECONDS", 0.2)


async def test_what_one_replica_fetched_is_in_the_bucket_for_all(stocked, hub, stand_in):
    digest, data, second = stocked
    assert stand_in.objects == {key_of(second, digest): data}
    assert (await second.blob(REPOSITORY, digest)).body == data
    assert hub.counters.blob_gets(digest) == 0
    await shared(second)
    assert stand_in.count("PUT") == 1


async def test_what_is_here_is_asked_for_nowhere(stocked, stand_in, monkeypatch):
    digest, data, member = stocked
    await member.blob(REPOSITORY, digest)
    await shared(member)
    asked = len(stand_in.asked)

    async def never(*_):
        raise AssertionError

    monkeypatch.setattr(member.fleet.redis, "run", never)
    assert (await member.blob(REPOSITORY, digest)).body == data
    assert len(stand_in.asked) == asked


async def test_one_that_works_is_not_looked_at(stocked, stand_in):
    _, _, member = stocked
    asked = len(stand_in.asked)
    for _ in range(3):
        await member.fleet.tier._round()
    assert len(stand_in.asked) == asked


async def test_a_bucket_that_refuses_connections_costs_nothing(stocked, store_wire, stand_in):
    digest, data, member = stocked
    await store_wire.set("refuses")
    assert (await member.blob(REPOSITORY, digest)).body == data
    assert "cannot be reached" in member.fleet.tier.bucket.reading.trouble
    assert member.cache.seen(events.FleetBucketDown)[0].part == "reading"


async def test_a_frozen_bucket_is_waited_for_once(stocked, stand_in, make_blob, impatient):
    digest, data, member = stocked
    stand_in.hangs = {"GET"}
    assert (await member.blob(REPOSITORY, digest)).body == data
    assert "did not answer within" in member.fleet.tier.bucket.reading.trouble
    asked = stand_in.count("GET")
    other, data = await make_blob()
    await member.fleet.tier.index.shared([(Digest(other), len(data), None)])
    assert (await member.blob(REPOSITORY, other)).body == data
    assert stand_in.count("GET") == asked


@pytest.mark.parametrize("how", ["stalls", "truncates"])
async def test_a_body_that_breaks_is_gone_on_with_from_where_it_stands(stocked, hub, stand_in, impatient, how):
    digest, data, member = stocked
    setattr(stand_in, how, HALF)
    async with asyncio.timeout(10):
        assert (await member.blob(REPOSITORY, digest)).body == data
    # What has arrived and was not read yet goes with a connection that breaks.
    assert hub.counters.blob_bytes() == len(data) - HALF or how == "truncates"
    assert bool(member.fleet.tier.bucket.reading.trouble) == (how == "stalls")


async def test_a_full_bucket_is_read_and_not_waited_for(stocked, hub, stand_in, make_blob, monkeypatch):
    digest, data, member = stocked
    monkeypatch.setattr("registry_cache.fleet.shelf._PATIENCE_SECONDS", 0.1)
    monkeypatch.setattr("registry_cache.fleet.shelf._PAUSE_SECONDS", 0.0)
    stand_in.hangs = {"PUT", "DELETE"}
    new, more = await make_blob()
    assert (await member.blob(REPOSITORY, new)).body == more
    await shared(member)
    breakers = member.fleet.tier.bucket
    assert ("did not answer" in breakers.writing.trouble, breakers.reading.trouble) == (True, "")
    assert [event.digest for event in member.cache.seen(events.FleetNotShared)] == [new]
    assert (await member.blob(REPOSITORY, digest)).body == data
    assert hub.counters.blob_gets(digest) == 0


@pytest.fixture
async def two(start_sharing, patient):
    """They reach each other."""
    return [await start_sharing() for _ in range(2)]


@pytest.mark.parametrize("trouble", [{"refuses": {"GET": (503, "SlowDown")}}, {"hangs": {"GET"}}])
async def test_while_a_store_does_not_serve_us_who_has_it_is_asked(two, hub, stand_in, make_blob, impatient, trouble):
    first, second = two
    digest, data = await make_blob()
    await first.blob(REPOSITORY, digest)
    await shared(first)
    for name, value in trouble.items():
        setattr(stand_in, name, value)
    assert (await second.blob(REPOSITORY, digest)).body == data
    assert (hub.counters.blob_gets(digest), second.fleet.counts.peer_bytes) == (1, len(data))


async def test_what_a_full_bucket_does_not_take_is_had_of_who_has_fetched_it(
    two, hub, stand_in, make_blob, monkeypatch
):
    monkeypatch.setattr(shelf, "_PATIENCE_SECONDS", 0.1)
    monkeypatch.setattr(shelf, "_PAUSE_SECONDS", 0.0)
    first, second = two
    stand_in.hangs = {"PUT", "DELETE"}
    digest, data = await make_blob()
    await first.blob(REPOSITORY, digest)
    await shared(first)
    assert (await second.blob(REPOSITORY, digest)).body == data
    assert (hub.counters.blob_gets(digest), second.fleet.counts.peer_bytes) == (1, len(data))


@pytest.mark.parametrize("refuses", [(404, "NoSuchBucket"), (403, "SignatureDoesNotMatch"), (500, "InternalError")])
async def test_a_store_that_will_not_serve_us_is_left_alone_and_its_index_kept(stocked, hub, stand_in, refuses):
    digest, data, member = stocked
    stand_in.refuses = dict.fromkeys(("GET", "PUT", "DELETE"), refuses)
    assert (await member.blob(REPOSITORY, digest)).body == data
    assert hub.counters.blob_gets(digest) == 1
    await shared(member)
    assert member.fleet.tier.bucket.reading.trouble == f"the store answered {refuses[0]} {refuses[1]}"
    assert (await member.fleet.tier.index.turn("none")).size_bytes == len(data)


async def test_an_object_that_may_not_be_deleted_keeps_nothing_from_being_shared(start_sharing, make_blob, stand_in):
    member = await start_sharing()
    digest, _ = await make_blob()
    await member.blob(REPOSITORY, digest)
    await shared(member)
    stand_in.locked = {key_of(member, digest)}
    tier = member.fleet.tier
    await tier.index.purged([Digest(digest)])
    await Evictor(tier.bucket, tier.index, cap_bytes=10**9, counts=Counts(), bus=Events()).evict()
    other, _ = await make_blob()
    await member.blob(REPOSITORY, other)
    await shared(member)
    assert key_of(member, other) in stand_in.objects
    assert member.fleet.figures().writing_trouble == "the store answered 403 AccessDenied"


async def test_it_is_used_again_when_it_works(stocked, stand_in, make_blob):
    digest, _, member = stocked
    stand_in.refuses = {"GET": (403, "AccessDenied")}
    await member.blob(REPOSITORY, digest)
    bucket = member.fleet.tier.bucket
    await bucket.look()
    assert bucket.reading.trouble  # it is not asked before its time
    stand_in.refuses = {}
    bucket.reading._retry_at = 0.0
    await bucket.look()
    assert (bucket.reading.trouble, len(member.cache.seen(events.FleetBucketUp))) == ("", 1)


@pytest.mark.parametrize("rot", [lambda data: data[:-1] + b"!", lambda data: data[:-1], lambda data: data + b"!"])
async def test_a_rotten_object_is_deleted_and_fetched_again(stocked, hub, stand_in, rot):
    digest, data, member = stocked
    key = key_of(member, digest)
    stand_in.objects[key] = rot(data)
    assert (await member.blob(REPOSITORY, digest)).body == data
    await shared(member)
    assert [event.digest for event in member.cache.seen(events.FleetObjectRotten)] == [digest]
    assert hub.counters.blob_gets(digest) == 1
    await until(lambda: stand_in.objects.get(key) in (None, data) and not member.fleet.tier._tasks)


async def test_a_rotten_end_that_could_not_be_stored_is_had_from_upstream(stocked, start_sharing, hub, stand_in):
    digest, data, first = stocked
    small = await start_sharing(max_size=str(len(data) // 2))
    stand_in.objects[key_of(first, digest)] = data[:-1] + b"!"
    assert (await small.blob(REPOSITORY, digest)).body == data
    assert small.cache.seen(events.NotStored)
    assert [event.digest for event in small.cache.seen(events.FleetObjectRotten)] == [digest]
    assert hub.counters.blob_gets(digest) == 1


async def test_an_object_that_is_gone_is_forgotten_and_brought_again(stocked, hub, stand_in):
    digest, data, member = stocked
    stand_in.objects.clear()
    assert (await member.blob(REPOSITORY, digest)).body == data
    assert hub.counters.blob_gets(digest) == 1
    await shared(member)
    assert stand_in.objects == {key_of(member, digest): data}
    assert (await member.fleet.tier.index.turn("none")).size_bytes == len(data)
    assert member.fleet.tier.bucket.reading.trouble == ""


async def test_an_emptied_redis_costs_no_get_of_upstream(stocked, hub, database, fleet_name):
    digest, data, member = stocked
    await database.set(f"{{rc1:{fleet_name}}}:q:sweep", "somebody")
    await database.delete(*(f"{{rc1:{fleet_name}}}:{name}" for name in ("size", "lru", "bytes", "gen", "meta")))
    assert (await member.blob(REPOSITORY, digest)).body == data
    assert hub.counters.blob_gets(digest) == 0
    await until(lambda: not member.fleet.tier._tasks)
    assert (await member.fleet.tier.index.turn("none")).size_bytes == len(data)


async def test_without_redis_the_bucket_is_asked_before_upstream(stocked, hub, redis_wire):
    digest, data, member = stocked
    await redis_wire.set("refuses")
    assert (await member.blob(REPOSITORY, digest)).body == data
    assert hub.counters.blob_gets(digest) == 0


async def test_with_nothing_in_the_index_the_bucket_is_not_asked(start_sharing, make_blob, stand_in):
    member = await start_sharing()
    asked = stand_in.count("GET", "sha256")
    digest, _ = await make_blob()
    await member.blob(REPOSITORY, digest)
    assert stand_in.count("GET", "sha256") == asked


async def test_what_upstream_does_not_have_in_a_repository_is_not_handed_out_there(stocked, hub):
    digest, _, member = stocked
    await hub.images.image("library/other", "latest")
    assert (await member.blob("library/other", digest)).status == 404


async def test_the_keys_are_told_to_nobody(stocked, stand_in, redis_port, fleet_name):
    digest, _, member = stocked
    stand_in.secret = "another"
    await member.blob(REPOSITORY, digest)
    await shared(member)
    told = [repr(event) for event in member.cache.emitted] + [repr(await member.cache.stats()), *stand_in.heads]
    async with redis.asyncio.Redis(port=redis_port) as database:
        read = {b"string": database.get, b"hash": database.hgetall, b"zset": lambda key: database.zrange(key, 0, -1)}
        told += [repr(await read[await database.type(key)](key)) for key in await database.keys(f"*{fleet_name}*")]
    assert [text for text in told if SECRET in text] == []
    signed = "Authorization: AWS4-HMAC-SHA256"
    assert [text for text in told if "AKID" in text and not text.startswith(signed)] == []


async def test_a_hit_here_keeps_the_blob_in_the_bucket(stocked, database, redis_port, fleet_name):
    digest, _, member = stocked
    await member.blob(REPOSITORY, digest)
    await shared(member)
    async with redis.asyncio.Redis(port=redis_port) as raw:
        lru, name = f"{{rc1:{fleet_name}}}:lru", bytes.fromhex(Digest(digest).encoded)
        await raw.zadd(lru, {name: 1000})
        await member.cache.proxy.index.flush()
        await member.fleet.tier._round()  # what the hit of before was
        await raw.zadd(lru, {name: 1000})
        await member.blob(REPOSITORY, digest)
        assert await raw.zscore(lru, name) == 1000
        await member.cache.proxy.index.flush()
        await member.fleet.tier._round()
        assert await raw.zscore(lru, name) > 1_700_000_000


WELL = {"hangs": set(), "refuses": {}, "truncates": None, "stalls": None}
TROUBLES = [
    {"refuses": {"PUT": (500, "InternalError")}},
    {"refuses": {"GET": (503, "SlowDown"), "DELETE": (503, "SlowDown")}},
    {"refuses": {"DELETE": (403, "AccessDenied")}},
    {"hangs": {"PUT", "DELETE"}},
    {"truncates": 40_000},
    {"stalls": 40_000},
]


@pytest.mark.parametrize("seed", range(2))
async def test_after_any_trouble_bucket_index_and_count_agree(
    start_sharing, make_blob, stand_in, database, fleet_name, impatient, monkeypatch, seed
):
    for module, name, value in [
        (shelf, "_PATIENCE_SECONDS", 0.1),
        (shelf, "_PAUSE_SECONDS", 0.0),
        (bucket, "_DELETE_SECONDS", 0.1),
        (bucket, "RETRY_SECONDS", 0.05),
        (bucket, "LASTING_RETRY_SECONDS", 0.05),
    ]:
        monkeypatch.setattr(module, name, value)
    chance = random.Random(seed)
    cap = 700_000
    members = [await start_sharing(fleet_max_size=str(cap), max_size="500KB") for _ in range(2)]
    blobs = [await make_blob(100_000) for _ in range(12)]
    index, store = members[0].fleet.tier.index, members[0].fleet.tier.bucket
    evictors = [
        Evictor(one.fleet.tier.bucket, one.fleet.tier.index, cap_bytes=cap, counts=Counts(), bus=Events())
        for one in members
    ]
    for _ in range(40):
        for name, value in (WELL | chance.choice([{}, {}, *TROUBLES])).items():
            setattr(stand_in, name, value)
        if chance.random() < 0.03:
            await database.delete(
                *(f"{{rc1:{fleet_name}}}:{name}" for name in ("size", "lru", "going", "bytes", "meta"))
            )
        if stand_in.objects and chance.random() < 0.2:
            del stand_in.objects[chance.choice(sorted(stand_in.objects))]
        wanted = [(chance.choice(members), *chance.choice(blobs)) for _ in range(3)]
        got = await asyncio.gather(*(member.blob(REPOSITORY, digest) for member, digest, _ in wanted))
        assert [reply.body for reply in got] == [data for _, _, data in wanted]
        await chance.choice(evictors).evict()
        await store.look()
    for name, value in WELL.items():
        setattr(stand_in, name, value)
    monkeypatch.setattr(bucket, "_DELETE_SECONDS", 10.0)  # a busy machine is no trouble any more
    for member in members:
        await shared(member)
        await until(lambda member=member: not member.fleet.tier._tasks)
    await asyncio.sleep(0.06)  # every breaker may be tried again
    await store.look()
    await database.delete(
        f"{{rc1:{fleet_name}}}:meta", f"{{rc1:{fleet_name}}}:q:sweep", f"{{rc1:{fleet_name}}}:q:evict"
    )
    await Sweeper(store, index, bus=Events()).sweep()
    while await evictors[0].evict():
        pass
    known = {digest async for digest in entries(index)}
    assert {store.key(digest) for digest in known} == set(stand_in.objects)
    turn = await index.turn("none")
    assert (turn.size_bytes, turn.going) == (sum(map(len, stand_in.objects.values())), 0)
    assert turn.size_bytes <= 0.95 * cap


async def entries(index):
    cursor = 0
    while True:
        cursor, found = await index.scan(cursor)
        for digest, _ in found:
            yield digest
        if not cursor:
            return


class TooLong:
    """Five bytes, two at a time, where four were told."""

    def __init__(self):
        self.pieces = [b"ab", b"cd", b"e", b""]

    async def read(self):
        return self.pieces.pop(0)

    async def drain(self, take):
        while piece := self.pieces.pop(0):
            take(piece)


@pytest.mark.parametrize("told", [3, 4])
async def test_no_more_is_taken_than_was_told(told):
    taken, lost = bytearray(), []
    body = TierBody(ObjectReply(TooLong(), 0, told), moved=lambda *_: None, lost=lost.append)
    with pytest.raises(PeerLost):
        await body.drain(taken.extend)
    assert (len(taken) <= told, lost) == (True, [False])
    body = TierBody(ObjectReply(TooLong(), 0, 3), moved=lambda *_: None, lost=lost.append)
    assert await body.read() == b"ab"
    with pytest.raises(PeerLost):
        await body.read()
