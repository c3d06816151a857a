"""What nobody of the fleet has written into the bucket's index: no question fails by it, and it heals."""

import pytest

from registry_cache.fleet.sweep import Sweeper
from registry_cache.model import events
from registry_cache.model.bus import Events
from registry_cache.model.oci import Digest, Repository
from tests.fleet.test_tier_index import BLOBS, fill, total, value_of

KINDS = {"size": "hash", "lru": "zset", "going": "zset", "bytes": "string", "gen": "string", "meta": "hash",
         "keep": "set", "q:evict": "string", "q:sweep": "string"}  # fmt: skip
NUMBERS = ["x", "", "-99999999999999", "nan", "inf", "1e400", "0007", " 1", "1.5", "9" * 5000, "9" * 18]


async def put(database, key, kind):
    await database.delete(key)
    write = {
        "missing": lambda: database.exists(key),
        "string": lambda: database.set(key, "x"),
        "list": lambda: database.lpush(key, "x"),
        "set": lambda: database.sadd(key, "x"),
        "hash": lambda: database.hset(key, "complete", "x"),
        "zset": lambda: database.zadd(key, {"x": 1}),
        "stream": lambda: database.xadd(key, {"e": "x"}),
    }
    await write[kind]()


@pytest.fixture
async def part(clients, stand_in):
    """Of a replica, with four blobs in the bucket and a sweep behind it."""
    await fill(clients[0], stand_in, 4)
    await clients[0].sweeper.sweep()
    return clients[0]


async def everything(part, leases):
    """Each question once; those that change something are of a blob that is not in the bucket."""
    index, blob = part.index, BLOBS[50]
    assert (await index.turn("evict")).is_mine
    await index.turn_over("evict")
    await index.admit(blob, 10, 1000)
    await index.touch([BLOBS[0]])
    await index.lend(BLOBS[0], 1)
    await index.shared([(blob, 10, None)])
    await index.forget([(blob, await value_of(index, blob) or "")])
    await index.purged([blob])
    await index.gone(await index.condemn(10**9))
    await leases.claim(Repository.parse("library/fleet"), BLOBS[51], may_be_shared=True)


async def whole(part, stand_in):
    """Everything is in the index, and counted, and can be evicted; a sweep was due if there was one to do."""
    await part.sweeper.sweep()
    values = {digest: await value_of(part.index, digest) for digest in BLOBS[:4]}
    assert all(value and value.startswith("100:") for value in values.values())
    turn = await part.index.turn("none")
    assert (turn.size_bytes, bool(turn.complete_at)) == (400, True)
    assert set(await part.index.condemn(0)) == set(BLOBS[:4])


@pytest.mark.parametrize(
    ("name", "kind"),
    [(name, kind) for name, right in KINDS.items()
     for kind in ("string", "list", "hash", "zset", "set", "stream", "missing") if kind != right],
)  # fmt: skip
async def test_a_key_of_another_type_or_none_is_replaced(part, stand_in, replicas, database, fleet_name, name, kind):
    await put(database, f"{{rc1:{fleet_name}}}:{name}", kind)
    await everything(part, replicas[0].leases)
    await whole(part, stand_in)
    assert not [event for event in part.seen if isinstance(event, events.FleetRedisDown | events.Warned)]


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("name", ["bytes", "gen", "complete", "since", "counted", "q:evict", "q:sweep"])
async def test_a_number_that_is_none_is_replaced(part, stand_in, replicas, database, fleet_name, name, number):
    prefix = f"{{rc1:{fleet_name}}}:"
    if name in ("complete", "since", "counted"):
        await database.hset(f"{prefix}meta", name, number)
    else:
        await database.set(f"{prefix}{name}", number)
    await everything(part, replicas[0].leases)
    await whole(part, stand_in)
    assert not [event for event in part.seen if isinstance(event, events.FleetRedisDown | events.Warned)]


@pytest.mark.parametrize("value", [*NUMBERS, "9" * 5000 + ":1", "1:" + "9" * 5000, "-1:1", ":", "1:"])
async def test_a_size_that_is_none_is_replaced(part, stand_in, replicas, database, fleet_name, value):
    key = f"{{rc1:{fleet_name}}}:size"
    for one in (*BLOBS[:2], BLOBS[9]):
        await database.hset(key, bytes.fromhex(one.encoded), value)
    await database.hdel(f"{{rc1:{fleet_name}}}:meta", "complete")
    await everything(part, replicas[0].leases)
    await whole(part, stand_in)
    assert await value_of(part.index, BLOBS[9]) is None


async def test_a_turn_that_never_ends_is_nobodys(part, clients, database, fleet_name):
    for milliseconds in (None, 10_000_000):
        await database.set(f"{{rc1:{fleet_name}}}:q:evict", "x", px=milliseconds)
        assert (await part.index.turn("evict")).is_mine
        assert not (await clients[1].index.turn("evict")).is_mine


@pytest.mark.parametrize("complete", ["99999999999", "9" * 15])
async def test_a_sweep_of_the_future_has_not_been(part, stand_in, database, fleet_name, complete):
    await database.hset(f"{{rc1:{fleet_name}}}:meta", "complete", complete)
    asked = stand_in.count("GET")
    await part.sweeper.sweep()
    assert stand_in.count("GET") == asked + 1


@pytest.mark.parametrize("number", ["-99999999999999", "nonsense", None])
async def test_a_count_that_cannot_be_is_counted_anew_at_once(part, stand_in, database, fleet_name, number):
    await database.delete(f"{{rc1:{fleet_name}}}:bytes")
    if number is not None:
        await database.set(f"{{rc1:{fleet_name}}}:bytes", number)
    await part.index.turn("none")
    await whole(part, stand_in)


@pytest.mark.parametrize("number", [0, 1, 10**12])
async def test_a_wrong_count_is_right_after_the_next_sweep(part, stand_in, database, fleet_name, number):
    await database.set(f"{{rc1:{fleet_name}}}:bytes", number)
    await database.hdel(f"{{rc1:{fleet_name}}}:meta", "complete")
    await whole(part, stand_in)


async def test_with_a_wrong_count_the_bucket_is_kept_below_its_cap(part, stand_in, database, fleet_name):
    await fill(part, stand_in, 12)
    await database.set(f"{{rc1:{fleet_name}}}:bytes", "-99999999999999")
    assert not await part.evictor.evict()
    await part.sweeper.sweep()
    await part.evictor.evict()
    assert sum(map(len, stand_in.objects.values())) == await total(part.index) == 900


async def test_when_the_sizes_are_lost_nothing_is_evicted_for_that(part, stand_in, database, fleet_name):
    await fill(part, stand_in, 12)
    await database.delete(f"{{rc1:{fleet_name}}}:size")
    assert not await part.evictor.evict()
    assert len(stand_in.objects) == 12
    await part.sweeper.sweep()
    assert await total(part.index) == 1200


async def changes(index, number):
    """One blob is new, one has another size, one is found missing, one is evicted."""
    await index.shared([(Digest.of(b"new %d" % number), 7, None), (Digest.of(b"old %d" % number), 9, None)])
    missing = Digest.of(b"old %d" % (number + 1000))
    await index.forget([(missing, await value_of(index, missing) or "")])
    await index.purged([Digest.of(b"old %d" % (number + 1100)), Digest.of(b"new %d" % (number - 1))])
    await index.gone(await index.condemn(10**9))


async def test_what_changes_while_a_sweep_counts_is_counted_once(clients, database, fleet_name, monkeypatch):
    part, calls = clients[0], 0
    many = [Digest.of(b"old %d" % number) for number in range(1500)]
    await part.index.shared([(digest, 10, None) for digest in many])
    await database.set(f"{{rc1:{fleet_name}}}:bytes", 5)
    scan = part.index.scan

    async def page(_):
        await changes(part.index, 500)
        return [], ""

    async def scan_and_change(cursor):
        nonlocal calls
        got = await scan(cursor)
        calls += 1
        monkeypatch.setattr(part.index, "scan", scan)
        await changes(part.index, calls)
        monkeypatch.setattr(part.index, "scan", scan_and_change)
        return got[0], []  # nothing is forgotten

    monkeypatch.setattr(part.bucket, "page", page)
    monkeypatch.setattr(part.index, "scan", scan_and_change)
    await part.sweeper.sweep()
    values = await database.hvals(f"{{rc1:{fleet_name}}}:size")
    assert calls > 2
    assert await total(part.index) == sum(int(value.partition(":")[0]) for value in values)


async def test_a_sweep_that_another_has_begun_anew_completes_nothing(clients, stand_in, monkeypatch):
    first, second = clients[:2]
    await fill(first, stand_in, 3)
    page = first.bucket.page

    async def overtaken(after):
        await second.index.shared([(BLOBS[6], 10, None)])
        await second.index.recount()
        return await page(after)

    monkeypatch.setattr(first.bucket, "page", overtaken)
    await second.index.shared([(BLOBS[5], 10, None)])
    await first.sweeper.sweep()
    assert not (await first.index.turn("none")).complete_at
    assert not [event for event in first.seen if isinstance(event, events.FleetSwept)]
    await Sweeper(second.bucket, second.index, bus=Events()).sweep()
    assert await total(second.index) == 300


async def test_what_was_going_when_that_was_lost_can_be_evicted(part, stand_in, database, fleet_name):
    await part.index.purged(BLOBS[:2])
    await database.delete(f"{{rc1:{fleet_name}}}:going")
    await part.index.turn("none")
    await whole(part, stand_in)


async def test_a_use_of_what_is_not_there_makes_no_sweep_again_and_again(part, stand_in, database, fleet_name):
    await database.zadd(f"{{rc1:{fleet_name}}}:lru", {b"x" * 32: 1})
    asked = stand_in.count("GET")
    for _ in range(3):
        await part.sweeper.sweep()
    assert stand_in.count("GET") == asked
