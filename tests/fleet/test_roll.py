"""Who is in the fleet now, as each replica tells and hears it; and how little Redis's word is trusted."""

import msgspec
import pytest

from registry_cache import __version__
from registry_cache.fleet import roll
from registry_cache.fleet.counts import Counts
from registry_cache.fleet.leases import prefix_of
from registry_cache.fleet.roll import Roll
from registry_cache.fleet.sealed import Sealed
from registry_cache.fleet.signature import Signer
from registry_cache.model import events
from tests.fleet.conftest import REPOSITORY
from tests.fleet.test_following import settled


@pytest.fixture(autouse=True)
def _patient(patient):
    """A busy machine is no Redis that is down."""


@pytest.fixture
def call_roll(replicas, fleet_name, key_file):
    """A roll of each of three replicas, that says nothing by itself."""
    return [
        Roll(
            one.redis,
            Signer(key_file),
            prefix=prefix_of(fleet_name),
            address=lambda one=one: one.leases.address,
            counts=Counts(),
            events=one.bus,
        )
        for one in replicas
    ]


def addresses(one):
    return [member.address for member in one.members()]


async def test_each_replica_hears_of_the_others_and_of_those_that_leave(call_roll):
    first, second, third = call_roll
    for one in (*call_roll, first, second):
        await one.call()
    assert addresses(first) == ["10.0.0.1:5001", "10.0.0.2:5001", "10.0.0.3:5001"]
    assert addresses(second)[0] == "10.0.0.2:5001"  # itself
    assert {member.version for member in first.members()} == {__version__}
    await third.aclose()
    await first.call()
    assert addresses(first) == ["10.0.0.1:5001", "10.0.0.2:5001"]


async def test_who_says_nothing_for_half_a_minute_is_gone(call_roll, replicas, monkeypatch):
    first, second, _ = call_roll
    now = replicas[1].redis.now
    replicas[1].redis.now = lambda: now() - 31
    await second.call()
    await first.call()
    assert addresses(first) == ["10.0.0.1:5001"]
    replicas[1].redis.now = now
    await second.call()
    await first.call()
    assert len(first.members()) == 2
    later = roll.time.time() + 31
    monkeypatch.setattr(roll.time, "time", lambda: later)  # Redis has not answered since
    assert addresses(first) == ["10.0.0.1:5001"]


def word(**changed):
    said = {"address": "10.0.0.9:5001", "version": "9.9"} | dict.fromkeys(
        ("upstream_bytes", "peer_bytes", "bucket_bytes", "takeovers"), 1
    )
    return said | changed


HOSTILE = {
    "address": "<script>alert(1)</script>",
    "version": "1\n2",
    "upstream_bytes": -1,
    "peer_bytes": 2**63,
    "bucket_bytes": "1",
    "takeovers": None,
}


@pytest.fixture
def tell(database, fleet_name, replicas, key_file):
    """Write what a replica would; the roll's key."""

    async def write(said, instance="a" * 16, sealed_for=None):
        signed = Sealed(int(replicas[0].redis.now() * 1e6), "-", msgspec.json.encode(said))
        name = f"replicas:{sealed_for or instance}"
        await database.hset(f"{prefix_of(fleet_name)}replicas", instance, signed.seal(Signer(key_file), name))

    return write


async def test_what_a_newer_replica_adds_is_not_read(call_roll, tell):
    first, *_ = call_roll
    await tell(word(colour="blue"))
    await first.call()
    [_, other] = first.members()
    assert (other.address, other.version, other.takeovers) == ("10.0.0.9:5001", "9.9", 1)


@pytest.mark.parametrize("field", HOSTILE)
async def test_a_word_that_is_no_replicas_is_not_heard(call_roll, tell, field):
    first, *_ = call_roll
    await tell(word(**{field: HOSTILE[field]}))
    await first.call()
    assert addresses(first) == ["10.0.0.1:5001"]


async def test_a_word_without_the_key_or_of_somebody_else_is_not_heard(call_roll, tell, database, fleet_name, replicas):
    first, *_ = call_roll
    key = f"{prefix_of(fleet_name)}replicas"
    await tell(word(), sealed_for="b" * 16)
    await database.hset(key, "c" * 16, f"{int(replicas[0].redis.now() * 1e6)} - {'0' * 64}\n{{}}")
    await first.call()
    assert addresses(first) == ["10.0.0.1:5001"]


async def test_what_is_too_long_too_much_or_no_hash_is_thrown_away(call_roll, database, fleet_name):
    first, second, _ = call_roll
    key = f"{prefix_of(fleet_name)}replicas"
    await database.hset(key, mapping={"a" * 16: "9" * 5000, "x" * 500: "1 - x"})
    await first.call()
    assert len(await database.hkeys(key)) == 1
    await database.hset(key, mapping={f"{number:016}": "x" for number in range(1001)})
    await first.call()
    assert len(await database.hkeys(key)) == 1
    await database.delete(key)
    await database.set(key, "x")
    await second.call()
    await first.call()
    assert len(first.members()) == 2
    assert 0 < await database.ttl(key) <= 60


async def test_a_redis_that_is_away_stops_nothing(call_roll, replicas):
    first, *_ = call_roll
    replicas[0].redis.barred = "it is not known yet"
    await first.call()
    assert addresses(first) == ["10.0.0.1:5001"]
    await first.aclose()
    assert not [one for one in replicas[0].seen if isinstance(one, events.Crashed)]


async def test_the_figures_have_members_and_bytes_by_where_they_came_from(start_replica, make_blob):
    first, second = [await start_replica() for _ in range(2)]
    digest, data = await make_blob()
    await first.blob(REPOSITORY, digest)
    await settled(first)
    await second.blob(REPOSITORY, digest)
    for member in (first, second, first):
        await member.fleet.roll.call()
    own, other = (await first.cache.stats())["fleet"]["members"]
    assert (own["address"], other["address"]) == (first.wire.address, second.wire.address)
    assert own["upstream_bytes"] >= len(data) > other["upstream_bytes"]
    assert (own["peer_bytes"], other["peer_bytes"]) == (0, len(data))
