"""A fleet for some minutes while everything goes wrong: replicas, Redis and the bucket die, freeze, forget and lie.

``python -m tests.fleet.soak --minutes 5``. Three or four real processes, random pulls, small caps. Upstream is alive
all the while, so every pull of a replica that lives from its beginning to its end has to be answered, and right. What
fails of a replica that was killed or stopped meanwhile is that replica's own. Afterwards bucket, index and count of
bytes have to agree; see ``after_soak.py``. The exit code says whether all held.
"""

import argparse
import asyncio
import contextlib
import hashlib
import json
import math
import random
import signal
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from tests.e2e.command import Command, free_port, settings_for, start
from tests.fleet.after_soak import Aftermath
from tests.fleet.engines import RealCeph, RedisEngine, Shared, StandIn
from tests.fleet.radosgw import running_ceph
from tests.fleet.store import ACCESS, SECRET, store
from tests.hub.client import HubClient, running_hub

NAME = "soak"
CLIENTS = 12
IMAGES = 8
BLOB_SIZES = (700, 30_000, 70_000, 400_000, 1_500_000)
CAP_BYTES = 7_000_000  # of a replica; there are 16 MB
BUCKET_BYTES = 10_000_000
UPSTREAM_BYTES_PER_SECOND = 4_000_000
LASTING_FROM_SECONDS = 120
FLIGHT_SECONDS = 10.0  # no flight lasts longer; the slowest pull of a soak took 7 s
MOVING = "library/moving"
MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"


@dataclass
class Wanted:
    """Something that can be asked for, and the bytes that it may be."""

    path: str
    bodies: list[bytes]

    @property
    def digest(self) -> str:
        return self.path.rpartition("/")[2]


@dataclass
class Replica:
    """One process after the other, with the same cache."""

    settings: dict[str, str]
    command: Command
    is_up: bool = True
    ends: int = 0  # how often it was killed or stopped

    @property
    def url(self) -> str:
        return f"http://{self.settings['listen']}"

    def told_of(self, path: str) -> list[str]:
        """The last that its log says of what is at *path*."""
        text = path.rpartition("/")[2]
        return [line for line in self.command.stdout.read_text().splitlines() if text in line][-12:]

    async def begin(self) -> None:
        self.command = await asyncio.to_thread(start, self.settings)
        await asyncio.to_thread(self.command.wait_until_ready)
        self.is_up = True


@dataclass
class Tally:
    """What came of it."""

    whole: int = 0
    own: int = 0  # failed because its replica was killed or stopped
    of_rotten: int = 0  # broke because the soak itself had made the blob rotten in the bucket
    slowest_seconds: float = 0.0
    troubles: Counter[str] = field(default_factory=Counter)
    upstream_blob_gets: int = 0
    swept: dict[str, int] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)


class Soak:
    """One run; made by :func:`soaking`."""

    def __init__(
        self, hub: HubClient, redis: RedisEngine, bucket: StandIn | RealCeph, seed: int, *, only_kills: bool = False
    ) -> None:
        self.hub, self.redis, self.bucket, self.seed, self.only_kills = hub, redis, bucket, seed, only_kills
        self.replicas: list[Replica] = []
        self.wanted: list[Wanted] = []
        self.tally = Tally()
        self.stopping = asyncio.Event()
        self._rotted_at: dict[str, float] = {}

    def dice(self, what: str) -> random.Random:
        return random.Random(f"{self.seed} {what}")

    # --- content ------------------------------------------------------------------------------------------------

    def make_images(self) -> None:
        self.hub.set(pull_limit=None)
        for number in range(IMAGES):
            name = f"library/soak-{number}"
            image = self.hub.image(name, "1", make="image", layers=list(BLOB_SIZES))
            body = self._true(name, "manifests", image["digest"])
            self.wanted += [Wanted(f"/v2/{name}/manifests/{reference}", [body]) for reference in ("1", image["digest"])]
            for blob in (image["config"], *image["layers"]):
                path = f"/v2/{name}/blobs/{blob['digest']}"
                self.wanted.append(Wanted(path, [self._true(name, "blobs", blob["digest"])]))
        self.moving = Wanted(f"/v2/{MOVING}/manifests/latest", [])
        self.move()
        self.wanted += [self.moving] * 3
        self.hub.set(bandwidth_bytes_per_second=UPSTREAM_BYTES_PER_SECOND)

    def move(self) -> None:
        """The tag points to something new."""
        image = self.hub.image(MOVING, None, make="image", layers=[500], seed=str(len(self.moving.bodies)))
        # What it may be is known before anybody can be told.
        self.moving.bodies.append(self._true(MOVING, "manifests", image["digest"]))
        url = f"{self.hub.ready['origin_url']}{self.moving.path}"
        request = urllib.request.Request(url, self.moving.bodies[-1], {"Content-Type": MANIFEST}, method="PUT")
        urllib.request.urlopen(request).close()

    def _true(self, name: str, kind: str, digest: str) -> bytes:
        request = urllib.request.Request(f"{self.hub.ready['origin_url']}/v2/{name}/{kind}/{digest}")
        request.add_header("Accept", MANIFEST)
        with urllib.request.urlopen(request) as response:
            data: bytes = response.read()
        assert hashlib.sha256(data).hexdigest() == digest.partition(":")[2]
        return data

    # --- clients ------------------------------------------------------------------------------------------------

    async def client(self, session: aiohttp.ClientSession, number: int) -> None:
        dice = self.dice(f"client {number}")
        while not self.stopping.is_set():
            replica = dice.choice([one for one in self.replicas if one.is_up])
            await self.pull(session, replica, dice.choice(self.wanted), dice)

    async def pull(self, session: aiohttp.ClientSession, replica: Replica, wanted: Wanted, dice: random.Random) -> None:
        first = 0
        if "/blobs/" in wanted.path and dice.random() < 0.3:
            first = dice.randrange(len(wanted.bodies[0]))
        headers = {"Range": f"bytes={first}-"} if first else {}
        ends, began = replica.ends, time.monotonic()
        try:
            async with session.get(replica.url + wanted.path, headers=headers) as response:
                body = await response.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            what = f"{wanted.path} {headers} of {replica.url}: {type(error).__name__} {error}"
            if replica.ends != ends:
                self.tally.own += 1
            elif isinstance(error, aiohttp.ClientPayloadError) and self.has_rotted(
                wanted,
                since=began - FLIGHT_SECONDS,  # it may have joined one that had read it before
            ):
                self.tally.of_rotten += 1
            else:
                self.fault(f"{what}, after {time.monotonic() - began:.1f} s; {replica.told_of(wanted.path)}")
            return
        seconds = time.monotonic() - began
        if response.status not in (200, 206):
            if replica.ends != ends:
                self.tally.own += 1
            else:
                self.fault(f"{wanted.path} {headers} of {replica.url}: {response.status} {body[:200]!r}")
            return
        true = [one[first:] if response.status == 206 else one for one in wanted.bodies]
        # A range that could not be stored is passed on as it comes: only a whole blob has a digest.
        is_verified = response.status == 200 or "fwd=bypass" not in response.headers["Cache-Status"]
        if is_verified and body not in true:
            self.fault(f"wrong body: {wanted.path} {headers} of {replica.url}, {response.headers['Cache-Status']}")
        self.tally.whole += 1
        self.tally.slowest_seconds = max(self.tally.slowest_seconds, seconds)

    def _is_rotten(self, wanted: Wanted) -> bool:
        return "/blobs/" in wanted.path and self.bucket.is_rotten(wanted.digest)

    def has_rotted(self, wanted: Wanted, *, since: float) -> bool:
        return self._rotted_at.get(wanted.digest, -math.inf) >= since

    def fault(self, text: str) -> None:
        self.tally.faults.append(text)

    # --- trouble ------------------------------------------------------------------------------------------------

    async def trouble_of_replicas(self) -> None:
        """One at a time: the others are the living ones."""
        dice = self.dice("replicas")
        fates = ("killed",) if self.only_kills else ("killed", "killed", "frozen", "stopped")
        while not await self._over(dice.uniform(0.3, 0.6 if self.only_kills else 2.5)):
            replica, what = dice.choice(self.replicas), dice.choice(fates)
            self.tally.troubles[f"replica {what}"] += 1
            if what == "frozen":
                replica.command.signal(signal.SIGSTOP)
                try:
                    await self._over(dice.uniform(0.3, 5.0))
                finally:
                    replica.command.signal(signal.SIGCONT)
                continue
            replica.is_up, replica.ends = False, replica.ends + 1
            await self.end(replica, kill=what == "killed")
            await self._over(dice.uniform(0.0, 0.3 if self.only_kills else 1.5))
            await replica.begin()

    async def end(self, replica: Replica, *, kill: bool) -> None:
        if kill:
            await asyncio.to_thread(replica.command.end)
        elif (code := await asyncio.to_thread(replica.command.stop)) != 0:
            self.fault(f"exit code {code} after SIGTERM: {replica.command.stderr.read_text()[-500:]}")
        for line in replica.command.lines(event="crashed"):
            self.fault(f"crashed: {line['message']} {line['traceback']}")

    async def trouble_of_engines(self, name: str, engine: Any) -> None:
        dice = self.dice(name)
        while not await self._over(dice.uniform(0.5, 4.0)):
            self.tally.troubles[f"{name} {await engine.trouble(dice)}"] += 1

    async def moves(self) -> None:
        while not await self._over(2.0):
            await asyncio.to_thread(self.move)

    async def rot(self) -> None:
        """Notes when a blob has become rotten, for pulls that began before."""
        while not await self._over(0.02):
            now = time.monotonic()
            self._rotted_at |= {one.digest: now for one in self.wanted if self._is_rotten(one)}

    async def _over(self, seconds: float) -> bool:
        """Wait for so long, or for the end; whether that has come."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.stopping.wait(), seconds)
        return self.stopping.is_set()

    # --- the run ------------------------------------------------------------------------------------------------

    async def run(self, seconds: float) -> Tally:
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        timeout = aiohttp.ClientTimeout(total=60)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout, auto_decompress=False) as session:
            self.hub.reset()
            async with asyncio.TaskGroup() as group:
                for number in range(CLIENTS):
                    group.create_task(self.client(session, number))
                group.create_task(self.trouble_of_replicas())
                if not self.only_kills:
                    group.create_task(self.trouble_of_engines("Redis", self.redis))
                    group.create_task(self.trouble_of_engines("bucket", self.bucket))
                group.create_task(self.moves())
                group.create_task(self.rot())
                await asyncio.sleep(seconds)
                self.stopping.set()
            self.tally.upstream_blob_gets = (await asyncio.to_thread(self.hub.counters))["blob_gets"]
            await Aftermath(self, session).look()
        return self.tally


@contextlib.asynccontextmanager
async def soaking(
    hub: HubClient,
    directory: Path,
    *,
    seed: int,
    replicas: int = 3,
    ceph: bool = False,
    lasting: bool = False,
    only_kills: bool = False,
) -> AsyncIterator[Soak]:
    """A fleet that runs, and its content."""
    keys, key = directory / "s3-keys", directory / "key"
    keys.write_text(f"[default]\naws_access_key_id={ACCESS}\naws_secret_access_key={SECRET}\n")
    key.write_text("k" * 40)
    async with contextlib.AsyncExitStack() as stack:
        (directory / "redis").mkdir()
        redis = RedisEngine(directory / "redis")
        stack.callback(redis.kill)
        await asyncio.to_thread(redis.start)
        if ceph:
            (directory / "ceph").mkdir()
            real = await asyncio.to_thread(stack.enter_context, running_ceph(directory / "ceph"))
            bucket: StandIn | RealCeph = RealCeph(real, Shared(await real.bucket(keys), keys, NAME))
        else:
            made = await stack.enter_async_context(store())
            bucket = StandIn(made, Shared(made.url, keys, NAME), lasting=lasting)
        soak = Soak(hub, redis, bucket, seed, only_kills=only_kills)
        await asyncio.to_thread(soak.make_images)
        port = free_port()
        for number in range(1, replicas + 1):
            home = directory / f"replica-{number}"
            home.mkdir()
            settings = settings_for(hub, home) | {
                "listen": f"127.0.4.{number}:{port}",
                "max_size": str(CAP_BYTES),
                "tag_ttl": "1s",
                "shutdown_grace": "1s",
                "fleet_redis_url": f"redis://127.0.0.1:{redis.port}",
                "fleet_name": NAME,
                "fleet_key_file": str(key),
                "fleet_listen": f"127.0.3.{number}:{port}",
                "fleet_bucket_url": bucket.shared.url,
                "fleet_s3_credentials_file": str(keys),
                "fleet_max_size": str(BUCKET_BYTES),
            }
            soak.replicas.append(Replica(settings, start(settings)))
            stack.callback(lambda one: one.command.end(), soak.replicas[-1])
        await asyncio.gather(*(asyncio.to_thread(one.command.wait_until_ready) for one in soak.replicas))
        yield soak


async def _soak(given: argparse.Namespace, seed: int) -> Tally:
    seconds = given.minutes * 60
    with tempfile.TemporaryDirectory(prefix="soak-fleet-") as folder, running_hub() as hub:
        made = soaking(
            hub, Path(folder), seed=seed, replicas=given.replicas, ceph=given.ceph,
            lasting=seconds >= LASTING_FROM_SECONDS, only_kills=given.only_kills,
        )  # fmt: skip
        async with made as soak:
            return await soak.run(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fleet.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=None, help="repeat the choices of an earlier run")
    parser.add_argument("--replicas", type=int, default=3)
    parser.add_argument("--ceph", action="store_true", help="a real radosgw instead of the look-alike")
    parser.add_argument("--only-kills", action="store_true", help="of replicas, one soon after the other; nothing else")
    given = parser.parse_args()
    seed = given.seed if given.seed is not None else random.SystemRandom().randrange(10**6)
    print(f"soak of a fleet for {given.minutes:g} min, seed {seed}", flush=True)
    tally = asyncio.run(_soak(given, seed))
    print(json.dumps({**vars(tally), "faults": len(tally.faults)}))
    for fault in tally.faults[:12]:
        print(fault[:1500])
    sys.exit(1 if tally.faults else 0)


if __name__ == "__main__":
    main()
