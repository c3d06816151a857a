"""Fixtures of the fleet: a real Redis for the session, and replicas in the test's own event loop."""

import asyncio
import contextlib
import secrets
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import redis as redis_py
import redis.asyncio

from registry_cache.fleet import connection, peers, source
from registry_cache.fleet.bucket import Bucket
from registry_cache.fleet.connection import FleetRedis
from registry_cache.fleet.counts import Counts
from registry_cache.fleet.eviction import Evictor
from registry_cache.fleet.leases import Leases
from registry_cache.fleet.s3 import S3
from registry_cache.fleet.s3_signing import KeyFile
from registry_cache.fleet.signature import Signer
from registry_cache.fleet.sweep import Sweeper
from registry_cache.fleet.tier_index import TierIndex
from registry_cache.model.bus import Events
from tests.cache import Cache, Reply
from tests.e2e.command import free_port, until
from tests.e2e.dockerd import require_daemons
from tests.fakes import content
from tests.fleet.radosgw import PROGRAMS, Ceph, running_ceph
from tests.fleet.store import ACCESS, SECRET, Store, store
from tests.fleet.wire import Wire, wire


@contextlib.contextmanager
def running_redis(directory: Path) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    port = free_port()
    options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(directory)]
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(["redis-server", *options], stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    try:
        client = redis_py.Redis(port=port)

        def answers() -> bool:
            with contextlib.suppress(redis_py.ConnectionError):
                return bool(client.ping())
            return False

        until(answers, "redis-server answers")
        client.close()
        yield port, process
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="session")
def redis_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """A real redis-server; tests keep apart by the names of their fleets."""
    require_daemons("redis-server", root=False)
    with running_redis(tmp_path_factory.mktemp("redis")) as (port, _):
        yield port


@pytest.fixture(scope="session")
def ceph(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ceph]:
    """A real radosgw, up in three seconds; tests keep apart by their buckets."""
    require_daemons(*PROGRAMS, root=False)
    with running_ceph(tmp_path_factory.mktemp("ceph")) as made:
        yield made


@pytest.fixture
async def redis_wire(redis_port: int) -> AsyncIterator[Wire]:
    async with wire(("127.0.0.1", redis_port)) as made:
        yield made


@pytest.fixture
async def database(redis_port: int) -> AsyncIterator[Any]:
    """What a test looks at the Redis with."""
    client = redis.asyncio.Redis(port=redis_port, decode_responses=True)
    yield client
    await client.aclose()


@pytest.fixture
def fleet_name() -> str:
    return f"test-{secrets.token_hex(4)}"


class Replica:
    """The leases of one replica, and what it has emitted."""

    def __init__(self, port: int, name: str, address: str, signer: Signer) -> None:
        self.bus, self.seen = Events(), []
        self.bus.subscribe(self.seen.append)
        self.redis = FleetRedis(f"redis://127.0.0.1:{port}", password_file=None, events=self.bus)
        self.leases = Leases(self.redis, signer, name=name, events=self.bus)
        self.leases.address = address

    async def settled(self) -> None:
        """What has ended has been told."""
        await asyncio.gather(*self.leases._endings)


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    file = tmp_path / "fleet.key"
    file.write_text("k" * 32)
    return file


@pytest.fixture
async def replicas(fleet_name: str, redis_port: int, key_file: Path) -> AsyncIterator[list[Replica]]:
    """Three of one fleet, that renew nothing by themselves."""
    signer = Signer(key_file)
    made = [Replica(redis_port, fleet_name, f"10.0.0.{number}:5001", signer) for number in (1, 2, 3)]
    yield made
    for one in made:
        await one.leases.aclose()
        await one.redis.aclose()


@pytest.fixture
def patient(monkeypatch):
    """A busy machine is no Redis that is down."""
    monkeypatch.setattr(connection, "_WAITS_SECONDS", (10.0,))
    monkeypatch.setattr(connection, "_PATIENT_SECONDS", (10.0,))


@pytest.fixture
def impatient(monkeypatch):
    """Silence is found out soon."""
    monkeypatch.setattr(peers, "SILENCE_SECONDS", 0.3)
    monkeypatch.setattr(source, "SILENCE_SECONDS", 0.3)
    monkeypatch.setattr(peers, "LIVES_SECONDS", 0.2)


@dataclass
class Member:
    """A replica in the test's own event loop, and the wire by which the others reach it."""

    cache: Cache
    wire: Wire

    @property
    def fleet(self) -> Any:
        return self.cache.proxy.fleet

    async def blob(self, repository: str, digest: str, **headers: str) -> Reply:
        return await self.cache.blob(repository, digest, **headers)


@pytest.fixture
async def start_replica(start_cache, redis_wire, key_file, fleet_name):
    """Start one more replica; the others reach it by a wire, on an address of its own."""
    number = 10
    async with contextlib.AsyncExitStack() as stack:

        async def start(**flags: Any) -> Member:
            nonlocal number
            number += 1
            host, port = f"127.0.0.{number}", free_port()
            to_it = await stack.enter_async_context(wire((host, port), host))
            given = {
                "fleet_redis_url": f"redis://{redis_wire.address}",
                "fleet_name": fleet_name,
                "fleet_key_file": key_file,
                "fleet_listen": f"{host}:{port}",
                "fleet_advertise": to_it.address,
            }
            cache = await start_cache(f"replica-{number}", **given | flags)
            while not cache.proxy.fleet.leases.address:
                await asyncio.sleep(0)
            return Member(cache, to_it)

        yield start


@pytest.fixture
def credentials(tmp_path: Path) -> Path:
    file = tmp_path / "s3-credentials"
    file.write_text(f"[default]\naws_access_key_id = {ACCESS}\naws_secret_access_key = {SECRET}\n")
    return file


@pytest.fixture
async def stand_in() -> AsyncIterator[Store]:
    """A store that does what it is told, right and wrong."""
    async with store() as made:
        yield made


@pytest.fixture
async def store_wire(stand_in: Store) -> AsyncIterator[Wire]:
    async with wire(("127.0.0.1", stand_in.port)) as made:
        yield made


@pytest.fixture
async def start_sharing(start_replica, stand_in, store_wire, credentials, patient):
    """Start one more replica that has the bucket; its first sweep is over."""

    async def start(**flags: Any) -> Member:
        given = {
            "fleet_bucket_url": f"http://{store_wire.address}/{stand_in.url.rpartition('/')[2]}",
            "fleet_s3_credentials_file": credentials,
            "fleet_max_size": "1GB",
        }
        member = await start_replica(**given | flags)
        async with asyncio.timeout(30):  # where Redis was slow at the start, it is tried again ten seconds later
            while not float((await member.fleet.tier.index.turn("none")).complete_at):
                await asyncio.sleep(0.005)
        return member

    return start


REPOSITORY = "library/fleet"


@pytest.fixture
async def make_blob(hub):
    """Make a blob of its own in the fleet's repository; its digest and its bytes."""
    await hub.images.image(REPOSITORY, "latest")
    made = 0

    async def make(size: int = 800_000) -> tuple[str, bytes]:
        nonlocal made
        made += 1
        data = content(size, made)
        return (await hub.images.blob(REPOSITORY, data)).digest, data

    return make


async def soon(condition: Callable[[], object], seconds: float = 40) -> None:
    """Wait for what happens in the test's own event loop."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


async def settled(member: Member) -> None:
    """Nothing flies any more, and Redis has been told of what did."""
    await soon(lambda: not len(member.cache.proxy.flights) and not member.fleet.leases._endings)


async def shared(member: Member) -> None:
    """Nothing flies, and what was fetched has been brought to the bucket, or could not be."""
    await settled(member)
    await soon(lambda: not len(member.fleet.tier.shelf))


@pytest.fixture
async def stocked(start_sharing, make_blob, hub):
    """A blob that is in the bucket, and in no replica that can be reached; another replica is there."""
    first = await start_sharing()
    digest, data = await make_blob()
    await first.blob(REPOSITORY, digest)
    await shared(first)
    await first.wire.set("refuses")
    hub.reset_counters()
    return digest, data, await start_sharing()


class Part:
    """What one replica evicts and sweeps with."""

    def __init__(self, bucket, index, replica):
        self.bucket, self.index, self.seen, self.counts = bucket, index, replica.seen, Counts()
        self.evictor = Evictor(bucket, index, cap_bytes=1000, counts=self.counts, bus=replica.bus)
        self.sweeper = Sweeper(bucket, index, bus=replica.bus)


@pytest.fixture
async def clients(stand_in, credentials, fleet_name, replicas):
    """Of two replicas: what each evicts and sweeps with."""
    async with S3(stand_in.url, region="us-east-1", key_file=KeyFile(credentials), tls=None) as s3:
        yield [
            Part(Bucket(s3, name=fleet_name, bus=one.bus), TierIndex(one.redis, name=fleet_name), one)
            for one in replicas
        ]
