"""What has to hold when a fleet's trouble is over: everything can be had, bucket and index agree, no secret is told."""

import asyncio
import hashlib
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import redis.asyncio

from registry_cache.fleet.s3 import ObjectMissing
from tests.fleet.store import ACCESS, SECRET
from tests.proof.leaks import files_with, forms_of

if TYPE_CHECKING:
    from tests.fleet.soak import Soak

# The longest pause of a breaker, and as much again.
CALM_SECONDS = 120.0


class Aftermath:
    """See the module; what doesn't hold is noted as a fault."""

    def __init__(self, soak: "Soak", session: aiohttp.ClientSession) -> None:
        self.soak = soak
        self.session = session
        self.prefix = f"{{rc1:{soak.replicas[0].settings['fleet_name']}}}:"

    async def look(self) -> None:
        async with redis.asyncio.Redis(port=self.soak.redis.port) as database:
            await self._everything_can_be_had()
            await self._bucket_and_index_agree(database)
            await self._secrets(database)
        for replica in self.soak.replicas:
            await self.soak.end(replica, kill=False)
            self._disk(Path(replica.settings["cache_dir"]))

    async def _everything_can_be_had(self) -> None:
        """Of each replica at the first try; of what the soak made rotten, as often as a rotten copy is left."""
        self.soak.hub.set(bandwidth_bytes_per_second=0)
        await asyncio.gather(*(self._all_of(replica.url) for replica in self.soak.replicas))

    async def _all_of(self, url: str) -> None:
        for wanted in self.soak.wanted:
            tries = 1 + 2 * self.soak.has_rotted(wanted, since=0.0)
            if not [1 for _ in range(tries) if await self._is_had(url + wanted.path, wanted.bodies)]:
                self.soak.fault(f"{url}{wanted.path} cannot be had after the trouble")

    async def _is_had(self, url: str, bodies: list[bytes]) -> bool:
        try:
            async with self.session.get(url) as response:
                return response.status == 200 and await response.read() in bodies
        except aiohttp.ClientPayloadError:
            return False

    async def _bucket_and_index_agree(self, database: Any) -> None:
        """After a sweep, which is asked for: what was lost with Redis is weeks away else.

        What agrees may be evicted a moment later: what is gone when it is read has to be gone from the index as well.
        """
        await database.hdel(f"{self.prefix}meta", "complete")
        sizes = await self._agreed(database)
        self.soak.tally.swept = {"objects": len(sizes), "bytes": sum(sizes.values())}
        gone = [digest for digest in sizes if not await self._is_read(digest)]
        if gone:
            back = (await self._agreed(database)).keys() & gone
            if lost := [digest for digest in back if not await self._is_read(digest)]:
                self.soak.fault(f"in index and bucket, and cannot be read: {sorted(lost)}")

    async def _agreed(self, database: Any) -> dict[str, int]:
        """What is in the bucket, in bytes, at a moment when the index says the same."""
        deadline = time.monotonic() + CALM_SECONDS
        while wrong := await self._differences(database):
            if time.monotonic() > deadline:
                self.soak.fault(f"bucket and index do not agree: {wrong}")
                break
            await asyncio.sleep(0.1)
        return await self.soak.bucket.shared.sizes()

    async def _is_read(self, digest: str) -> bool:
        """Whether it is still in the bucket; what is wrong with it is noted."""
        try:
            body = await self.soak.bucket.shared.body(digest)
        except ObjectMissing:
            return False
        if f"sha256:{hashlib.sha256(body).hexdigest()}" != digest and not self.soak.bucket.is_marred(digest):
            self.soak.fault(f"{digest} in the bucket is something else")
        return True

    async def _differences(self, database: Any) -> str:
        """What does not agree; empty if all does, and nobody is about to change it."""
        if not await database.hexists(f"{self.prefix}meta", "complete"):
            return "the sweep is not over"
        if going := await database.zcard(f"{self.prefix}going"):
            return f"{going} are being deleted"
        index = await database.hgetall(f"{self.prefix}size")
        sizes = {f"sha256:{digest.hex()}": int(value.partition(b":")[0]) for digest, value in index.items()}
        used = {f"sha256:{digest.hex()}" for digest in await database.zrange(f"{self.prefix}lru", 0, -1)}
        count, there = int(await database.get(f"{self.prefix}bytes") or 0), await self.soak.bucket.shared.sizes()
        if sizes != there:
            return f"bucket {len(there)}, index {len(sizes)}, one of them only {sorted(sizes.items() ^ there.items())}"
        if used != sizes.keys():
            return f"last uses and sizes are not of the same: {sorted(used ^ sizes.keys())}"
        if count != sum(sizes.values()):
            return f"{count} bytes counted of {sum(sizes.values())}"
        # What a sweep has found may be more, until the next round of eviction.
        cap_bytes = int(self.soak.replicas[0].settings["fleet_max_size"])
        return f"{count} bytes are more than the cap" if count > cap_bytes else ""

    async def _secrets(self, database: Any) -> None:
        """The account's and the bucket's: only in their own files; not in a log, a process, Redis or the bucket."""
        ready = self.soak.hub.ready
        account, bucket = forms_of(ready["username"], ready["pat"]), forms_of(ACCESS, SECRET)
        root = Path(self.soak.replicas[0].settings["cache_dir"]).parents[1]
        # The bucket's engine has its own keys.
        read, found = await asyncio.to_thread(files_with, [*account, *bucket], [root], but=[root / "ceph"])
        names = {Path(path).name for path in found}
        if read < 10 or names != {"pat", "s3-keys"}:
            self.soak.fault(f"secrets in {names} of {read} files")
        told = {"Redis": [await database.dump(key) or b"" for key in await database.keys("*")]}
        told["the bucket"] = self.soak.bucket.told()
        for replica in self.soak.replicas:
            process = Path(f"/proc/{replica.command.pid}")
            told[f"process {replica.url}"] = [(process / name).read_bytes() for name in ("cmdline", "environ")]
        for where, texts in told.items():
            if any(form in text for form in (*account, *bucket) for text in texts):
                self.soak.fault(f"a secret is in {where}")

    def _disk(self, cache_dir: Path) -> None:
        for path in (one for one in (cache_dir / "blobs").rglob("*") if one.is_file()):
            if hashlib.sha256(path.read_bytes()).hexdigest() != path.name:
                self.soak.fault(f"rotten: {path}")
