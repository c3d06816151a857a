"""The engines of a soaked fleet, and what goes wrong with them: a Redis that dies and forgets, a bucket that lies."""

import asyncio
import contextlib
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from random import Random

import redis as redis_py

from registry_cache.fleet.bucket import Bucket
from registry_cache.fleet.s3 import S3, StoreTrouble
from registry_cache.fleet.s3_signing import KeyFile
from registry_cache.model.bus import Events
from registry_cache.model.oci import Digest
from tests.e2e.command import free_port, until
from tests.fleet.radosgw import Ceph
from tests.fleet.store import Store


class RedisEngine:
    """A redis-server that can be killed and come back: with what its file has, which may lack a second, or empty."""

    def __init__(self, directory: Path) -> None:
        self.port = free_port()
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None
        self._emptied = 0

    def start(self) -> None:
        where = self._directory / f"life-{self._emptied}"  # its files are kept: all of them are searched in the end
        where.mkdir(parents=True, exist_ok=True)
        words = ["--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--dir", str(where)]
        with (self._directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                ["redis-server", *words, "--appendonly", "yes"], stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )
        until(self._answers, "redis-server answers")

    def _answers(self) -> bool:
        with contextlib.suppress(redis_py.RedisError), redis_py.Redis(port=self.port) as client:
            return bool(client.ping())
        return False

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """It answers nobody, and its connections stay."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)

    async def trouble(self, dice: Random) -> str:
        """One of its troubles, and its end; what it was."""
        what = dice.choice(("killed", "killed", "emptied", "frozen", "away"))
        if what == "frozen":
            with self.frozen():
                await asyncio.sleep(dice.uniform(0.2, 3.0))
            return what
        self.kill()
        if what == "emptied":
            self._emptied += 1
        if what == "away":
            await asyncio.sleep(dice.uniform(0.5, 3.0))
        await asyncio.to_thread(self.start)
        return what


class Shared:
    """The bucket as one who has its keys sees it."""

    def __init__(self, url: str, keys: Path, name: str) -> None:
        self.url = url
        self._keys = keys
        self._name = name

    @contextlib.asynccontextmanager
    async def opened(self) -> AsyncIterator[Bucket]:
        async with S3(self.url, region="us-east-1", key_file=KeyFile(self._keys), tls=None) as s3:
            yield Bucket(s3, name=self._name, bus=Events())

    async def sizes(self) -> dict[str, int]:
        """What is in it."""
        found, after = {}, ""
        async with self.opened() as bucket:
            while True:
                listed, after = await bucket.page(after)
                digests = [(bucket.digest(one.key), one.size_bytes) for one in listed]
                found |= {str(digest): size for digest, size in digests if digest is not None}
                if not after:
                    return found

    async def body(self, digest: str) -> bytes:
        async with self.opened() as bucket:
            reply, body = await bucket.get(Digest(digest), 0), bytearray()
            await reply.reply.drain(body.extend)
            reply.reply.close()
            return bytes(body)

    async def bodies(self) -> list[bytes]:
        """All that is in it."""
        return [await self.body(digest) for digest in await self.sizes()]

    async def empty(self) -> None:
        """Somebody deletes all of it."""
        there = await self.sizes()
        async with self.opened() as bucket:
            for digest in there:
                await bucket.delete(Digest(digest))

    async def lose(self, dice: Random) -> None:
        """Somebody deletes some of it behind the fleet's back."""
        with contextlib.suppress(StoreTrouble):
            there = sorted(await self.sizes())
            async with self.opened() as bucket:
                for digest in dice.sample(there, min(len(there), 3)):
                    await bucket.delete(Digest(digest))


class StandIn:
    """The look-alike's troubles."""

    def __init__(self, store: Store, shared: Shared, *, lasting: bool) -> None:
        self.shared = shared
        self._store = store
        self._lasting = lasting  # also what a replica leaves alone for a minute
        self._rotten: dict[str, bytes] = {}  # in the middle
        self._marred: dict[str, bytes] = {}  # anywhere

    def is_rotten(self, digest: str) -> bool:
        """Whether the middle of it is wrong in the bucket now: its transfer may break before its end."""
        return self._is_still(self._rotten, digest)

    def is_marred(self, digest: str) -> bool:
        """Whether it is wrong in the bucket by our doing, and nobody has read it since."""
        return self._is_still(self._marred, digest)

    def _is_still(self, made: dict[str, bytes], digest: str) -> bool:
        key = self._key(digest)
        return key in made and self._store.objects.get(key) is made[key]

    def _key(self, digest: str) -> str:
        algorithm, _, encoded = digest.partition(":")
        prefix = f"v1/{self.shared._name}"
        return f"{prefix}/{algorithm}/{encoded[:2]}/{encoded}"

    def told(self) -> list[bytes]:
        """What it has heard, bodies and all."""
        heard = [f"{method} {path}" for method, path in self._store.asked] + self._store.heads
        return ["\n".join(heard).encode(), *self._store.objects.values()]

    async def trouble(self, dice: Random) -> str:
        store = self._store
        kinds = ["writes hang", "reads hang", "reads 503", "writes 503", "cut", "stall", "lost", "rotten", "rotten end"]
        what = dice.choice([*kinds, "no bucket", "403"] if self._lasting else kinds)
        if what == "lost":
            await self.shared.lose(dice)
        elif what.startswith("rotten") and store.objects:
            key = dice.choice(sorted(store.objects))
            body, was_rotten = bytearray(store.objects[key]), self._rotten.get(key) is store.objects[key]
            body[-1 if what == "rotten end" else len(body) // 2] ^= 1
            store.objects[key] = self._marred[key] = bytes(body)
            if what == "rotten" or was_rotten:
                self._rotten[key] = store.objects[key]
        try:
            store.hangs = {"writes hang": {"PUT", "DELETE", "POST"}, "reads hang": {"GET"}}.get(what, set())
            statuses = {
                "reads 503": (["GET"], 503),
                "writes 503": (["PUT", "DELETE"], 503),
                "403": (["GET", "PUT"], 403),
            }
            methods, status = statuses.get(what, ([], 0))
            store.refuses = dict.fromkeys(methods, (status, "SlowDown" if status == 503 else "AccessDenied"))
            store.is_there = what != "no bucket"
            store.truncates = 20_000 if what == "cut" else None
            store.stalls = 20_000 if what == "stall" else None
            await asyncio.sleep(dice.uniform(0.3, 5.0))
        finally:
            store.hangs, store.refuses, store.is_there, store.truncates, store.stalls = set(), {}, True, None, None
            goes_on, store.goes_on = store.goes_on, asyncio.Event()
            goes_on.set()
        return what


class RealCeph:
    """radosgw's: what can be done to it from outside."""

    def __init__(self, ceph: Ceph, shared: Shared) -> None:
        self.shared = shared
        self._ceph = ceph

    def is_rotten(self, digest: str) -> bool:
        del digest  # it takes no wrong bytes
        return False

    is_marred = is_rotten

    def told(self) -> list[bytes]:
        return [path.read_bytes() for path in self._ceph.root.glob("*.log")]

    async def trouble(self, dice: Random) -> str:
        what = dice.choice(("frozen", "killed", "full", "lost"))
        if what == "frozen":
            with self._ceph.frozen():
                await asyncio.sleep(dice.uniform(0.3, 5.0))
        elif what == "killed":
            self._ceph.processes["rgw"].kill()
            await asyncio.to_thread(self._ceph.processes["rgw"].wait)
            await asyncio.sleep(dice.uniform(0.0, 2.0))
            self._ceph.begin("rgw", "radosgw", "-n", "client.rgw")
        elif what == "full":
            await asyncio.to_thread(self._fill, dice.uniform(0.5, 5.0))
        else:
            await self.shared.lose(dice)
        return what

    def _fill(self, seconds: float) -> None:
        with self._ceph.full():
            subprocess.run(["sleep", f"{seconds}"], check=True)
