"""Leases, with the scripts in a real Redis."""

import asyncio
import time

import pytest
import redis.asyncio

from registry_cache.fleet import connection
from registry_cache.fleet.connection import FleetRedis
from registry_cache.fleet.leases import Claim, Leases, RedisDown
from registry_cache.fleet.signature import Signer
from registry_cache.model import events
from registry_cache.model.bus import Events
from registry_cache.model.errors import BlobUnknown, UpstreamError
from registry_cache.model.oci import Digest, Repository

REPOSITORY = Repository.parse("library/fleet")
OTHER = Repository.parse("library/other")
DIGEST = Digest("sha256:" + "a" * 64)


async def claims(replicas, lost=""):
    return [await one.leases.claim(REPOSITORY, DIGEST, lost) for one in replicas]


async def test_one_racer_wins(replicas):
    first, *others = await asyncio.gather(*(one.leases.claim(REPOSITORY, DIGEST) for one in replicas))
    whats = sorted(claim.what for claim in (first, *others))
    assert whats == ["lead", "lead", "yours"]
    winner = next(one for one in replicas if one.leases.holds(DIGEST))
    followed = {claim.address for claim in (first, *others) if claim.what == "lead"}
    assert followed == {winner.leases.address}


async def test_a_dead_leaders_lease_goes_to_the_first_who_saw_it_die(replicas):
    first, second, third = replicas
    await first.leases.claim(REPOSITORY, DIGEST)
    dead = await second.leases.claim(REPOSITORY, DIGEST)
    assert await second.leases.claim(REPOSITORY, DIGEST, dead.value) == ("yours", "")
    late = await third.leases.claim(REPOSITORY, DIGEST, dead.value)
    assert (late.what, late.address) == ("lead", second.leases.address)


async def test_who_has_it_is_told_to_the_others_and_not_to_itself(replicas):
    first, second, _ = replicas
    await first.leases.claim(REPOSITORY, DIGEST)
    first.leases.release(DIGEST, REPOSITORY, is_stored=True)
    await first.settled()
    assert await second.leases.claim(REPOSITORY, DIGEST) == Claim("at", first.leases.address)
    assert (await first.leases.claim(REPOSITORY, DIGEST)).what == "yours"  # it has evicted it


async def test_a_holder_that_does_not_have_it_is_forgotten(replicas):
    first, second, _ = replicas
    await first.leases.claim(REPOSITORY, DIGEST)
    first.leases.release(DIGEST, REPOSITORY, is_stored=True)
    await first.settled()
    assert (await second.leases.claim(REPOSITORY, DIGEST, first.leases.address)).what == "yours"


async def test_upstreams_no_is_of_one_repository(replicas):
    first, second, third = replicas
    await first.leases.claim(REPOSITORY, DIGEST)
    first.leases.release(DIGEST, REPOSITORY, error=BlobUnknown("no such blob"))
    await first.settled()
    assert await second.leases.claim(REPOSITORY, DIGEST) == ("failed", "no such blob")
    assert (await third.leases.claim(OTHER, DIGEST)).what == "yours"


async def test_trouble_is_no_verdict(replicas):
    first, second, _ = replicas
    await first.leases.claim(REPOSITORY, DIGEST)
    first.leases.release(DIGEST, REPOSITORY, error=UpstreamError("my own line is cut"))
    await first.settled()
    assert (await second.leases.claim(REPOSITORY, DIGEST)).what == "yours"


async def test_a_lease_of_an_earlier_life_is_ones_own(replicas):
    first, second, _ = replicas
    await first.leases.claim(REPOSITORY, DIGEST)
    first.leases._held.clear()  # killed, and started again
    assert (await first.leases.claim(REPOSITORY, DIGEST)).what == "yours"
    assert (await second.leases.claim(REPOSITORY, DIGEST)).address == first.leases.address


async def test_addresses_that_begin_alike_are_not_one(replicas):
    first, second, _ = replicas
    first.leases.address, second.leases.address = "10.0.0.1:5001", "0.0.0.1:5001"
    await first.leases.claim(REPOSITORY, DIGEST)
    assert (await second.leases.claim(REPOSITORY, DIGEST)).what == "lead"


async def test_a_lease_is_renewed_and_comes_back_where_redis_lost_it(replicas, database, fleet_name):
    first, second, _ = replicas
    await first.leases.claim(REPOSITORY, DIGEST)
    key = f"{{rc1:{fleet_name}}}:l:{DIGEST}"
    assert 0 < await database.pttl(key) <= 10_000
    await database.pexpire(key, 50_000)
    await first.leases._renew()
    assert 0 < await database.pttl(key) <= 10_000
    await database.delete(key)
    await first.leases._renew()
    assert (await second.leases.claim(REPOSITORY, DIGEST)).address == first.leases.address


async def test_who_slept_and_lost_the_lease_knows_it_and_takes_nothing_away(replicas):
    first, second, third = replicas
    await first.leases.claim(REPOSITORY, DIGEST)
    dead = await second.leases.claim(REPOSITORY, DIGEST)
    await second.leases.claim(REPOSITORY, DIGEST, dead.value)
    await first.leases._renew()
    assert not first.leases.holds(DIGEST)
    first.leases.release(DIGEST, REPOSITORY)
    await first.settled()
    assert (await third.leases.claim(REPOSITORY, DIGEST)).address == second.leases.address


async def test_a_stop_gives_leases_back(replicas):
    first, second, _ = replicas
    await first.leases.claim(REPOSITORY, DIGEST)
    await first.leases.aclose()
    assert (await second.leases.claim(REPOSITORY, DIGEST)).what == "yours"


async def test_nothing_is_claimed_before_others_can_reach_it(replicas):
    replicas[0].leases.address = ""
    with pytest.raises(RedisDown):
        await replicas[0].leases.claim(REPOSITORY, DIGEST)


async def test_the_clock_is_that_of_redis(replicas, monkeypatch):
    await replicas[0].leases.claim(REPOSITORY, DIGEST)
    real = time.time()
    monkeypatch.setattr(connection.time, "time", lambda: real + 500)
    await replicas[0].leases.claim(REPOSITORY, Digest("sha256:" + "b" * 64))
    assert abs(replicas[0].redis.now() - real) < 60


async def test_a_redis_that_is_down_is_tried_by_one_question_at_a_time(redis_wire, fleet_name, key_file, monkeypatch):
    bus, seen = Events(), []
    bus.subscribe(seen.append)
    redis = FleetRedis(f"redis://{redis_wire.address}", password_file=None, events=bus)
    leases = Leases(redis, Signer(key_file), name=fleet_name, events=bus)
    leases.address = "10.0.0.1:5001"
    await redis_wire.set("refuses")
    with pytest.raises(RedisDown):
        await leases.claim(REPOSITORY, DIGEST)
    tried = []
    script = redis._script

    def counted(text):
        tried.append(text)
        return script(text)

    monkeypatch.setattr(redis, "_script", counted)
    with pytest.raises(RedisDown):  # left alone
        await leases.claim(REPOSITORY, DIGEST)
    assert tried == []
    redis._retry_at = 0.0
    await redis_wire.set("frozen")
    outcomes = await asyncio.gather(*(leases.claim(REPOSITORY, DIGEST) for _ in range(5)), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [RedisDown] * 5
    assert len(tried) == 1
    redis._retry_at = 0.0
    await redis_wire.set("works")
    assert (await leases.claim(REPOSITORY, DIGEST)).what == "yours"
    assert [type(event) for event in seen] == [events.FleetRedisDown, events.FleetRedisUp]
    await leases.aclose()
    await redis.aclose()


async def test_the_password_is_read_from_its_file_and_told_to_nobody(tmp_path, redis_port, database, key_file):
    user, password = "fleet-user", "p-of-the-fleet"
    await database.acl_setuser(user, enabled=True, passwords=[f"+{password}"], keys=["{rc1:*"], commands=["+@all"])
    file = tmp_path / "password"
    file.write_text(f"{password}\n")
    bus, seen = Events(), []
    bus.subscribe(seen.append)
    redis = FleetRedis(f"redis://{user}@127.0.0.1:{redis_port}", password_file=file, events=bus)
    leases = Leases(redis, Signer(key_file), name="acl", events=bus)
    leases.address = "10.0.0.1:5001"
    assert (await leases.claim(REPOSITORY, DIGEST)).what == "yours"
    await leases.aclose()
    await redis.aclose()
    file.write_text("wrong-password")
    redis = FleetRedis(f"redis://{user}@127.0.0.1:{redis_port}", password_file=file, events=bus)
    with pytest.raises(RedisDown):
        await redis.run("return 1", ["{rc1:acl}:x"], [])
    await redis.aclose()
    file.write_bytes(b"\xfc-password")
    redis = FleetRedis(f"redis://{user}@127.0.0.1:{redis_port}", password_file=file, events=bus)
    with pytest.raises(RedisDown, match="it is no text"):
        await redis.run("return 1", ["{rc1:acl}:x"], [])
    await redis.aclose()
    assert password not in str(seen)
    assert "wrong-password" not in str(seen)
    await database.acl_deluser(user)


async def _list(database, name):
    await database.lpush(name, "x")


async def _long(database, name):
    await database.setrange(name, 100_000_000 if ":at:" in name else 1_000_000, "9")


async def _forged(database, name):
    if "x:" in name:
        await database.set(name, b"0 blob " + b"0" * 64 + b"\nnot here")


@pytest.mark.parametrize("value", [_list, _long, _forged])
async def test_a_claim_passes_over_what_nobody_of_the_fleet_has_written(replicas, database, fleet_name, value):
    for name in (f"l:{DIGEST}", f"at:{DIGEST}", f"x:{REPOSITORY}@{DIGEST}"):
        await value(database, f"{{rc1:{fleet_name}}}:{name}")
    assert await replicas[0].leases.claim(REPOSITORY, DIGEST) == Claim("yours", "")
    assert replicas[0].redis.trouble == ""


async def test_a_connection_that_was_closed_meanwhile_is_trouble_and_no_bug(replicas, monkeypatch):
    """uvloop then says RuntimeError."""
    first, second, _ = replicas
    await claims([first])
    monkeypatch.setattr(connection, "RETRY_SECONDS", 0.0)
    own = redis.asyncio.Connection.send_packed_command

    async def closed(one, *rest, **options):
        one._writer.transport.abort()
        return await own(one, *rest, **options)

    with monkeypatch.context() as patch:
        patch.setattr(redis.asyncio.Connection, "send_packed_command", closed)
        with pytest.raises(RedisDown):
            await second.leases.claim(REPOSITORY, DIGEST)
    assert (await second.leases.claim(REPOSITORY, DIGEST)).what == "lead"


def test_an_answer_that_comes_late_does_not_set_the_clock_back():
    ours = 1000.0
    own = FleetRedis("redis://r", password_file=None, events=Events(), clock=lambda: ours)
    own.told(1005, 0)
    assert own.now() == 1005.0
    ours = 1000.3  # asked at the same moment, heard later
    own.told(1005, 0)
    assert own.ahead_seconds == 5.0
    own.told(1005, 400_000)
    assert own.ahead_seconds == pytest.approx(5.1)
    ours = 1001.0  # somebody has set it
    own.told(1001, 0)
    assert own.ahead_seconds == 0.0
    ours = 1062.0
    own.told(1061, 900_000)  # clocks drift
    assert own.ahead_seconds == pytest.approx(-0.1)
