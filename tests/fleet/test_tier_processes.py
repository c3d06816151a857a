"""Two real processes, a real Redis, a real radosgw: what is shared outlives who has shared it, and no key is told."""

import asyncio
import contextlib
import os
import signal
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio
import redis.asyncio

from registry_cache.fleet.bucket import Bucket
from registry_cache.fleet.s3 import S3
from registry_cache.fleet.s3_signing import KeyFile
from registry_cache.model.bus import Events
from registry_cache.model.oci import Digest
from tests.e2e.command import free_port, start
from tests.fakes import content
from tests.fleet.conftest import REPOSITORY
from tests.fleet.store import ACCESS, SECRET
from tests.hub.hub import Hub
from tests.proof.leaks import files_with, forms_of

pytestmark = pytest.mark.asyncio(loop_scope="module")
NAME = "two-processes"
PREFIX = f"{{rc1:{NAME}}}:"


class Two:
    def __init__(self, hub, ceph, database, session, commands, bucket, directory):
        self.hub, self.ceph, self.database, self.session = hub, ceph, database, session
        self.commands, self.bucket, self.directory = commands, bucket, directory
        self._made = 0

    async def blob(self):
        self._made += 1
        data = content(700_000, 2000 + self._made)
        return (await self.hub.images.blob(REPOSITORY, data)).digest, data

    async def get(self, number, digest):
        async with self.session.get(f"{self.commands[number].url}/v2/{REPOSITORY}/blobs/{digest}") as response:
            assert response.status == 200
            return await response.read()

    async def in_index(self, digest):
        return await self.database.hexists(f"{PREFIX}size", bytes.fromhex(Digest(digest).encoded))

    async def in_bucket(self, digest):
        listed, _ = await self.bucket.page("")
        return self.bucket.key(Digest(digest)) in {one.key for one in listed}


async def until(condition, seconds=30):
    async with asyncio.timeout(seconds):
        while not await condition():
            await asyncio.sleep(0.02)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def two(ceph, origin, redis_port, tmp_path_factory):
    directory = tmp_path_factory.mktemp("two")
    (directory / "key").write_text("k" * 40)
    keys = directory / "s3-keys"
    keys.write_text(f"[default]\naws_access_key_id={ACCESS}\naws_secret_access_key={SECRET}\n")
    url = await ceph.bucket(keys)
    async with contextlib.AsyncExitStack() as stack:
        hub = await stack.enter_async_context(Hub.start(origin))
        (directory / "pat").write_text(hub.account.pat)
        await hub.images.image(REPOSITORY, "latest")
        commands = []
        for number in range(2):
            settings = {
                "listen": "127.0.0.1:0",
                "cache_dir": str(directory / str(number) / "cache"),
                "upstream": hub.url,
                "ca_file": str(hub.ca_file),
                "username": hub.account.username,
                "password_file": str(directory / "pat"),
                "min_free": "0",
                "log_level": "debug",
                "prefetch_concurrency": "0",
                "fleet_redis_url": f"redis://127.0.0.1:{redis_port}",
                "fleet_name": NAME,
                "fleet_key_file": str(directory / "key"),
                "fleet_listen": f"127.0.2.{number + 1}:{free_port()}",
                "fleet_bucket_url": url,
                "fleet_s3_credentials_file": str(keys),
                "fleet_max_size": "100MB",
            }
            commands.append(start(settings))
            stack.callback(commands[-1].end)
        await asyncio.gather(*(asyncio.to_thread(one.wait_until_ready) for one in commands))
        database = redis.asyncio.Redis(port=redis_port)
        stack.push_async_callback(database.aclose)
        session = await stack.enter_async_context(aiohttp.ClientSession(auto_decompress=False))
        s3 = await stack.enter_async_context(S3(url, region="us-east-1", key_file=KeyFile(keys), tls=None))
        yield Two(hub, ceph, database, session, commands, Bucket(s3, name=NAME, bus=Events()), directory)


async def test_what_one_has_shared_the_other_has_without_upstream(two):
    digest, data = await two.blob()
    assert await two.get(0, digest) == data
    await until(lambda: two.in_index(digest))
    assert await two.in_bucket(digest)
    two.hub.reset_counters()
    assert await two.get(1, digest) == data
    assert two.hub.counters.blob_gets() == 0


async def test_a_redis_that_was_emptied_is_filled_again(two):
    digest, data = await two.blob()
    assert await two.get(0, digest) == data
    await until(lambda: two.in_index(digest))
    await two.database.delete(*(PREFIX + name for name in ("size", "lru", "bytes", "gen", "meta", f"at:{digest}")))
    two.hub.reset_counters()
    assert await two.get(1, digest) == data  # by the bucket, which is asked at once
    assert two.hub.counters.blob_gets() == 0
    await until(lambda: two.database.hexists(f"{PREFIX}meta", "complete"))
    sizes = [int(value.partition(b":")[0]) for value in (await two.database.hgetall(f"{PREFIX}size")).values()]
    assert sum(sizes) == int(await two.database.get(f"{PREFIX}bytes")) == 700_000 * len(sizes)


async def test_the_keys_are_in_no_log_no_process_and_not_in_redis(two):
    digest, _ = await two.blob()
    await two.get(0, digest)
    await until(lambda: two.in_index(digest))
    forms = forms_of(ACCESS, SECRET)
    read, found = files_with(forms, [two.directory], but=[])
    assert (read > 3, {Path(path).name for path in found}) == (True, {"s3-keys"})
    told = []
    for command in two.commands:
        told += [Path(f"/proc/{command.process.pid}/{name}").read_bytes() for name in ("cmdline", "environ")]
        told.append("\n".join(map(str, command.lines())).encode())
    told += [await two.database.dump(key) for key in await two.database.keys(f"{PREFIX}*")]
    assert [form for form in forms for text in told if form in text] == []


async def test_a_publisher_that_is_killed_leaves_nothing_half(two):
    """The last test of these: it ends the first process."""
    digest, data = await two.blob()
    two.ceph.signal("rgw", signal.SIGSTOP)
    try:
        assert await two.get(0, digest) == data
        await until(lambda: two.database.exists(f"{PREFIX}at:{digest}"))
        os.kill(two.commands[0].process.pid, signal.SIGKILL)
    finally:
        two.ceph.signal("rgw", signal.SIGCONT)
    assert await two.get(1, digest) == data
    assert two.hub.counters.blob_gets(digest) == 2
    await until(lambda: two.in_index(digest))
    assert await two.in_bucket(digest)
