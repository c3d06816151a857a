"""Tags and manifests for the whole fleet: upstream is asked once, and no client sees a tag go back."""

import asyncio

import pytest

from registry_cache.fleet import connection, question_scripts
from registry_cache.fleet.sealed import Sealed
from registry_cache.model.oci import Digest, Reference, Repository
from tests.fleet.test_following import until
from tests.hub.faults import Fault

NAME = "library/told"


@pytest.fixture
async def image(hub):
    made = await hub.images.image(NAME, "1")
    hub.reset_counters()
    return made


@pytest.fixture
async def members(start_replica, patient):
    return [await start_replica(stale_timeout="10s") for _ in range(3)]


@pytest.fixture
def key(fleet_name):
    return lambda name: f"{{rc1:{fleet_name}}}:{name}"


def asked(hub):
    return hub.counters.manifest_heads(), hub.counters.manifest_gets()


async def everywhere(members, reference, method="GET"):
    return await asyncio.gather(*(one.cache.manifest(NAME, reference, method) for one in members for _ in range(3)))


def entry(member, tag="1"):
    return member.cache.proxy.index.tag_at_hand(Repository.parse(NAME), tag)


def shift(member, seconds):
    """Its tags are older by so much."""
    clock = member.cache.proxy.index.clock
    now = clock.now
    clock.now = lambda: now() + seconds


async def test_one_head_and_one_counted_get_for_all(hub, image, members):
    heads = await everywhere(members, "1", "HEAD")
    bodies = await everywhere(members, image.digest)
    assert {reply.headers["Docker-Content-Digest"] for reply in heads} == {image.digest}
    assert {Digest.of(reply.body) for reply in bodies} == {image.digest}
    assert asked(hub) == (1, 1)
    later = await everywhere(members, "1")  # fresh, wherever it was learnt
    assert {reply.cache_status for reply in later} == {"registry-cache; hit"}
    assert asked(hub) == (1, 1)


async def test_a_tag_that_is_got_by_name_is_got_once(hub, image, members):
    replies = await everywhere(members, "1")
    assert {Digest.of(reply.body) for reply in replies} == {image.digest}
    assert asked(hub) == (0, 1)
    assert {entry(one).digest for one in members} == {image.digest}


async def test_what_another_has_heard_is_as_old_here(hub, image, members):
    first, second, _ = members
    await first.cache.manifest(NAME, "1")
    await first.fleet.questions.settled()
    reply = await second.cache.manifest(NAME, "1")
    assert reply.status == 200
    assert asked(hub) == (0, 1)
    assert abs(entry(first).fetched_at - entry(second).fetched_at) < 0.5


async def test_after_the_ttl_one_replica_asks_for_all(hub, image, start_replica):
    members = [await start_replica(tag_ttl="0", stale_timeout="10s") for _ in range(3)]
    await everywhere(members, "1")
    hub.reset_counters()
    hub.faults.add(Fault(kind="manifest", method="HEAD", delay_seconds=60))
    asking = asyncio.create_task(everywhere(members, "1"))
    await until(lambda: hub.faults.waiting)
    waiting = [one for one in members if not one.fleet.questions._held]
    await until(lambda: all(one.fleet.questions.waits for one in waiting))
    hub.faults.release()
    assert {reply.cache_status for reply in await asking} == {"registry-cache; hit; detail=revalidated"}
    assert asked(hub) == (1, 0)


async def test_a_tag_that_moves_is_told_to_all_who_have_it(hub, image, members, database, key):
    await everywhere(members, "1")
    moved = await hub.images.image(NAME, "1", (3_000, 100))
    hub.reset_counters()
    asks, *others = members
    await database.delete(key(f"t:docker.io/{NAME}:1"))  # else nobody asks before the others would, too
    shift(asks, 1000)
    await asks.cache.manifest(NAME, "1")
    assert entry(asks).digest == moved.digest
    await until(lambda: {entry(one).digest for one in others} == {moved.digest})
    assert asked(hub) == (1, 1)


async def test_a_hit_of_a_tag_asks_nothing_of_redis(image, members, monkeypatch):
    first = members[0]
    await first.cache.manifest(NAME, "1")
    ran = []
    run = first.fleet.redis.run

    async def noted(script, *rest, **options):
        ran.append(script)
        return await run(script, *rest, **options)

    monkeypatch.setattr(first.fleet.redis, "run", noted)
    for _ in range(3):
        assert (await first.cache.manifest(NAME, "1")).cache_status == "registry-cache; hit"
    assert question_scripts.ASK not in ran


async def test_upstreams_no_is_heard_by_all(hub, image, members):
    replies = await everywhere(members, "absent")
    assert {(reply.status, reply.error_code) for reply in replies} == {(404, "MANIFEST_UNKNOWN")}
    assert len(hub.counters.select(kind="manifest", method="GET", reference="absent", status=404)) == 1


async def test_trouble_of_one_replica_is_not_that_of_the_others(hub, image, members):
    hub.faults.add(Fault(kind="manifest", method="GET", status=500, delay_seconds=60, times=3))
    first, *others = members
    failing = asyncio.create_task(first.cache.manifest(NAME, "1"))
    await until(lambda: hub.faults.waiting)
    asking = asyncio.create_task(everywhere(others, "1"))
    await until(lambda: all(one.fleet.questions.waits for one in others))
    hub.faults.clear()
    hub.faults.release()
    assert {reply.status for reply in await asking} == {200}
    await failing


@pytest.mark.parametrize("state", ["refuses", "frozen"])
async def test_without_redis_each_asks_for_itself(hub, image, members, redis_wire, state, monkeypatch):
    monkeypatch.setattr(connection, "_WAITS_SECONDS", (0.2, 0.05))
    await redis_wire.set(state)
    replies = await everywhere(members, "1")
    assert {Digest.of(reply.body) for reply in replies} == {image.digest}
    assert asked(hub) == (0, 3)
    await redis_wire.set("works")


async def test_who_asks_and_dies_is_followed_by_one_other(hub, image, members, monkeypatch):
    monkeypatch.setattr(question_scripts, "LEASE_MS", 300)
    first, *others = members
    hub.faults.add(Fault(kind="manifest", method="GET", delay_seconds=60, times=1))
    asking = asyncio.create_task(first.cache.manifest(NAME, "1"))
    await until(lambda: hub.faults.waiting)
    first.fleet.questions._held.clear()  # as a process that is stopped: it renews nothing, and says nothing
    monkeypatch.setattr(question_scripts, "LEASE_MS", 60_000)  # who follows is slow on a busy machine, and alive
    replies = await everywhere(others, "1")
    assert {Digest.of(reply.body) for reply in replies} == {image.digest}
    hub.faults.release()
    assert (await asking).status == 200
    assert asked(hub) == (0, 2)


async def test_an_older_answer_is_stale_while_who_asks_is_frozen(hub, image, start_replica, patient):
    members = [await start_replica(tag_ttl="0", stale_timeout="0.2s") for _ in range(3)]
    await everywhere(members, "1")
    hub.reset_counters()
    hub.faults.add(Fault(kind="manifest", method="HEAD", delay_seconds=60))
    first, *others = members
    asking = asyncio.create_task(first.cache.manifest(NAME, "1"))
    await until(lambda: hub.faults.waiting)
    first.fleet.questions._held.clear()  # it renews nothing; its lease lasts longer than clients wait
    replies = [*await everywhere(others, "1"), await asking]
    assert {reply.status for reply in replies} == {200}
    assert all("stale" in reply.cache_status for reply in replies)
    assert hub.counters.manifest_gets() == 0


async def test_a_replica_that_learns_a_manifest_learns_no_more_than_upstream_would_say(hub, image, members):
    """The manifest is known in one repository; another name that the account may read proves nothing of it."""
    first, second, _ = members
    await first.cache.manifest(NAME, image.digest)
    await first.fleet.questions.settled()
    await hub.images.image("library/another", "1")
    hub.reset_counters()
    reply = await second.cache.manifest("library/another", image.digest)
    assert (reply.status, reply.error_code) == (404, "MANIFEST_UNKNOWN")
    proof = second.cache.proxy.pull_through._proof
    assert not proof.holds(Repository.parse("library/another"), Digest(image.digest))
    assert (await second.cache.manifest(NAME, image.digest)).status == 200
    assert proof.holds(Repository.parse(NAME), Digest(image.digest))


async def hostile(database, key, value):
    """Put it wherever tags and manifests are looked for."""
    reference = f"docker.io/{NAME}:1"
    for name in (f"t:{reference}", f"q:{reference}", f"x:get:{reference}", f"x:head:{reference}", "ev"):
        await value(database, key(name))


async def _list(database, name):
    await database.lpush(name, "x")


async def _long(database, name):
    await database.setrange(name, 100_000_000 if ":t:" in name else 1_000_000, "9")


async def _no_text(database, name):
    await database.set(name, b"\xff\xfe\x00" * 20)


async def _future(database, name):
    await database.set(name, "253402300799000000 sha256:" + "a" * 64 + " " + "0" * 64 + "\n[]")


async def _forged(database, name):
    seconds, micros = await database.time()
    await database.set(name, f"{seconds * 1_000_000 + micros} sha256:" + "a" * 64 + " " + "0" * 64 + '\n["a/b", 5]')


async def _for_ever(database, name):
    await database.set(name, "token|10.9.9.9:5001|1")


@pytest.mark.parametrize("value", [_list, _long, _no_text, _future, _forged, _for_ever])
async def test_what_nobody_of_the_fleet_has_written_is_passed_over(hub, image, members, database, key, value):
    await hostile(database, key, value)
    replies = await everywhere(members, "1")
    assert {Digest.of(reply.body) for reply in replies} == {image.digest}
    assert asked(hub) == (0, 1)
    assert [one.fleet.redis.trouble for one in members] == ["", "", ""]


async def test_what_is_sealed_for_one_name_is_nothing_under_another(hub, image, members, database, key):
    first, second, _ = members
    await first.cache.manifest(NAME, "1")
    await first.fleet.questions.settled()
    other = await hub.images.image(NAME, "2")
    assert await database.copy(key(f"t:docker.io/{NAME}:1"), key(f"t:docker.io/{NAME}:2"))
    assert (await second.cache.manifest(NAME, "2")).headers["Docker-Content-Digest"] == other.digest


async def test_bytes_of_a_manifest_that_do_not_verify_are_not_taken(hub, image, members):
    first, second, _ = members
    shared = first.cache.proxy.pull_through._source._registries["docker.io"].upstream
    reference = Reference(Repository.parse(NAME), Digest(image.digest))
    wrong = Sealed(int(first.fleet.redis.now() * 1e6) - 1_000_000, "-", b"application/json\n{}")
    await first.fleet.questions.put(shared._manifest(reference), wrong)
    reply = await second.cache.manifest(NAME, image.digest)
    assert Digest.of(reply.body) == image.digest
    assert asked(hub) == (0, 1)
