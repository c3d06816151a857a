"""The disk fails: the bytes flow all the same, hits are served, and it recovers by itself."""

import errno
import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from registry_cache.model import events
from registry_cache.model.oci import Digest
from tests.cache import run_cache
from tests.hub import Fault


@pytest.fixture
def small_disk(tmp_path):
    """A filesystem of 8 MB of its own."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small filesystem takes root")
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", disk], check=True)
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


async def image_of(hub, name, size=3_000_000):
    image = await hub.images.image(f"library/{name}", "1", [size])
    return image, f"/v2/library/{name}/blobs/{image.layers[0].digest}", hub.images.read(image.layers[0].digest)


def half_written(root: Path) -> list[Path]:
    """Files in blobs/ that are not what their name says."""
    files = [path for path in (root / "blobs").rglob("*") if path.is_file()]
    return [path for path in files if hashlib.sha256(path.read_bytes()).hexdigest() != path.name]


async def test_full_disk(start_cache, hub, small_disk):
    cache = await start_cache("disk/cache", max_size="1GB")
    _, kept_path, kept = await image_of(hub, "kept")
    await cache.get(kept_path)
    await cache.settled()
    (small_disk / "ballast").write_bytes(b"x" * (os.statvfs(small_disk).f_bavail * 4096 - 1_000_000))
    _, path, true = await image_of(hub, "full", 5_000_000)
    for _ in range(2):
        reply = await cache.get(path)
        assert reply.body == true
    await cache.settled()
    assert cache.seen(events.NotStored)[0].reason.startswith(("ENOSPC", "the filesystem"))
    unstored = (await cache.stats())["unstored"]
    told = cache.seen(events.NotStored)
    assert (unstored["objects"], unstored["reason"]) == (len(told), told[-1].reason)
    said = "1 content was not stored" if len(told) == 1 else f"{len(told)} contents were not stored"
    assert said in (await cache.get("/_stats", Accept="text/html")).body.decode()
    assert (await cache.get(kept_path)).body == kept
    image, _, _ = await image_of(hub, "full", 5_000_000)
    assert (await cache.manifest("library/full", "1")).headers["Docker-Content-Digest"] == image.digest
    assert half_written(cache.root) == []
    (small_disk / "ballast").unlink()
    assert (await cache.get(path)).body == true
    await cache.settled()
    hub.reset_counters()
    assert (await cache.get(path)).cache_status == "registry-cache; hit"
    assert half_written(cache.root) == []


async def test_full_disk_in_the_middle_of_a_transfer(start_cache, hub, small_disk):
    cache = await start_cache("disk/cache", max_size="1GB")
    _, path, true = await image_of(hub, "middle")
    hub.faults.add(Fault(service="cdn", stall_after_bytes=1_500_000, times=1))
    async with cache.session.get(cache.url + path) as response:
        body = await response.content.readexactly(1_000_000)
        (small_disk / "ballast").write_bytes(b"x" * (os.statvfs(small_disk).f_bavail * 4096))
        hub.faults.release()
        body += await response.read()
    assert body == true
    await cache.settled()
    assert cache.seen(events.NotStored)
    assert half_written(cache.root) == []


@pytest.fixture
def break_directory(small_disk):
    """Ways to make a cache directory unusable, and usable again."""

    def read_only(root: Path):
        subprocess.run(["mount", "--bind", root, root], check=True)
        subprocess.run(["mount", "-o", "remount,ro,bind", root], check=True)
        return lambda: subprocess.run(["umount", "-l", root], check=True)

    return {"read-only": read_only}


async def test_content_removed_by_hand_while_it_runs(start_cache, hub):
    """Documented as safe: what is asked for comes from upstream, and is stored again."""
    cache = await start_cache()
    _, path, true = await image_of(hub, "removed")
    await cache.get(path)
    await cache.settled()
    for name in ("blobs", "partials", "quarantine"):
        shutil.rmtree(cache.root / name)
    for expected in ("registry-cache; fwd=miss; stored", "registry-cache; hit"):
        reply = await cache.get(path)
        assert (reply.body, reply.cache_status) == (true, expected)
        await cache.settled()


async def test_a_read_only_disk_at_the_start_is_served_from(hub, tmp_path, break_directory):
    root = tmp_path / "disk" / "cache"
    image, kept_path, kept = await image_of(hub, "kept-for-reading")
    async with run_cache(root, hub) as cache:
        await cache.get(kept_path)
        await cache.manifest("library/kept-for-reading", "1")
        await cache.settled()
    repair = break_directory["read-only"](root)
    try:
        async with run_cache(root, hub) as cache:
            hub.reset_counters()
            assert (await cache.get(kept_path)).body == kept
            reply = await cache.manifest("library/kept-for-reading", "1")
            assert (reply.headers["Docker-Content-Digest"], reply.cache_status) == (image.digest, "registry-cache; hit")
            assert hub.counters.blob_gets() == 0
            _, path, true = await image_of(hub, "new-beside-read-only")
            reply = await cache.get(path)
            assert (reply.body, reply.cache_status) == (true, "registry-cache; fwd=bypass")
            assert (await cache.stats())["store"]["read_only"]
    finally:
        repair()


@pytest.mark.parametrize("trouble", ["read-only"])
async def test_directory_that_cannot_be_written(start_cache, hub, break_directory, trouble):
    cache = await start_cache("disk/cache")
    _, kept_path, kept = await image_of(hub, f"kept-{trouble}")
    await cache.get(kept_path)
    await cache.settled()
    repair = break_directory[trouble](cache.root)
    try:
        _, path, true = await image_of(hub, f"new-{trouble}")
        reply = await cache.get(path)
        assert (reply.body, reply.cache_status) == (true, "registry-cache; fwd=bypass")
        assert (await cache.get(kept_path)).body == kept
        assert cache.seen(events.NotStored)
    finally:
        repair()
    assert (await cache.get(path)).body == true
    await cache.settled()
    assert (await cache.get(path)).cache_status == "registry-cache; hit"


async def test_blob_truncated_while_it_is_sent(start_cache, hub):
    cache = await start_cache()
    image, path, true = await image_of(hub, "truncated", 30_000_000)
    await cache.get(path)
    await cache.settled()
    async with cache.session.get(cache.url + path) as response:
        body = await response.content.readexactly(100_000)
        os.truncate(cache.proxy.store.path(Digest(image.layers[0].digest)), 20_000_000)
        body += await response.read()
    assert body == true  # the rest came from upstream
    assert hub.counters.select(service="cdn")[-1].range == "bytes=20000000-29999999"
    assert (await cache.stats())["store"]["quarantined"] == 1
    again = await cache.get(path)
    assert (again.body, again.cache_status) == (true, "registry-cache; fwd=miss; stored")


async def test_read_error_is_answered_from_upstream(start_cache, hub, monkeypatch):
    cache = await start_cache()
    _, path, true = await image_of(hub, "eio", 5_000_000)
    await cache.get(path)
    await cache.settled()
    sendfile = os.sendfile

    def failing(out, fd, offset, count):
        if offset >= 2_000_000:
            raise OSError(errno.EIO, "Input/output error")
        return sendfile(out, fd, offset, min(count, 2_000_000 - offset))

    monkeypatch.setattr(os, "sendfile", failing)  # no disk here fails on demand
    reply = await cache.get(path)
    monkeypatch.undo()
    assert reply.body == true
    assert [event.digest for event in cache.seen(events.Quarantined)] == [path.rpartition("/")[2]]
    assert "Input/output error" in cache.seen(events.Request)[-1].error


async def test_blob_larger_than_the_cap_streams_through(start_cache, hub):
    cache = await start_cache(max_size="2MB")
    _, kept_path, _ = await image_of(hub, "below-the-cap", 1_000_000)
    await cache.get(kept_path)
    await cache.settled()
    _, path, true = await image_of(hub, "above-the-cap")
    for _ in range(2):
        reply = await cache.get(path)
        assert (reply.body, reply.cache_status) == (true, "registry-cache; fwd=bypass")
    part = await cache.get(path, Range="bytes=1000-1999")
    assert (part.status, part.body) == (206, true[1000:2000])
    assert (await cache.get(kept_path)).cache_status == "registry-cache; hit"  # nothing was evicted in vain
    stats = await cache.stats()
    assert (stats["store"]["size_bytes"], stats["store"]["partial_bytes"]) == (1_000_000, 0)
    assert stats["requests"]["bypass"] == 3


@pytest.mark.parametrize("framing", ["chunked", "close"])
async def test_blob_of_unknown_size(start_cache, hub, framing):
    """Room is made as it grows, by eviction too; what is larger than the cap streams through."""
    cache = await start_cache(max_size="4MB")
    _, old_path, _ = await image_of(hub, "old-blob", 2_000_000)
    await cache.get(old_path)
    await cache.settled()
    hub.faults.add(Fault(service="cdn", framing=framing))
    _, path, true = await image_of(hub, f"without-length-{framing}")
    assert (await cache.get(path)).body == true
    await cache.settled()
    assert (await cache.get(path)).cache_status == "registry-cache; hit"
    assert (await cache.stats())["store"]["evicted_objects"] == 1
    _, path, true = await image_of(hub, f"without-length-and-large-{framing}", 5_000_000)
    assert (await cache.get(path)).body == true
    await cache.settled()
    assert "more than the cap" in cache.seen(events.NotStored)[0].reason
    assert half_written(cache.root) == []
