"""Who takes part: one upstream and one account for all. And what a Redis that is full or emptied changes: nothing."""

import asyncio

import pytest
import redis.asyncio

from registry_cache.doctor.network import fleet as fleet_check
from registry_cache.fleet import membership
from registry_cache.fleet.leases import RedisDown
from registry_cache.fleet.peers import blob_path
from registry_cache.model import events
from registry_cache.model.oci import Digest, Repository
from registry_cache.observe.figures import Stats, read
from tests.fleet.conftest import REPOSITORY, running_redis
from tests.fleet.test_following import half_way, settled, until
from tests.fleet.test_port import ask


@pytest.fixture(autouse=True)
def _patient(patient):
    """A busy machine is no Redis that is down."""


def other_account(hub):
    return {"username": "somebody-else", "anonymous_fallback": True}


def other_upstream(hub):
    return {"upstream": hub.url.replace("127.0.0.1", "localhost")}


@pytest.fixture
def other_key(tmp_path):
    file = tmp_path / "other.key"
    file.write_text("o" * 40)
    return lambda hub: {"fleet_key_file": file}


async def refused(hub, start_replica, make_blob, settings):
    first, other = await start_replica(), await start_replica(**settings)
    assert (first.fleet.membership.refusal, first.fleet.membership.holds) == ("", True)
    digest, data = await make_blob()
    await first.blob(REPOSITORY, digest)
    await settled(first)
    hub.reset_counters()
    reply = await other.blob(REPOSITORY, digest)
    assert (reply.status, reply.body) == (200, data)
    assert hub.counters.blob_gets() == 1  # it has nothing from the fleet, and is no worse than without
    return other


@pytest.mark.parametrize("settings", [other_account, other_upstream])
async def test_who_asks_another_upstream_or_as_another_account_runs_alone_and_says_so(
    hub, start_replica, make_blob, settings
):
    other = await refused(hub, start_replica, make_blob, settings(hub))
    [event] = other.cache.seen(events.FleetRefused)
    assert "docker.io" in event.reason
    stats = await other.cache.stats()
    assert stats["fleet"]["refusal"] == event.reason
    assert fleet_check(read(stats, Stats)).state == "broken"
    assert "registry_cache_fleet_refused 1.0" in (await other.cache.get("/metrics")).body.decode()


async def test_who_has_another_key_runs_alone_and_says_so(hub, start_replica, make_blob, other_key):
    other = await refused(hub, start_replica, make_blob, other_key(hub))
    assert "FLEET_KEY_FILE" in other.fleet.membership.refusal


async def test_who_was_refused_takes_part_when_the_others_are_gone(hub, start_replica, database, fleet_name):
    await start_replica()
    other = await start_replica(**other_account(hub))
    assert not other.fleet.membership.holds
    async with asyncio.timeout(10):
        while not other.fleet.membership.holds:  # the first one renews its claim until this takes its place
            await database.delete(f"{{rc1:{fleet_name}}}:who:docker.io")
            await other.fleet.look()
    assert [type(one) for one in other.cache.emitted if type(one).__name__.startswith("FleetA")] == [
        events.FleetAdmitted
    ]


async def test_the_word_of_who_is_refused_is_nothing_to_the_others(start_replica, make_blob):
    """It may still be named as a holder, from when it asked as the others do."""
    member = await start_replica()
    digest, data = await make_blob()
    await member.blob(REPOSITORY, digest)
    await settled(member)
    path = blob_path(Repository.parse(REPOSITORY), Digest(digest))
    assert (await ask(member, path))[1] == data
    member.fleet.redis.barred = "it asks as somebody else now"
    assert (await ask(member, path))[0] == 404


async def test_nothing_is_shared_before_it_is_known_who_takes_part(start_replica, redis_wire, make_blob, hub):
    await redis_wire.set("refuses")
    member = await start_replica()
    assert member.fleet.redis.barred == membership.NOT_YET
    with pytest.raises(RedisDown):
        await member.fleet.limits.hear(patiently=True)
    digest, data = await make_blob()
    assert (await member.blob(REPOSITORY, digest)).body == data
    await redis_wire.set("works")
    await until(lambda: member.fleet.membership.holds)


async def _list(database, name):
    await database.lpush(name, "x")


async def _long(database, name):
    await database.setrange(name, 50_000_000, "9")


async def _for_ever(database, name):
    await database.set(name, "somebody else")


@pytest.mark.parametrize("value", [_list, _long, _for_ever])
async def test_what_no_replica_has_written_bars_nobody(start_replica, database, fleet_name, value):
    await value(database, f"{{rc1:{fleet_name}}}:who:docker.io")
    member = await start_replica()
    await member.fleet.membership.look()
    assert member.fleet.membership.holds


async def test_a_redis_that_is_full_changes_nothing_for_clients(hub, start_replica, make_blob, tmp_path):
    with running_redis(tmp_path) as (port, _):
        full = redis.asyncio.Redis(port=port)
        members = [await start_replica(fleet_redis_url=f"redis://127.0.0.1:{port}") for _ in range(2)]
        await full.config_set("maxmemory", 1)
        digest, data = await make_blob()
        image = await hub.images.image(REPOSITORY, "full")
        assert [(await one.blob(REPOSITORY, digest)).body for one in members] == [data] * 2
        assert [(await one.cache.manifest(REPOSITORY, "full")).status for one in members] == [200] * 2
        await until(lambda: all("maxmemory" in one.fleet.redis.trouble for one in members))
        await full.config_set("maxmemory", 0)
        await until(lambda: not any(one.fleet.redis.trouble for one in members))
        await full.aclose()
        assert image


async def test_a_redis_that_is_emptied_in_the_middle_changes_nothing_for_clients(
    hub, start_replica, make_blob, database, fleet_name
):
    members = [await start_replica() for _ in range(2)]
    digest, data = await make_blob()
    async with half_way(hub, members, digest) as pulls:
        async for key in database.scan_iter(f"{{rc1:{fleet_name}}}:*"):
            await database.delete(key)
        await database.script_flush()  # as after a failover: it knows no script either
        hub.faults.release()
        assert [reply.body for reply in await asyncio.gather(*pulls)] == [data, data]
    assert hub.counters.blob_gets(digest) == 1
    image = await hub.images.image(REPOSITORY, "emptied")
    hub.reset_counters()
    assert [(await one.cache.manifest(REPOSITORY, "emptied")).status for one in members] == [200] * 2
    assert hub.counters.manifest_gets() == 1
    assert [one.fleet.redis.trouble for one in members] == ["", ""]
    async with asyncio.timeout(10):
        while not await database.exists(f"{{rc1:{fleet_name}}}:who:docker.io"):
            await asyncio.sleep(0.01)
    assert image
