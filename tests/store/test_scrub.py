"""Rot is found by re-hashing, quarantined, and never served."""

import asyncio
import os

import msgspec
from click.testing import CliRunner

from registry_cache.cli import cli
from registry_cache.model import events
from registry_cache.model.bus import Events
from registry_cache.model.oci import Digest
from registry_cache.store.scrub import Scrubber, find_rot, stored_files

SIZE = 2_500_000


async def flip(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


async def test_scrub_quarantines_what_is_rotten(shelf):
    shelf.store.room.cap_bytes = 10_000_000
    good, bad = [await shelf.put(os.urandom(SIZE)) for _ in range(2)]
    await flip(shelf.store.path(bad), 2_000_000)
    for digest in (good, bad):
        await shelf.index.verified(digest, 0.0)  # long ago
    bus = Events()
    scrubber = Scrubber(shelf.store, shelf.index, bytes_per_second=1_000_000_000, events=bus)
    assert await scrubber.scrub_some() == 2
    assert await scrubber.scrub_some() == 0
    await scrubber.aclose()
    assert await shelf.has(good)
    assert not await shelf.has(bad)
    assert (shelf.store.root / "quarantine" / bad.replace(":", "-")).exists()
    assert [event.digest for event in shelf.emitted if isinstance(event, events.Quarantined)] == [bad]
    shelf.check()


async def test_scrub_can_be_stopped_in_the_middle_of_a_blob(shelf):
    shelf.store.room.cap_bytes = 10_000_000
    digest = await shelf.put(os.urandom(SIZE))
    await shelf.index.verified(digest, 0.0)
    scrubber = Scrubber(shelf.store, shelf.index, bytes_per_second=1, events=Events())
    scrubber.start()
    await asyncio.sleep(0)
    await asyncio.wait_for(scrubber.aclose(), 5)
    assert await shelf.has(digest)  # unfinished is not rotten


async def test_tiny_blobs_are_not_hashed_at_full_speed(shelf, monkeypatch):
    for number in range(3):
        await shelf.index.verified(await shelf.put(bytes([number])), 0.0)
    scrubber, waited = Scrubber(shelf.store, shelf.index, bytes_per_second=1000, events=Events()), []
    monkeypatch.setattr(scrubber._stopping, "wait", waited.append)
    assert await scrubber.scrub_some() == 3
    assert sum(waited) > 60  # seconds; by their bytes alone it would be three milliseconds


async def test_find_rot_tells_what_is_wrong(shelf):
    digest = await shelf.put(b"content")
    path = shelf.store.path(digest)
    assert find_rot(path, digest) is None
    path.write_bytes(b"contend")
    assert "hashes to sha256:" in find_rot(path, digest)
    assert [found for found, _ in stored_files(shelf.store.root)] == [digest]


async def run(*arguments):
    return await asyncio.to_thread(CliRunner().invoke, cli, ["verify", *map(str, arguments)])


async def test_verify_command(start_cache, hub, tmp_path):
    image = await hub.images.image("library/verified", "1", [SIZE, 100])
    cache = await start_cache()
    await cache.manifest("library/verified", "1")
    for blob in image.blobs:
        await cache.blob("library/verified", blob.digest)
    await cache.settled()
    await cache.proxy.index.flush()
    result = await run("--cache-dir", cache.root)
    assert (result.exit_code, result.stdout.split(" (")[0]) == (0, "4 of 4 blobs")
    rotten = [Digest(image.digest), Digest(image.layers[0].digest)]
    for digest in rotten:
        await flip(cache.proxy.store.path(digest), 10)
    result = await run("--cache-dir", cache.root, "--json")
    report = msgspec.json.decode(result.stdout)
    assert result.exit_code == 1
    assert (report["blobs"], sorted(rot["digest"] for rot in report["rotten"])) == (4, sorted(rotten))
    # Beside the running cache, which is asked where it listens: what this command's own settings say does not count.
    config = tmp_path / "config.toml"
    config.write_text('listen = "127.0.0.1:9"\n')
    result = await run("--cache-dir", cache.root, "--repair", "--config", config)
    assert result.exit_code == 1
    assert result.stdout.count("rot repaired") == 2
    assert "; 2 of the others repaired" in result.stdout
    await cache.settled()
    # The manifest is right in the cache's memory, and so need not come back from upstream yet.
    assert cache.proxy.store.path(rotten[1]).read_bytes() == hub.images.read(rotten[1])
    assert (await cache.manifest("library/verified", image.digest)).body == hub.images.read(image.digest)
    assert (await run("--cache-dir", cache.root)).exit_code == 0


def test_verify_without_a_cache_says_so(tmp_path):
    result = CliRunner().invoke(cli, ["verify", "--cache-dir", str(tmp_path)])
    assert result.exit_code == 2
    assert "there is no cache in" in result.stderr
