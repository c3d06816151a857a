"""Replicas in one event loop, in front of the look-alike, with a real Redis: who fetches, and what the others do."""

import asyncio
import contextlib
from types import SimpleNamespace

import aiohttp
import pytest
from aiohttp import web

from registry_cache.fleet.signature import ANSWER, HEADER, Signer
from registry_cache.model import events
from tests.fleet.conftest import REPOSITORY, settled
from tests.fleet.conftest import soon as until
from tests.hub.faults import Fault

HALF = 400_000


@contextlib.asynccontextmanager
async def half_way(hub, members, digest):
    """The first of *members* leads and the second follows, and both have half of the blob; gives their pulls."""
    hub.faults.add(Fault(kind="blob", stall_after_bytes=HALF, times=1, service="cdn"))
    leader, follower = members
    pulls = [asyncio.create_task(leader.blob(REPOSITORY, digest))]
    await until(lambda: digest in leader.fleet.leases._held)
    pulls.append(asyncio.create_task(follower.blob(REPOSITORY, digest)))
    await until(lambda: [flight.offset for m in members for flight in m.cache.proxy.flights] == [HALF, HALF])
    try:
        yield pulls
    finally:
        hub.faults.clear()
        for pull in pulls:
            pull.cancel()


async def bodies(pulls):
    return [reply.body for reply in await asyncio.gather(*pulls)]


async def test_one_get_for_all_replicas_and_their_clients(hub, start_replica, make_blob):
    members = [await start_replica() for _ in range(3)]
    blobs = [await make_blob() for _ in range(3)]
    hub.reset_counters()
    got = await bodies(member.blob(REPOSITORY, digest) for digest, _ in blobs for member in members for _ in range(3))
    assert got == [data for _, data in blobs for _ in range(9)]
    assert hub.counters.blob_gets() == 3
    assert sum(member.fleet.counts.peer_bytes for member in members) == 3 * 2 * 800_000


async def test_who_comes_later_gets_it_from_who_has_it(hub, start_replica, make_blob):
    first, later = [await start_replica() for _ in range(2)]
    digest, data = await make_blob()
    assert (await first.blob(REPOSITORY, digest)).body == data
    await settled(first)
    assert (await later.blob(REPOSITORY, digest)).body == data
    assert hub.counters.blob_gets(digest) == 1


async def test_who_says_to_have_it_and_does_not_is_passed_over(hub, start_replica, make_blob, database, fleet_name):
    first, later = [await start_replica() for _ in range(2)]
    digest, data = await make_blob()
    await database.set(f"{{rc1:{fleet_name}}}:at:{digest}", first.wire.address)
    assert (await later.blob(REPOSITORY, digest)).body == data
    await settled(later)
    assert await database.get(f"{{rc1:{fleet_name}}}:at:{digest}") == later.wire.address


async def test_a_hit_asks_nothing_of_redis(start_replica, make_blob, monkeypatch):
    member = await start_replica()
    digest, data = await make_blob()
    await member.blob(REPOSITORY, digest)
    await settled(member)

    async def never(*_):
        raise AssertionError

    monkeypatch.setattr(member.fleet.redis, "run", never)
    reply = await member.blob(REPOSITORY, digest)
    assert (reply.body, reply.cache_status) == (data, "registry-cache; hit")


async def test_a_slow_upstream_is_no_dead_leader(hub, start_replica, make_blob, impatient):
    members = [await start_replica() for _ in range(2)]
    digest, data = await make_blob()
    async with half_way(hub, members, digest) as pulls:
        follower = members[1].fleet.counts
        await until(lambda: follower.followed >= 3)  # it fell silent twice, and was found alive
        hub.faults.release()
        assert await bodies(pulls) == [data, data]
    assert (hub.counters.blob_gets(digest), follower.takeovers) == (1, 0)


async def test_an_upstream_that_is_slow_to_begin_is_waited_for(hub, start_replica, make_blob, impatient, monkeypatch):
    members = [await start_replica() for _ in range(2)]
    digest, data = await make_blob()
    looks = []
    lives = members[1].fleet._peers.lives

    async def counted(*args):
        looks.append(await lives(*args))
        return looks[-1]

    monkeypatch.setattr(members[1].fleet._peers, "lives", counted)
    hub.faults.add(Fault(kind="blob", service="cdn", delay_seconds=60, times=1))
    pulls = [asyncio.create_task(members[0].blob(REPOSITORY, digest))]
    await until(lambda: hub.faults.waiting)
    pulls.append(asyncio.create_task(members[1].blob(REPOSITORY, digest)))
    await until(lambda: len(looks) >= 2)
    hub.faults.release()
    assert await bodies(pulls) == [data, data]
    assert hub.counters.blob_gets(digest) == 1
    assert all(looks)


@pytest.mark.parametrize("state", ["refuses", "frozen"])
async def test_who_cannot_reach_the_leader_goes_on_from_where_it_stands(
    hub, start_replica, make_blob, impatient, state
):
    members = [await start_replica() for _ in range(2)]
    digest, data = await make_blob()
    async with half_way(hub, members, digest) as pulls:
        await members[0].wire.set(state)
        assert await pulls[1] is not None
        assert pulls[1].result().body == data
        hub.faults.release()
        assert (await pulls[0]).body == data
    ranges = [record.range for record in hub.counters.select(service="cdn", reference=digest)]
    assert ranges == [None, f"bytes={HALF}-"]
    [takeover] = members[1].cache.seen(events.FleetTakeover)
    assert (takeover.offset, takeover.peer) == (HALF, members[0].wire.address)
    assert members[1].fleet.counts.takeovers == 1


async def test_a_leader_that_shuts_down_is_followed_by_another(hub, start_replica, make_blob):
    members = [await start_replica() for _ in range(2)]
    digest, data = await make_blob()
    async with half_way(hub, members, digest) as pulls:
        await members[0].cache.proxy.flights.aclose()
        assert (await pulls[1]).body == data
    assert hub.counters.blob_bytes(digest) <= 800_000 + HALF


@pytest.mark.parametrize("state", ["refuses", "frozen"])
async def test_without_redis_each_fetches_for_itself(hub, start_replica, make_blob, redis_wire, state):
    members = [await start_replica() for _ in range(2)]
    digest, data = await make_blob()
    await redis_wire.set(state)
    assert await bodies(member.blob(REPOSITORY, digest) for member in members) == [data, data]
    assert hub.counters.blob_gets(digest) == 2
    assert all(len(member.cache.seen(events.FleetRedisDown)) == 1 for member in members)
    assert [member.fleet.counts.alone for member in members] == [1, 1]


async def test_running_followers_go_on_when_redis_goes(hub, start_replica, make_blob, redis_wire):
    members = [await start_replica() for _ in range(2)]
    digest, data = await make_blob()
    async with half_way(hub, members, digest) as pulls:
        await redis_wire.set("refuses")
        hub.faults.release()
        assert await bodies(pulls) == [data, data]
    assert hub.counters.blob_gets(digest) == 1


async def test_an_emptied_redis_costs_at_most_a_second_get(hub, start_replica, make_blob, database, fleet_name):
    members = [await start_replica() for _ in range(3)]
    digest, data = await make_blob()
    async with half_way(hub, members[:2], digest) as pulls:
        await database.delete(f"{{rc1:{fleet_name}}}:l:{digest}")
        third = asyncio.create_task(members[2].blob(REPOSITORY, digest))
        assert (await third).body == data
        hub.faults.release()
        assert await bodies(pulls) == [data, data]
    assert hub.counters.blob_gets(digest) == 2


async def test_upstreams_no_is_heard_by_the_others(hub, start_replica, make_blob):
    members = [await start_replica() for _ in range(2)]
    await make_blob()
    unknown = "sha256:" + "0" * 64
    assert (await members[0].blob(REPOSITORY, unknown)).error_code == "BLOB_UNKNOWN"
    await settled(members[0])
    hub.reset_counters()
    reply = await members[1].blob(REPOSITORY, unknown)
    assert (reply.status, reply.error_code) == (404, "BLOB_UNKNOWN")
    assert hub.counters.select(kind="blob") == []


async def test_what_a_peer_has_is_not_handed_out_under_a_name_that_lacks_it(hub, start_replica, make_blob):
    members = [await start_replica() for _ in range(2)]
    digest, data = await make_blob()
    await hub.images.image("library/other", "latest")
    async with half_way(hub, members, digest) as pulls:
        third = await start_replica()
        reply = await third.blob("library/other", digest)
        assert reply.status == 404
        hub.faults.release()
        assert await bodies(pulls) == [data, data]
    assert (await third.blob(REPOSITORY, digest)).body == data
    assert hub.counters.blob_gets(digest) == 1


async def test_what_the_leader_cannot_store_the_follower_fetches(hub, start_replica, make_blob):
    small = await start_replica(max_size="500KB")
    large = await start_replica()
    digest, data = await make_blob()
    pulls = [asyncio.create_task(small.blob(REPOSITORY, digest))]
    await until(lambda: hub.counters.blob_gets(digest))
    pulls.append(asyncio.create_task(large.blob(REPOSITORY, digest)))
    assert await bodies(pulls) == [data, data]
    assert hub.counters.blob_gets(digest) == 2


async def test_over_its_followers_the_leader_sends_to_those_that_are_ahead(hub, start_replica, make_blob):
    members = [await start_replica(fleet_followers=1) for _ in range(4)]
    digest, data = await make_blob()
    async with half_way(hub, members[:2], digest) as pulls:
        pulls += [asyncio.create_task(member.blob(REPOSITORY, digest)) for member in members[2:]]
        await until(lambda: [flight.offset for m in members for flight in m.cache.proxy.flights] == [HALF] * 4)
        assert members[0].fleet.counts.redirected >= 2
        hub.faults.release()
        assert await bodies(pulls) == [data] * 4
    assert hub.counters.blob_gets(digest) == 1
    assert members[0].fleet.counts.served_bytes == 800_000


async def test_a_broken_branch_of_the_tree_goes_back_to_the_leader(hub, start_replica, make_blob):
    members = [await start_replica(fleet_followers=1) for _ in range(3)]
    digest, data = await make_blob()
    async with half_way(hub, members[:2], digest) as pulls:
        pulls.append(asyncio.create_task(members[2].blob(REPOSITORY, digest)))
        await until(lambda: [flight.offset for m in members for flight in m.cache.proxy.flights] == [HALF] * 3)
        await members[1].wire.set("refuses")
        await until(lambda: len(members[2].cache.seen(events.FlightResumed)) == 1)
        hub.faults.release()
        assert await bodies(pulls) == [data] * 3
    assert hub.counters.blob_gets(digest) == 1


@pytest.fixture
async def liar(key_file):
    """A peer that answers with other bytes than were asked for, or refuses; ``is_stranger``: one without the key."""
    lies = SimpleNamespace(is_stranger=False, status=206)
    asked, signer = [], Signer(key_file)

    async def handle(request):
        asked.append(request.path)
        body = b"\0" * 800_000
        headers = {"Content-Range": f"bytes 0-{len(body) - 1}/{len(body)}", "Fleet-Proven": "1"}
        if not lies.is_stranger:
            headers[ANSWER] = signer.answer(request.headers[HEADER])
        return web.Response(status=lies.status, body=body, headers=headers)

    runner = web.ServerRunner(web.Server(handle))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.9", 0).start()
    host, port = runner.addresses[0][:2]
    lies.address, lies.asked = f"{host}:{port}", asked
    yield lies
    await runner.cleanup()


async def test_a_peer_is_not_trusted_for_content(hub, start_replica, make_blob, database, fleet_name, liar):
    member = await start_replica()
    digest, data = await make_blob()
    at = f"{{rc1:{fleet_name}}}:at:{digest}"
    await database.set(at, liar.address)
    with pytest.raises(aiohttp.ClientPayloadError):  # its client saw wrong bytes, and never the last one
        await member.blob(REPOSITORY, digest)
    assert (await member.blob(REPOSITORY, digest)).body == data
    assert len(liar.asked) == 1
    assert hub.counters.blob_gets(digest) == 1
    await settled(member)
    assert await database.get(at) == member.wire.address  # nobody is led there again
    assert not member.cache.seen(events.FlightFailed)


async def test_addresses_beyond_the_peers_networks_are_not_asked(
    hub, start_replica, make_blob, database, fleet_name, liar
):
    member = await start_replica(fleet_peers="127.0.0.11/32,10.0.0.0/8")
    digest, data = await make_blob()
    await database.set(f"{{rc1:{fleet_name}}}:at:{digest}", liar.address)
    assert (await member.blob(REPOSITORY, digest)).body == data
    assert liar.asked == []


async def test_a_stranger_at_a_peers_address_is_not_believed(hub, start_replica, make_blob, database, fleet_name, liar):
    liar.is_stranger = True
    member = await start_replica()
    digest, data = await make_blob()
    await database.set(f"{{rc1:{fleet_name}}}:at:{digest}", liar.address)
    assert (await member.blob(REPOSITORY, digest)).body == data
    assert len(liar.asked) == 1


@pytest.mark.parametrize("key", ["at", "l"])
@pytest.mark.parametrize("status", [401, 403])
async def test_a_stranger_that_refuses_at_a_peers_address_costs_one_get(
    hub, start_replica, make_blob, database, fleet_name, liar, patient, key, status
):
    liar.status = status
    members = [await start_replica() for _ in range(3)]
    digest, data = await make_blob()
    await database.set(f"{{rc1:{fleet_name}}}:{key}:{digest}", f"token|{liar.address}" if key == "l" else liar.address)
    assert await bodies([member.blob(REPOSITORY, digest) for member in members]) == [data] * 3
    assert hub.counters.blob_gets(digest) == 1
    assert any(member.cache.seen(events.Warned) for member in members)


async def whole(database, key):
    """What Redis has of *key*, whatever kind it is."""
    match await database.type(key):
        case "hash":
            return await database.hgetall(key)
        case "zset":
            return await database.zrange(key, 0, -1)
        case "set":
            return await database.smembers(key)
        case "stream":
            return await database.xrange(key)
        case _:
            return await database.get(key)


async def test_no_secret_goes_into_redis(hub, start_replica, make_blob, database, fleet_name, key_file):
    members = [await start_replica() for _ in range(2)]
    digest, _ = await make_blob()
    async with half_way(hub, members, digest) as pulls:
        found = {}
        async for key in database.scan_iter(f"{{rc1:{fleet_name}}}:*"):
            found[key] = await whole(database, key)
        hub.faults.release()
        await bodies(pulls)
    told = f"{found} {await members[0].cache.stats()} {members[0].cache.emitted} {members[1].cache.emitted}"
    assert found
    assert hub.account.pat not in told
    assert key_file.read_text() not in told
