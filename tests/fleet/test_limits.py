"""Limits and lists for the whole fleet: a 429 that one replica meets holds back all; a list is asked for once."""

import asyncio

import pytest

from registry_cache.fleet.sealed import Sealed
from registry_cache.model import events
from registry_cache.upstream.ratelimit import Quota
from tests.fleet.test_following import until
from tests.hub.faults import Fault

NAME = "library/limited"


@pytest.fixture
async def image(hub):
    made = await hub.images.image(NAME, "1")
    hub.reset_counters()
    return made


@pytest.fixture
async def members(start_replica, patient):
    return [await start_replica(stale_timeout="10s", rate_limit_wait="0") for _ in range(3)]


def limits(member):
    return member.cache.proxy.upstream.limits


def refusals(hub):
    return len([record for record in hub.counters.records if record.status == 429])


async def test_a_429_of_one_replica_holds_back_all(hub, image, members):
    first, *others = members
    hub.faults.add(Fault(kind="manifest", status=429, headers={"Retry-After": "900"}))
    assert (await first.cache.manifest(NAME, "1")).status == 429
    await until(lambda: all(limits(one).pulls.closed_for_seconds > 800 for one in others))
    told = [await one.cache.manifest(NAME, "1") for one in others]
    assert [(reply.status, int(reply.headers["Retry-After"]) > 800) for reply in told] == [(429, True)] * 2
    assert refusals(hub) == 1
    assert [len(one.cache.seen(events.UpstreamLimited)) for one in members] == [1, 1, 1]


async def test_an_older_answer_is_stale_everywhere_while_a_limit_lasts(
    hub, image, start_replica, patient, database, fleet_name
):
    given = {"tag_ttl": "0", "stale_timeout": "10s", "rate_limit_wait": "0"}
    first, *others = [await start_replica(**given) for _ in range(3)]
    for one in (first, *others):
        await one.cache.manifest(NAME, "1")
        await one.fleet.questions.settled()
    hub.faults.add(Fault(kind="manifest", method="HEAD", status=429, headers={"Retry-After": "900"}))
    await database.delete(f"{{rc1:{fleet_name}}}:t:docker.io/{NAME}:1")  # else what the last has heard counts
    replies = [await first.cache.manifest(NAME, "1")]
    await until(lambda: all(limits(one).pulls.closed_for_seconds > 800 for one in others))
    replies += [await one.cache.manifest(NAME, "1") for one in others]
    assert [(reply.status, "stale" in reply.cache_status) for reply in replies] == [(200, True)] * 3
    assert refusals(hub) == 1


async def test_who_waits_for_an_answer_that_is_429_does_not_ask(hub, image, members):
    hub.faults.add(Fault(kind="manifest", status=429, headers={"Retry-After": "900"}, delay_seconds=60))
    asking = [asyncio.create_task(one.cache.manifest(NAME, "1")) for one in members]
    await until(lambda: hub.faults.waiting)
    await until(lambda: sum(one.fleet.questions.waits for one in members) == 2)
    hub.faults.release()
    assert [reply.status for reply in await asyncio.gather(*asking)] == [429] * 3
    assert refusals(hub) == 1


async def test_the_limit_of_another_address_is_not_ours(hub, image, members):
    first, second, third = members
    limits(third).quota = Quota(100, 7, 21600, "192.0.2.3", 1.0)
    limits(first).quota = limits(second).quota = Quota(100, 50, 21600, "192.0.2.1", 1.0)
    hub.faults.add(Fault(kind="manifest", status=429, headers={"Retry-After": "900"}, times=1))
    await first.cache.manifest(NAME, "1")
    await until(lambda: limits(second).pulls.closed_for_seconds)
    await third.fleet.limits.hear(patiently=True)
    assert limits(third).pulls.closed_for_seconds == 0


async def test_the_newest_quota_is_known_to_all(hub, image, members):
    first, *others = members
    assert limits(others[0]).quota is None
    await first.cache.manifest(NAME, "1")
    seen = limits(first).quota
    await until(lambda: all(limits(one).quota for one in others))
    heard = {(limits(one).quota.remaining, limits(one).quota.source) for one in others}
    assert heard == {(seen.remaining, seen.source)}


@pytest.mark.parametrize(
    "payload", [b"", b"\xff\xfe", b"[1]", b'["", true, 5]', b'["no limit at all", true, ""]', b"9" * 1900]
)
async def test_a_gate_is_never_closed_for_longer_than_six_hours(members, payload):
    first, *_ = members
    far = Sealed(253_402_300_799_000_000, "-", payload).seal(first.fleet.signer, "gate:pulls:docker.io")
    await first.fleet.redis.run(
        "redis.call('SET', KEYS[1], ARGV[1])", [f"{first.fleet.limits._prefix}gate:pulls:docker.io"], [far]
    )
    await first.fleet.limits.hear(patiently=True)
    assert limits(first).pulls.closed_for_seconds <= 6 * 3600


async def test_a_list_is_asked_for_once_by_all_who_want_it_now(hub, image, members):
    hub.faults.add(Fault(kind="tags", delay_seconds=60, times=1))
    path = f"/v2/{NAME}/tags/list"
    asking = [asyncio.create_task(one.cache.get(path)) for one in members]
    await until(lambda: hub.faults.waiting)
    await until(lambda: sum(one.fleet.questions.waits for one in members) == 2)
    hub.faults.release()
    assert {reply.body for reply in await asyncio.gather(*asking)} == {b'{"name":"library/limited","tags":["1"]}\n'}
    assert len(hub.counters.select(kind="tags", status=200)) == 1
    await members[1].cache.get(path)  # a list is as it is now: who asks later asks
    assert len(hub.counters.select(kind="tags", status=200)) == 2


async def test_the_last_list_of_any_replica_is_there_while_upstream_is_away(hub, image, members):
    first, second, _ = members
    path = f"/v2/{NAME}/tags/list"
    body = (await first.cache.get(path)).body
    await first.fleet.questions.settled()
    hub.faults.add(Fault(kind="tags", status=503))
    reply = await second.cache.get(path)
    assert (reply.status, reply.body) == (200, body)
    assert "stale" in reply.cache_status
