"""Purges and pins for the whole fleet, whichever replica they are told to."""

import asyncio

import pytest

from registry_cache.fleet import wish_scripts
from registry_cache.fleet.counts import Counts
from registry_cache.fleet.eviction import Evictor
from registry_cache.fleet.purges import Purges
from registry_cache.fleet.sealed import Sealed
from registry_cache.model import events
from registry_cache.model.bus import Events
from registry_cache.model.contents import Pattern, Pin
from registry_cache.model.oci import Digest, Repository
from tests.fleet.conftest import shared, soon

NAME = "library/wished"
TAG = Pattern.parse(f"{NAME}:1")


@pytest.fixture
async def image(hub):
    made = await hub.images.image(NAME, "1", (800_000,))
    hub.reset_counters()
    return made


@pytest.fixture
async def members(start_replica, patient):
    return [await start_replica() for _ in range(3)]


def curator(member):
    return member.fleet.wishes._curator


async def pull(member, image):
    assert (await member.cache.manifest(NAME, "1")).status == 200
    for blob in image.blobs:
        assert (await member.cache.blob(NAME, blob.digest)).status == 200
    await member.cache.settled()


async def has(member, image):
    here = await member.cache.proxy.index.inventory()
    return {blob.digest for blob in image.blobs} & here.blobs.keys(), {tag.name for tag in here.tags}


async def gone_everywhere(members, image):
    async with asyncio.timeout(10):
        while any([any(await has(member, image)) for member in members]):
            await asyncio.sleep(0.01)


async def every(members, pins):
    async with asyncio.timeout(10):
        while [await curator(member).pins() for member in members] != [pins] * len(members):
            await asyncio.sleep(0.01)


async def test_a_purge_is_one_of_all_replicas(hub, image, members):
    for member in members:
        await pull(member, image)
    assert (await curator(members[0]).purge([TAG], apply=True)).plan.tags
    await gone_everywhere(members, image)
    hub.reset_counters()
    await members[1].cache.manifest(NAME, "1")  # what Redis has of the tag is older than the purge
    assert hub.counters.manifest_gets() == 1


async def evicted(members, keys, stand_in):
    """What is condemned in the bucket goes from it."""
    tier = members[0].fleet.tier
    async with asyncio.timeout(20):
        while keys & stand_in.objects.keys():
            for member in members:
                await member.fleet.wishes.look()
            await Evictor(tier.bucket, tier.index, cap_bytes=10**9, counts=Counts(), bus=Events()).evict()
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("name", ["", f"{NAME}@"])
async def test_a_purge_of_a_digest_is_one_of_all_replicas_and_of_the_bucket(start_sharing, image, stand_in, name):
    members = [await start_sharing() for _ in range(3)]
    for member in members:
        await pull(member, image)
    for member in members:
        await shared(member)
    layer = image.layers[0].digest
    await curator(members[0]).purge([Pattern.parse(f"{name}{layer}"), Pattern.parse(f"{NAME}:other")], apply=True)
    async with asyncio.timeout(10):
        while any([layer in (await has(member, image))[0] for member in members]):
            await asyncio.sleep(0.01)
    await evicted(members, {members[0].fleet.tier.bucket.key(Digest(layer))}, stand_in)


async def test_a_purge_that_was_only_planned_is_nobodys(image, members):
    for member in members:
        await pull(member, image)
    await curator(members[0]).purge([TAG], apply=False)
    for member in members:
        await member.fleet.wishes.look()
        assert (await has(member, image))[1] == {"1"}


async def test_who_was_away_drops_what_was_purged_after_it_was_stored(image, members):
    first, away, _ = members
    await pull(away, image)
    await away.fleet.wishes.aclose()
    await curator(first).purge([TAG], apply=True)
    await first.fleet.wishes.look()
    assert (await has(away, image))[1] == {"1"}
    away.fleet.wishes.start(curator(away))
    await gone_everywhere([away], image)


async def test_a_replica_that_starts_hears_of_purges_from_before(image, members):
    first, away, _ = members
    await pull(away, image)
    await away.fleet.wishes.aclose()
    await curator(first).purge([TAG], apply=True)
    await first.fleet.wishes.look()
    wishes = away.fleet.wishes
    wishes._last, wishes._version = "0", b""  # as in a new process
    wishes._purges = Purges()
    wishes.start(curator(away))
    await gone_everywhere([away], image)
    assert wishes.since_us(Repository.parse(NAME), tag="1")


async def test_what_was_stored_after_the_purge_stays(image, members):
    first, away, _ = members
    await away.fleet.wishes.aclose()
    await curator(first).purge([TAG], apply=True)
    await first.fleet.wishes.look()
    await pull(away, image)
    await away.fleet.wishes.look()
    blobs, tags = await has(away, image)
    assert (len(blobs), tags) == (len(image.blobs), {"1"})


async def test_a_purge_while_redis_is_away_is_told_when_it_is_back(image, members, redis_wire):
    for member in members:
        await pull(member, image)
    await redis_wire.set("refuses")
    await curator(members[0]).purge([TAG], apply=True)
    assert (await has(members[1], image))[1] == {"1"}
    await redis_wire.set("works")
    await gone_everywhere(members, image)


OTHERS = [Pattern.parse(f"library/other:{number}") for number in range(1500)]


async def test_more_purges_at_once_than_one_message_has_reach_all(image, members):
    for member in members:
        await pull(member, image)
    await curator(members[0]).purge([TAG, *OTHERS], apply=True)
    await gone_everywhere(members, image)
    for member in members:
        await member.fleet.wishes.look()
        for pattern in (OTHERS[0], OTHERS[-1]):
            assert member.fleet.wishes.since_us(Repository.parse(pattern.repository), tag=pattern.tag)
    assert not members[0].fleet.wishes._own


async def test_who_was_away_hears_of_the_first_of_many_purges(image, members):
    first, away, _ = members
    await pull(away, image)
    await away.fleet.wishes.aclose()
    for patterns in ([TAG], OTHERS[:500], OTHERS[500:1000], OTHERS[1000:]):
        await curator(first).purge(patterns, apply=True)
        await first.fleet.wishes.look()
    away.fleet.wishes.start(curator(away))
    await gone_everywhere([away], image)
    assert not first.cache.seen(events.Warned)


async def test_more_purges_than_are_kept_are_told_once(members, monkeypatch):
    monkeypatch.setattr(wish_scripts, "PURGED", wish_scripts.PURGED.replace("10000", "1000"))
    for _ in range(2):
        await curator(members[0]).purge(OTHERS, apply=True)
        await members[0].fleet.wishes.look()
    [warned] = members[0].cache.seen(events.Warned)
    assert "purges in thirty days" in warned.message


async def test_a_purge_is_heard_after_redis_has_lost_the_others(image, members, database, fleet_name):
    first, other, _ = members
    await curator(first).purge([TAG], apply=True)
    for member in members:
        await member.fleet.wishes.look()
    await database.delete(f"{{rc1:{fleet_name}}}:purged")
    await pull(other, image)
    await curator(first).purge([OTHERS[0]], apply=True)
    for member in members:
        await member.fleet.wishes.look()
        assert member.fleet.wishes.since_us(Repository.parse("library/other"), tag="0")
    assert (await has(other, image))[1] == {"1"}


async def test_pins_are_those_of_all_replicas(image, members):
    await members[0].cache.manifest(NAME, "1")
    await curator(members[0]).pin([TAG])
    await every(members, {Pin(Repository.parse(NAME), "1")})
    await curator(members[2]).unpin([TAG])
    await every(members, set())


async def test_who_was_away_hears_that_a_pin_was_taken_away(members):
    first, away, _ = members
    await curator(first).pin([TAG])
    await every(members, {Pin(Repository.parse(NAME), "1")})
    await away.fleet.wishes.aclose()
    await curator(first).unpin([TAG])
    await first.fleet.wishes.look()
    away.fleet.wishes.start(curator(away))
    await every(members, set())


async def test_pins_are_told_again_to_a_redis_that_was_emptied(members, database, fleet_name):
    await curator(members[0]).pin([TAG])
    pins = {Pin(Repository.parse(NAME), "1")}
    await every(members, pins)
    await database.delete(*await database.keys(f"{{rc1:{fleet_name}}}:*"))
    async with asyncio.timeout(10):
        while not await database.hlen(f"{{rc1:{fleet_name}}}:pins"):
            await asyncio.sleep(0.01)
    await every(members, pins)


async def _list(database, name):
    await database.delete(name)
    await database.lpush(name, "x")


async def _junk(database, name):
    await database.delete(name)
    if name.endswith("pins"):
        await database.hset(name, mapping={"a": b"\xff\xfe", "b": "9" * 5_000_000, "c": "9" * 1_000})
    elif name.endswith("purged"):
        await database.xadd(name, {"e": "9" * 5_000_000})
        await database.xadd(name, {"e": b"\xff\xfe", "f": "x"})
    else:
        await database.setrange(name, 50_000_000, "9")


async def _future(database, name):
    await database.delete(name)
    if name.endswith("purged"):
        await database.xadd(name, {"e": "x"}, id="253402300799000-1")


@pytest.mark.parametrize("value", [_list, _junk, _future])
async def test_what_nobody_of_the_fleet_has_written_changes_nothing(image, members, database, fleet_name, value):
    for member in members:
        await pull(member, image)
    for name in ("purged", "pins", "pins_at"):
        await value(database, f"{{rc1:{fleet_name}}}:{name}")
    for member in members:
        await member.fleet.wishes.look()
        assert (await has(member, image))[1] == {"1"}
    await curator(members[0]).pin([Pattern.parse(f"{NAME}:other")])
    await every(members, {Pin(Repository.parse(NAME), "other")})
    await curator(members[0]).purge([TAG], apply=True)
    await gone_everywhere(members, image)


@pytest.mark.parametrize("payload", [b"", b"[1]", b'["docker.io", "*"]', b'["", "", null, "sha256:0"]', b"\xff" * 9])
async def test_an_order_of_another_version_is_passed_over(image, members, payload):
    first = members[0]
    await pull(first, image)
    wishes, signer, prefix = first.fleet.wishes, first.fleet.signer, first.fleet.wishes._prefix
    purge = Sealed(1, "-", payload).seal(signer, "purged")
    await first.fleet.redis.run(wish_scripts.PURGED, [f"{prefix}purged", f"{prefix}news"], [purge])
    pin = Sealed(1, "+", payload).seal(signer, "pins")
    keys = [f"{prefix}{name}" for name in ("pins", "pins_at", "news")]
    await first.fleet.redis.run(wish_scripts.PIN, keys, ["v", "field", pin])
    await wishes.look()
    assert (await has(first, image))[1] == {"1"}
    assert await curator(first).pins() == set()


async def test_more_pins_than_anybody_needs_are_not_kept(members, database, fleet_name, monkeypatch):
    monkeypatch.setattr(wish_scripts, "PIN", wish_scripts.PIN.replace("< 10000", "< 3"))
    await curator(members[0]).pin([Pattern.parse(f"{NAME}:{number}") for number in range(5)])
    await members[0].fleet.wishes.look()
    assert await database.hlen(f"{{rc1:{fleet_name}}}:pins") == 3
    assert len(await curator(members[0]).pins()) == 5


async def test_what_is_purged_goes_from_the_bucket_too(start_sharing, stand_in, image, patient):
    """So that no replica brings it back from there."""
    members = [await start_sharing() for _ in range(2)]
    await pull(members[0], image)
    async with asyncio.timeout(10):
        while len(members[0].fleet.tier.shelf):
            await asyncio.sleep(0.01)
    assert len(stand_in.objects) >= len(image.blobs)
    await curator(members[1]).purge([TAG], apply=True)
    await gone_everywhere(members, image)
    kept = {members[0].fleet.tier.bucket.key(Digest(blob.digest)) for blob in image.blobs}
    await evicted(members, kept, stand_in)


async def evict_here(member, digests):
    """As where MAX_SIZE is small."""
    await member.cache.proxy.store.purge([Digest(digest) for digest in digests])


async def test_a_purge_of_a_digest_that_only_the_bucket_has(stocked, stand_in):
    digest, _, fresh = stocked
    key = fresh.fleet.tier.bucket.key(Digest(digest))
    assert key in stand_in.objects
    for apply in (False, True):
        plan, missing, shared_ones = await curator(fresh).purge([Pattern.parse(digest)], apply=apply)
        assert (plan.digests, missing, shared_ones) == ([], [], [digest])
    await evicted([fresh], {key}, stand_in)
    assert (await curator(fresh).purge([Pattern.parse(digest)], apply=True)).missing == [0]


async def test_a_purge_of_a_tag_takes_what_only_the_bucket_has_of_it(start_sharing, stand_in, image, patient):
    member = await start_sharing()
    await pull(member, image)
    await shared(member)
    await evict_here(member, [blob.digest for blob in image.blobs])
    answer = await curator(member).purge([TAG], apply=True)
    assert {*answer.shared} == {blob.digest for blob in image.blobs}
    await evicted([member], {member.fleet.tier.bucket.key(Digest(blob.digest)) for blob in image.blobs}, stand_in)


async def test_what_another_tag_needs_or_a_pin_keeps_stays_in_the_bucket(start_sharing, stand_in, hub, image, patient):
    """Also where it is not here any more."""
    member = await start_sharing()
    await hub.images.image(NAME, "2", extra_layers=image.layers)
    await pull(member, image)
    assert (await member.cache.manifest(NAME, "2")).status == 200
    await shared(member)
    layer = image.layers[0].digest
    await evict_here(member, [layer])
    answer = await curator(member).purge([TAG], apply=True)
    assert answer.plan.tags
    assert layer not in answer.shared
    await curator(member).pin([Pattern.parse(f"{NAME}:2")])
    kept = await curator(member).purge([Pattern.parse(layer)], apply=True)
    assert (kept.shared, len(kept.plan.kept)) == ([], 1)
    await member.fleet.wishes.look()
    assert await member.fleet.tier.index.known([Digest(layer)]) == [layer]


@pytest.mark.parametrize("by", ["tag", "digest"])
async def test_what_is_purged_on_its_way_into_the_bucket_does_not_stay_there(start_sharing, stand_in, image, by):
    members = [await start_sharing() for _ in range(2)]
    stand_in.hangs = {"PUT"}
    await pull(members[0], image)
    await soon(lambda: stand_in.count("PUT") >= 2)
    digests = [blob.digest for blob in image.blobs]
    patterns = [TAG] if by == "tag" else [Pattern.parse(digest) for digest in digests]
    await curator(members[1]).purge(patterns, apply=True)
    async with asyncio.timeout(10):
        while (await has(members[0], image))[0] or members[0].fleet.wishes._doomed:
            await asyncio.sleep(0.01)
    stand_in.hangs = set()
    stand_in.goes_on.set()
    await shared(members[0])
    await evicted(members, {members[0].fleet.tier.bucket.key(Digest(digest)) for digest in digests}, stand_in)
