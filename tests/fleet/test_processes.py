"""Six real processes, a real Redis, the look-alike: what a crowd gets, and what it gets when one of them dies."""

import asyncio
import contextlib
import hashlib
import json
import signal
import subprocess
import time
from dataclasses import dataclass

import aiohttp
import pytest
import pytest_asyncio
import redis.asyncio

from tests.e2e.command import PROGRAM, Command, environment, free_port, start
from tests.fakes import content
from tests.fleet.conftest import REPOSITORY
from tests.hub.faults import Fault
from tests.hub.hub import Hub

pytestmark = pytest.mark.asyncio(loop_scope="module")
NAME = "processes"
SIZE, HALF = 900_000, 450_000
# The lease of a question, and as much again for a busy machine.
QUESTION_SECONDS = 6.0


@dataclass(eq=False)
class Process:
    command: Command
    address: str

    @property
    def is_alive(self) -> bool:
        return self.command.process.poll() is None


class Fleet:
    def __init__(self, hub, database, session, processes) -> None:
        self.hub, self.database, self.session, self.processes = hub, database, session, processes
        self._made = 0

    @property
    def living(self) -> list[Process]:
        return [one for one in self.processes if one.is_alive]

    @property
    def alone(self) -> list[Process]:
        """Those that have left Redis alone at some time, on a machine that was too busy: they ask for themselves."""
        return [one for one in self.processes if one.command.lines(event="fleet_redis_down")]

    async def blob(self, size: int = SIZE) -> tuple[str, bytes]:
        self._made += 1
        data = content(size, 1000 + self._made)
        return (await self.hub.images.blob(REPOSITORY, data)).digest, data

    async def leader(self, digest: str) -> Process:
        """Who fetches it."""
        async with asyncio.timeout(10):
            while not (held := await self.database.get(f"{{rc1:{NAME}}}:l:{digest}")):
                await asyncio.sleep(0.01)
        return next(one for one in self.processes if one.address == held.partition("|")[2])

    async def get(self, process: Process, digest: str, seen: "Seen | None" = None) -> bytes:
        url = f"{process.command.url}/v2/{REPOSITORY}/blobs/{digest}"
        body = bytearray()
        async with self.session.get(url) as response:
            assert response.status == 200
            async for piece in response.content.iter_any():
                body += piece
                if seen is not None:
                    seen.note(len(body))
        return bytes(body)


class Seen:
    """How far a client is, and the longest that it has waited."""

    def __init__(self) -> None:
        self.bytes, self.longest_gap, self._at = 0, 0.0, 0.0

    def note(self, count: int) -> None:
        now = time.monotonic()
        if self._at:
            self.longest_gap = max(self.longest_gap, now - self._at)
        self.bytes, self._at = count, now


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def hub(origin):
    async with Hub.start(origin) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fleet(hub, redis_port, tmp_path_factory):
    directory = tmp_path_factory.mktemp("fleet")
    for name, text in (("key", "k" * 40), ("pat", hub.account.pat)):
        (directory / name).write_text(text)
    await hub.images.image(REPOSITORY, "latest")
    commands = []
    async with contextlib.AsyncExitStack() as stack:
        for number in range(6):
            host, port = f"127.0.1.{number + 1}", free_port()
            settings = {
                "listen": "127.0.0.1:0",
                "cache_dir": str(directory / str(number) / "cache"),
                "upstream": hub.url,
                "ca_file": str(hub.ca_file),
                "username": hub.account.username,
                "password_file": str(directory / "pat"),
                "min_free": "0",
                "shutdown_grace": "2s",
                "prefetch_concurrency": "0",
                "fleet_redis_url": f"redis://127.0.0.1:{redis_port}",
                "fleet_name": NAME,
                "fleet_key_file": str(directory / "key"),
                "fleet_listen": f"{host}:{port}",
            }
            commands.append(Process(start(settings), f"{host}:{port}"))
            stack.callback(commands[-1].command.end)
        await asyncio.gather(*(asyncio.to_thread(one.command.wait_until_ready) for one in commands))
        database = redis.asyncio.Redis(port=redis_port, decode_responses=True)
        stack.push_async_callback(database.aclose)
        session = await stack.enter_async_context(
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), auto_decompress=False)
        )
        yield Fleet(hub, database, session, commands)


async def test_ten_cold_blobs_for_six_replicas_with_three_clients_each_are_ten_gets(fleet):
    blobs = [await fleet.blob() for _ in range(10)]
    fleet.hub.reset_counters()
    got = await asyncio.gather(
        *(fleet.get(process, digest) for digest, _ in blobs for process in fleet.processes for _ in range(3))
    )
    assert [hashlib.sha256(body).hexdigest() for body in got] == [
        digest.partition(":")[2] for digest, _ in blobs for _ in range(18)
    ]
    most = 10 * (1 + len(fleet.alone))
    assert 10 <= fleet.hub.counters.blob_gets() <= most
    assert fleet.hub.counters.blob_bytes() <= most * SIZE


async def test_a_cold_reference_is_one_head_and_one_counted_get_for_six_replicas(fleet):
    image = await fleet.hub.images.image("library/cold", "1")
    fleet.hub.reset_counters()

    async def pull(process):
        place = f"{process.command.url}/v2/library/cold/manifests"
        async with fleet.session.head(f"{place}/1") as head:
            digest = head.headers["Docker-Content-Digest"]
        async with fleet.session.get(f"{place}/{digest}") as response:
            return await response.read()

    bodies = await asyncio.gather(*(pull(process) for process in fleet.processes for _ in range(3)))
    assert {f"sha256:{hashlib.sha256(body).hexdigest()}" for body in bodies} == {image.digest}
    counters = fleet.hub.counters
    most = 1 + len(fleet.alone)
    assert 1 <= counters.manifest_heads() <= most
    assert 1 <= counters.manifest_gets() == counters.counted_pulls() <= most


async def run(command: Command, *words: str) -> subprocess.CompletedProcess[str]:
    """Another command, for the cache of *command*."""
    line = [PROGRAM, *words, "--cache-dir", str(command.cache_dir)]
    return await asyncio.to_thread(subprocess.run, line, env=environment(), capture_output=True, text=True, check=False)


async def test_a_purge_and_a_pin_at_one_replica_are_those_of_six(fleet):
    await fleet.hub.images.image("library/wished", "1")
    for process in fleet.processes:
        async with fleet.session.get(f"{process.command.url}/v2/library/wished/manifests/1") as response:
            assert response.status == 200
    first, last = fleet.processes[0].command, fleet.processes[-1].command

    async def told(command, *words):
        done = await run(command, *words)
        assert done.returncode == 0, done.stderr

    async def listed(wanted):
        for process in fleet.processes[1:2]:
            async with asyncio.timeout(30):
                while await names(process.command) != wanted:
                    pass

    async def names(command):
        done = await run(command, "list", "--json")
        return [(one["name"], one["pinned"]) for one in json.loads(done.stdout)["items"] if "wished" in one["name"]]

    await told(first, "pin", "wished:1")
    await listed([("wished:1", True)])
    await told(last, "unpin", "wished:1")
    await listed([("wished:1", False)])
    await told(first, "purge", "wished:1", "--yes")
    await listed([])


async def test_a_purge_of_a_digest_at_one_replica_is_that_of_all(fleet):
    digest, _ = await fleet.blob(1000)
    first, other = fleet.living[:2]
    for process in (first, other):
        await fleet.get(process, digest)
    done = await run(first.command, "purge", digest, "--yes")
    assert (done.returncode, done.stderr) == (0, "")
    path = other.command.cache_dir / "blobs" / "sha256" / digest[7:9] / digest[7:]
    async with asyncio.timeout(30):
        while path.exists():
            await asyncio.sleep(0.01)
    assert not first.command.lines(event="crashed")


async def test_who_asks_for_a_manifest_and_is_killed_costs_three_seconds_and_one_get_more(fleet):
    image = await fleet.hub.images.image("library/killed", "1")
    fleet.hub.reset_counters()
    fleet.hub.faults.add(Fault(kind="manifest", method="GET", delay_seconds=60, times=1))
    asks, *others = fleet.living

    async def get(process):
        async with fleet.session.get(f"{process.command.url}/v2/library/killed/manifests/1") as response:
            return await response.read()

    lost = asyncio.create_task(get(asks))
    async with asyncio.timeout(10):
        while not fleet.hub.faults.waiting:
            await asyncio.sleep(0.01)
    pulls = [asyncio.create_task(get(one)) for one in others]
    asks.command.process.kill()
    began = time.monotonic()
    bodies = await asyncio.gather(*pulls)
    assert time.monotonic() - began < QUESTION_SECONDS
    assert {f"sha256:{hashlib.sha256(body).hexdigest()}" for body in bodies} == {image.digest}
    assert 1 <= fleet.hub.counters.manifest_gets() <= 1 + len(fleet.alone)
    with pytest.raises(aiohttp.ClientError):
        await lost
    fleet.hub.faults.clear()


@contextlib.asynccontextmanager
async def half_way(fleet, digest):
    """All living replicas have a client with half of the blob; gives the leader, and the others' pulls."""
    fault = fleet.hub.faults.add(Fault(kind="blob", stall_after_bytes=HALF, times=1, service="cdn"))
    living, seen = fleet.living, [Seen() for _ in fleet.living]
    pulls = [asyncio.create_task(fleet.get(one, digest, mark)) for one, mark in zip(living, seen, strict=True)]
    leader = await fleet.leader(digest)
    async with asyncio.timeout(20):
        while not all(mark.bytes == HALF for mark in seen):
            await asyncio.sleep(0.01)
    for mark in seen:
        mark.note(mark.bytes)  # gaps count from here
        mark.longest_gap = 0.0
    rest = {one: (pull, mark) for one, pull, mark in zip(living, pulls, seen, strict=True)}
    try:
        yield leader, rest.pop(leader), list(rest.values())
    finally:
        fleet.hub.faults.clear()
        assert fault.met
        for pull in pulls:
            pull.cancel()
        await asyncio.gather(*pulls, return_exceptions=True)


def cdn_ranges(fleet, digest):
    return [record.range for record in fleet.hub.counters.select(service="cdn", reference=digest)]


async def test_a_leader_that_is_killed_costs_one_ranged_get_more(fleet):
    digest, data = await fleet.blob()
    async with half_way(fleet, digest) as (leader, _, others):
        leader.command.process.kill()
        assert [await pull for pull, _ in others] == [data] * len(others)
    assert cdn_ranges(fleet, digest) == [None, f"bytes={HALF}-"]


async def test_a_leader_that_freezes_is_passed_over_and_finishes_for_its_own_clients(fleet):
    digest, data = await fleet.blob()
    async with half_way(fleet, digest) as (leader, own, others):
        leader.command.signal(signal.SIGSTOP)
        try:
            assert [await pull for pull, _ in others] == [data] * len(others)
        finally:
            leader.command.signal(signal.SIGCONT)
        fleet.hub.faults.clear()
        assert await own[0] == data
    assert cdn_ranges(fleet, digest) == [None, f"bytes={HALF}-"]


async def test_a_leader_that_is_stopped_is_followed_by_another(fleet):
    digest, data = await fleet.blob()
    async with half_way(fleet, digest) as (leader, own, others):
        own[0].cancel()
        leader.command.signal(signal.SIGTERM)
        assert [await pull for pull, _ in others] == [data] * len(others)
        fleet.hub.faults.clear()
        assert await asyncio.to_thread(leader.command.wait) == 0
    assert len(cdn_ranges(fleet, digest)) <= 2


async def test_a_429_of_one_replica_is_known_to_all(fleet):
    """The last one: nobody asks for manifests for a while."""
    await fleet.hub.images.image("library/limited", "1")
    fleet.hub.faults.add(Fault(kind="manifest", method="GET", status=429, headers={"Retry-After": "900"}))
    fleet.hub.reset_counters()
    url = f"{fleet.living[0].command.url}/v2/library/limited/manifests/1"
    async with fleet.session.get(url) as response:
        assert response.status == 429
    async with asyncio.timeout(20):
        while not all(one.command.lines(event="upstream_limited") for one in fleet.living):
            await asyncio.sleep(0.05)
    for one in fleet.living:
        async with fleet.session.get(f"{one.command.url}/v2/library/limited/manifests/1") as response:
            assert response.status == 429
    assert len(fleet.hub.counters.select(kind="manifest", method="GET", status=429)) == 1
