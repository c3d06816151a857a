"""Real clients, a real replica, a real radosgw: who is sent to the bucket follows, and gets right bytes."""

import asyncio
import contextlib
import hashlib
import subprocess

import pytest
import pytest_asyncio
import redis.asyncio

from registry_cache.model.oci import Digest
from tests.e2e.command import environment, free_port, start
from tests.e2e.dockerd import require_daemons, running_dockerd
from tests.fleet.store import ACCESS, SECRET
from tests.hub.hub import Hub
from tests.proof.leaks import files_with

pytestmark = pytest.mark.asyncio(loop_scope="module")
NAME = "redirecting"
REPOSITORY = "library/redirected"
LEAST = 200_000


class Pair:
    """One replica that brings everything into the bucket, and one that redirects."""

    def __init__(self, hub, database, first, second, directory):
        self.hub, self.redis, self.first, self.second, self.directory = hub, database, first, second, directory

    async def bring(self, *digests, repository=REPOSITORY):
        for digest in digests:
            assert (await asyncio.to_thread(self.first.blob, repository, digest)).status == 200
        async with asyncio.timeout(30):
            for digest in digests:
                while not await self.redis.hexists(f"{{rc1:{NAME}}}:size", bytes.fromhex(Digest(digest).encoded)):
                    await asyncio.sleep(0.02)
        self.hub.reset_counters()

    def sent_there(self):
        """What clients were sent to the bucket for."""
        return [line["digest"] for line in self.second.settled() if line["status"] == 307]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pair(ceph, origin, redis_port, tmp_path_factory):
    directory = tmp_path_factory.mktemp("redirecting")
    (directory / "key").write_text("k" * 40)
    keys = directory / "s3-keys"
    keys.write_text(f"[default]\naws_access_key_id={ACCESS}\naws_secret_access_key={SECRET}\n")
    url = await ceph.bucket(keys)
    async with contextlib.AsyncExitStack() as stack:
        hub = await stack.enter_async_context(Hub.start(origin))
        (directory / "pat").write_text(hub.account.pat)
        commands = []
        for number in range(2):
            settings = {
                "listen": f"127.0.0.1:{free_port()}",
                "cache_dir": str(directory / str(number) / "cache"),
                "upstream": hub.url,
                "ca_file": str(hub.ca_file),
                "username": hub.account.username,
                "password_file": str(directory / "pat"),
                "min_free": "0",
                "log_level": "debug",
                "fleet_redis_url": f"redis://127.0.0.1:{redis_port}",
                "fleet_name": NAME,
                "fleet_key_file": str(directory / "key"),
                "fleet_listen": f"127.0.3.{number + 1}:{free_port()}",
                "fleet_bucket_url": url,
                "fleet_s3_credentials_file": str(keys),
                "fleet_max_size": "100MB",
            }
            commands.append(start(settings | ({"fleet_redirect": str(LEAST)} if number else {})))
            stack.callback(commands[-1].end)
        await asyncio.gather(*(asyncio.to_thread(one.wait_until_ready) for one in commands))
        database = redis.asyncio.Redis(port=redis_port)
        stack.push_async_callback(database.aclose)
        yield Pair(hub, database, *commands, directory)


async def run(*words):
    done = await asyncio.to_thread(
        subprocess.run, words, check=False, capture_output=True, timeout=60, env=environment()
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


async def test_curl_follows(pair):
    require_daemons("curl", root=False)
    image = await pair.hub.images.image(REPOSITORY, "curl", [LEAST])
    [layer] = image.layers
    await pair.bring(layer.digest)
    await asyncio.to_thread(pair.second.manifest, REPOSITORY, "curl")  # it proves its layers
    body = await run("curl", "-sSfL", f"{pair.second.url}/v2/{REPOSITORY}/blobs/{layer.digest}")
    assert f"sha256:{hashlib.sha256(body).hexdigest()}" == layer.digest
    assert layer.digest in pair.sent_there()
    assert pair.hub.counters.blob_gets() == 0


async def test_skopeo_follows(pair, tmp_path):
    require_daemons("skopeo", root=False)
    image = await pair.hub.images.image(REPOSITORY, "skopeo", [LEAST + 1, 1000, LEAST + 2])
    await pair.bring(*(blob.digest for blob in image.blobs))
    source = f"docker://{pair.second.url.removeprefix('http://')}/{REPOSITORY}:skopeo"
    await run("skopeo", "--tmpdir", str(tmp_path), "copy", "--src-tls-verify=false", source, f"dir:{tmp_path / 'to'}")
    for layer in image.layers:
        assert hashlib.sha256((tmp_path / "to" / Digest(layer.digest).encoded).read_bytes()).hexdigest() in layer.digest
    large = {layer.digest for layer in image.layers if layer.size_bytes >= LEAST}
    assert large <= set(pair.sent_there())
    assert pair.hub.counters.blob_gets() == 0


@pytest.fixture(scope="module")
def docker(pair):
    with running_dockerd(**{"registry-mirrors": [pair.second.url]}) as daemon:
        yield daemon


async def test_dockerd_follows(pair, docker):
    image = await pair.hub.images.runnable("library/redirected-docker", "1", [300_000, 5])
    await pair.bring(*(blob.digest for blob in image.blobs), repository=image.repository)
    assert "Pull complete" in await asyncio.to_thread(docker.run, "pull", "redirected-docker:1")
    words = ("run", "--rm", "--network", "none", "redirected-docker:1", "echo", "it runs")
    assert await asyncio.to_thread(docker.run, *words) == "it runs"
    large = {layer.digest for layer in image.layers if layer.size_bytes >= LEAST}
    assert large
    assert large <= set(pair.sent_there())
    assert pair.hub.counters.blob_gets() == 0


async def test_no_address_of_a_blob_is_in_a_log_or_a_file_or_in_redis(pair):
    """The last of these: it looks at what all of them have left."""
    image = await pair.hub.images.image(REPOSITORY, "told", [LEAST])
    await pair.bring(*(blob.digest for blob in image.blobs))
    await asyncio.to_thread(pair.second.manifest, REPOSITORY, "told")
    head = await run(
        "curl", "-sS", "-o", "/dev/null", "-D", "-", f"{pair.second.url}/v2/{REPOSITORY}/blobs/{image.layers[0].digest}"
    )
    assert b"X-Amz-Signature=" in head
    assert image.layers[0].digest in pair.sent_there()
    read, found = files_with([b"X-Amz-", b"x-amz-"], [pair.directory], but=[])
    told = ["\n".join(map(str, command.lines())).encode() for command in (pair.first, pair.second)]
    told += [await pair.redis.dump(key) for key in await pair.redis.keys(f"*{NAME}*")]
    assert (read > 3, found, [text for text in told if b"X-Amz-" in text]) == (True, [], [])
