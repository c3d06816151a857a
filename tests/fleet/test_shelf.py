"""Blobs on their way into the bucket."""

import hashlib

import pytest

from registry_cache.fleet import shelf as shelf_module
from registry_cache.fleet.bucket import Bucket
from registry_cache.fleet.counts import Counts
from registry_cache.fleet.s3 import S3
from registry_cache.fleet.s3_signing import KeyFile
from registry_cache.fleet.shelf import Shelf
from registry_cache.fleet.tier_index import TierIndex
from registry_cache.model import events
from registry_cache.model.oci import Digest
from tests.fleet.test_following import until


class Blob:
    """See OpenBlob: one in memory."""

    media_type = None

    def __init__(self, digest, data):
        self.digest, self.size_bytes, self.body, self.closed = digest, len(data), data, True

    async def send(self, sink, start, stop):
        await sink.write(self.body[start:stop])

    def close(self):
        self.closed = True


class Bench:
    def __init__(self, bucket, index, bus):
        self.bucket, self.index, self.counts, self.blobs = bucket, index, Counts(), {}
        self.shelf = Shelf(bucket, index, open_blob=self._open, cap_bytes=10**9, counts=self.counts, bus=bus)

    async def _open(self, digest):
        blob = self.blobs[digest]
        blob.closed = False
        return blob

    async def share(self, data, digest=None):
        digest = digest or Digest.of(data)
        self.blobs[digest] = Blob(digest, data)
        self.shelf.share(digest)
        self.shelf.share(digest)
        await until(lambda: not len(self.shelf))
        assert self.blobs[digest].closed
        return digest


@pytest.fixture
async def bench(stand_in, credentials, fleet_name, replicas, monkeypatch):
    monkeypatch.setattr(shelf_module, "_PAUSE_SECONDS", 0.0)
    one = replicas[0]
    async with S3(stand_in.url, region="us-east-1", key_file=KeyFile(credentials), tls=None) as s3:
        made = Bench(Bucket(s3, name=fleet_name, bus=one.bus), TierIndex(one.redis, name=fleet_name), one.bus)
        made.seen = one.seen
        yield made
        await made.shelf.aclose()


async def test_it_is_put_once(bench, stand_in):
    digest = await bench.share(b"layer")
    await bench.share(b"layer")
    assert stand_in.objects == {bench.bucket.key(digest): b"layer"}
    assert (stand_in.count("PUT"), bench.counts.shared, bench.counts.shared_bytes) == (1, 1, 5)
    assert (await bench.index.turn("none")).size_bytes == 5


async def test_bytes_that_rotted_here_do_not_get_there(bench, stand_in):
    digest = await bench.share(b"rotten", Digest.of(b"fresh!"))
    assert (stand_in.objects, stand_in.count("PUT")) == ({}, 1)
    assert [event.digest for event in bench.seen if isinstance(event, events.FleetNotShared)] == [digest]
    assert (await bench.index.turn("none")).size_bytes == 0


async def test_trouble_is_tried_three_times_and_no_more(bench, stand_in):
    stand_in.refuses = {"PUT": (500, "InternalError")}
    await bench.share(b"layer")
    assert (stand_in.count("PUT"), bench.counts.not_shared) == (3, 1)
    await bench.share(b"another")  # the store is left alone for some seconds
    assert stand_in.count("PUT") == 3


async def test_a_store_that_will_not_have_it_is_asked_once(bench, stand_in):
    stand_in.refuses = {"PUT": (403, "AccessDenied")}
    await bench.share(b"layer")
    assert (stand_in.count("PUT"), bench.bucket.writing.trouble) == (1, "the store answered 403 AccessDenied")


async def test_another_algorithm_is_checked_here_and_signed_by_the_one_that_stores_know(bench, stand_in):
    data = b"x" * 3_000_000
    digest = await bench.share(data, Digest.of(data, "sha512"))
    assert stand_in.objects == {bench.bucket.key(digest): data}
    assert f"x-amz-content-sha256: {hashlib.sha256(data).hexdigest()}" in stand_in.heads
    await bench.share(b"rotten", Digest.of(b"fresh!", "sha512"))
    assert len(stand_in.objects) == 1


async def test_what_is_too_large_for_one_goes_in_parts(bench, stand_in, monkeypatch):
    monkeypatch.setattr(shelf_module, "ONE_PUT_BYTES", 1000)
    monkeypatch.setattr(shelf_module, "PART_BYTES", 1500)
    data = bytes(range(256)) * 16
    digest = await bench.share(data)
    assert stand_in.objects == {bench.bucket.key(digest): data}
    assert stand_in.count("PUT") == 3


@pytest.mark.parametrize("trouble", ["rot", "store"])
async def test_of_parts_that_are_wrong_nothing_stays(bench, stand_in, monkeypatch, trouble):
    monkeypatch.setattr(shelf_module, "ONE_PUT_BYTES", 2)
    if trouble == "store":
        stand_in.refuses = {"PUT": (500, "InternalError")}
    await bench.share(b"rotten", Digest.of(b"fresh!" if trouble == "rot" else b"rotten"))
    assert (stand_in.objects, stand_in.uploads, bench.counts.not_shared) == ({}, {}, 1)


async def test_without_redis_nothing_is_put(bench, stand_in, replicas, monkeypatch):
    replicas[0].redis.trouble, replicas[0].redis._retry_at = "down", 1e12
    await bench.share(b"layer")
    assert stand_in.count("PUT") == 0
