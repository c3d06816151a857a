"""A fleet's alerts and its part of the dashboard in a real Prometheus: each fires at its fault, and clears after it."""

import asyncio
import contextlib

import msgspec
import pytest
import redis.asyncio

from registry_cache.fleet.connection import FleetRedis
from registry_cache.fleet.leases import RedisDown, prefix_of
from registry_cache.fleet.membership import Membership
from registry_cache.fleet.signature import Signer
from registry_cache.model.bus import Events
from tests.e2e.dockerd import require_daemons
from tests.fleet.conftest import REPOSITORY
from tests.fleet.engines import RedisEngine
from tests.fleet.test_following import half_way, until
from tests.fleet.test_tier import key_of, shared
from tests.web.prometheus import running_prometheus
from tests.web.test_metrics import FLEET_ALERTS, FLEET_QUERIES

pytestmark = [pytest.mark.slow, pytest.mark.daemon, pytest.mark.timeout(300)]


class Watched:
    """Two replicas with a Redis and a bucket, and the Prometheus that looks at the second of them."""

    def __init__(self, engine, other, member, prometheus, *, hub, stand_in, store_wire, make_blob, name, tmp_path):
        self.engine, self.other, self.member, self.prometheus = engine, other, member, prometheus
        self.hub, self.stand_in, self.store_wire, self.make_blob = hub, stand_in, store_wire, make_blob
        self.name, self.tmp_path = name, tmp_path

    async def only_in_the_bucket(self):
        """A blob that the second replica finds in the bucket, and at no replica."""
        digest, _ = await self.make_blob()
        await self.other.blob(REPOSITORY, digest)
        await shared(self.other)
        return digest


@pytest.fixture
async def watched(start_sharing, hub, stand_in, store_wire, make_blob, fleet_name, tmp_path, patient, impatient):
    require_daemons("redis-server", root=False)
    engine = RedisEngine(tmp_path / "redis")
    (tmp_path / "redis").mkdir()
    (tmp_path / "prometheus").mkdir()
    engine.start()
    try:
        url = f"redis://127.0.0.1:{engine.port}"
        other, member = [await start_sharing(fleet_redis_url=url) for _ in range(2)]
        async with running_prometheus(tmp_path / "prometheus", member.cache.address[1]) as prometheus:
            yield Watched(
                engine,
                other,
                member,
                prometheus,
                hub=hub,
                stand_in=stand_in,
                store_wire=store_wire,
                make_blob=make_blob,
                name=fleet_name,
                tmp_path=tmp_path,
            )
    finally:
        engine.kill()


@contextlib.asynccontextmanager
async def redis_down(watched):
    watched.engine.kill()
    yield
    await asyncio.to_thread(watched.engine.start)


@contextlib.asynccontextmanager
async def refused(watched):
    """Redis comes back without anything, and a replica with another key is there first."""
    (watched.tmp_path / "other.key").write_text("o" * 32)
    bus = Events()
    connection = FleetRedis(f"redis://127.0.0.1:{watched.engine.port}", password_file=None, events=bus)
    intruder = Membership(
        connection,
        Signer(watched.tmp_path / "other.key"),
        name=watched.name,
        prefix=prefix_of(watched.name),
        registries={"docker.io": "elsewhere"},
        events=bus,
    )
    database = redis.asyncio.Redis(port=watched.engine.port)

    async def stay():
        while True:
            await intruder.look()
            await asyncio.sleep(1)

    while not intruder.holds:
        await database.flushall()
        with contextlib.suppress(RedisDown):
            await intruder.look()
    staying = asyncio.create_task(stay())
    yield
    staying.cancel()
    await asyncio.gather(staying, return_exceptions=True)
    await database.flushall()
    await database.aclose()
    await connection.aclose()


@contextlib.asynccontextmanager
async def takeovers(watched):
    digest, _ = await watched.make_blob()
    async with half_way(watched.hub, [watched.other, watched.member], digest) as pulls:
        await watched.other.wire.set("refuses")
        await pulls[1]
    yield
    await watched.other.wire.set("works")


@contextlib.asynccontextmanager
async def bucket_not_read(watched):
    digest = await watched.only_in_the_bucket()
    await watched.store_wire.set("refuses")
    await watched.member.blob(REPOSITORY, digest)
    yield
    await watched.store_wire.set("works")


@contextlib.asynccontextmanager
async def bucket_not_written(watched):
    watched.stand_in.refuses = {"PUT": (403, "QuotaExceeded")}
    digest, _ = await watched.make_blob()
    await watched.member.blob(REPOSITORY, digest)
    await shared(watched.member)
    yield
    watched.stand_in.refuses = {}
    watched.member.fleet.tier.bucket.writing._retry_at = 0.0  # the minute is over
    digest, _ = await watched.make_blob()
    await watched.member.blob(REPOSITORY, digest)


@contextlib.asynccontextmanager
async def rotten(watched):
    digest = await watched.only_in_the_bucket()
    key = key_of(watched.member, digest)
    watched.stand_in.objects[key] = watched.stand_in.objects[key][:-1] + b"!"
    await watched.member.blob(REPOSITORY, digest)
    yield


@contextlib.asynccontextmanager
async def versions_mixed(watched):
    other, roll = watched.other.fleet.roll, watched.member.fleet.roll
    word = other._word
    other._word = lambda: msgspec.structs.replace(word(), version="9.9.9")
    await other.call()
    await roll.call()
    yield
    other._word = word
    await other.call()
    await roll.call()


FAULTS = {
    "RegistryCacheFleetRedisDown": redis_down,
    "RegistryCacheFleetRefused": refused,
    "RegistryCacheFleetTakeovers": takeovers,
    "RegistryCacheFleetBucketNotRead": bucket_not_read,
    "RegistryCacheFleetBucketNotWritten": bucket_not_written,
    "RegistryCacheFleetObjectRotten": rotten,
    "RegistryCacheFleetVersionsMixed": versions_mixed,
}


async def test_each_alert_fires_at_its_fault_alone_and_clears_after_it(watched):
    """One after the other with one Prometheus, which takes longer to start than each of them to fire."""
    for alert, fault in FAULTS.items():
        async with fault(watched):
            await watched.prometheus.wait(alert, fires=True)
            assert await watched.prometheus.firing() == {alert}
        await watched.prometheus.wait(alert, fires=False)
        await watched.other.wire.set("works")
        assert await watched.prometheus.firing() == set()


def test_every_alert_of_a_fleet_is_tried_with_a_real_fault():
    assert {rule["alert"] for rule in FLEET_ALERTS} == set(FAULTS)


async def test_every_panel_of_the_fleet_shows_something(watched):
    other, member = watched.other, watched.member
    for _ in range(3):
        digest, _ = await watched.make_blob()
        await other.blob(REPOSITORY, digest)
        await shared(other)
        await member.blob(REPOSITORY, digest)
    await until(lambda: member.fleet.counts.from_bucket == 3)
    seen = "min_over_time(registry_cache_fleet_bucket_received_bytes_total[2s]) > 0"
    await watched.prometheus.shows(FLEET_QUERIES, seen=seen)
