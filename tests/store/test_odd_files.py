"""What somebody has put into the cache directory by hand is no file: nobody waits for it, and it does not stay."""

import asyncio
import os
import socket
from pathlib import Path

import pytest

from registry_cache.model import events
from registry_cache.model.bus import Events
from registry_cache.model.oci import Digest
from registry_cache.store.index import SqliteIndex
from registry_cache.store.scrub import Scrubber, find_rot
from tests.store.conftest import open_shelf
from tests.store.test_disk import content

LARGE = content(1, 100_000)
SECONDS = 20


def pipe(path: Path) -> None:
    os.mkfifo(path)


def folder(path: Path) -> None:
    path.mkdir()
    (path / "within").write_text("x")


def link_to_as_many_bytes(path: Path) -> None:
    other = path.parents[3] / "other"
    other.write_bytes(b"y" * len(LARGE))
    path.symlink_to(other)


def link_to_itself(path: Path) -> None:
    path.symlink_to(path)


def bound(path: Path) -> None:
    at = os.open(path.parent, os.O_RDONLY)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(f"/proc/self/fd/{at}/{path.name}")  # the path itself is longer than a socket's may be
    os.close(at)


KINDS = (pipe, folder, link_to_as_many_bytes, link_to_itself, bound)


@pytest.mark.parametrize("put", KINDS)
async def test_what_is_in_the_place_of_a_blob_is_not_served_and_gives_way_to_it(shelf, put):
    digest = await shelf.put(LARGE)
    path = shelf.store.path(digest)
    path.unlink()
    put(path)
    async with asyncio.timeout(SECONDS):
        assert not await shelf.has(digest)
        assert await shelf.put(LARGE) == digest
        blob = await shelf.store.open(digest)
    assert blob.size_bytes == len(LARGE)
    blob.close()
    assert path.read_bytes() == LARGE
    assert not path.is_symlink()
    shelf.check()


@pytest.mark.parametrize("put", KINDS)
async def test_what_is_in_the_place_of_a_blob_goes_with_it(shelf, put):
    digests = [await shelf.put(content(seed)) for seed in range(3)]
    path = shelf.store.path(digests[0])
    path.unlink()
    put(path)
    async with asyncio.timeout(SECONDS):
        assert (await shelf.store.purge(digests[:1]))[0] == 1
    assert not os.path.lexists(path)
    shelf.check()


@pytest.mark.parametrize("put", KINDS)
async def test_one_of_them_keeps_no_scrub_from_the_others(shelf, put):
    digests = [await shelf.put(content(seed, 100_000)) for seed in range(3)]
    odd, rotten = shelf.store.path(digests[0]), shelf.store.path(digests[1])
    odd.unlink()
    put(odd)
    rotten.write_bytes(b"z" * 100_000)
    for digest in digests:
        await shelf.index.verified(digest, 0.0)  # long ago
    scrubber = Scrubber(shelf.store, shelf.index, bytes_per_second=10**9, events=shelf.store._events)
    async with asyncio.timeout(SECONDS):
        await scrubber.scrub_some()
        await scrubber.scrub_some()
    await scrubber.aclose()
    assert digests[1] in {event.digest for event in shelf.emitted if isinstance(event, events.Quarantined)}


@pytest.mark.parametrize("put", KINDS)
def test_verify_calls_it_rot(tmp_path, put):
    path = tmp_path / "a" / "b" / "c" / "d" / "blob"
    path.parent.mkdir(parents=True)
    put(path)
    assert find_rot(path, Digest.of(LARGE))


@pytest.mark.parametrize("put", KINDS)
async def test_what_is_in_the_place_of_a_partial_is_neither_written_to_nor_in_the_way(shelf, put):
    digest = Digest.of(LARGE)
    await shelf.put(content(7))  # so that the folder is there
    path = shelf.store.root / "partials" / digest.replace(":", "-")
    path.parent.mkdir(exist_ok=True)
    other = shelf.store.root / "other"
    if put is link_to_as_many_bytes:
        other.write_bytes(b"y" * 10)
        path.symlink_to(other)
    else:
        put(path)
    async with asyncio.timeout(SECONDS):
        assert await shelf.put(LARGE) == digest
    assert await shelf.has(digest)
    assert not other.exists() or other.read_bytes() == b"y" * 10


@pytest.mark.parametrize("put", [pipe, bound])
@pytest.mark.parametrize("name", ["index.sqlite3", "names.journal", "index.doubt"])
async def test_what_is_in_the_place_of_the_indexs_files_does_not_keep_it_from_opening(tmp_path, put, name):
    put(tmp_path / name)
    async with asyncio.timeout(SECONDS), open_shelf(tmp_path) as shelf:
        assert shelf.index.writable
        assert await shelf.has(await shelf.put(LARGE))
    assert (tmp_path / f"{name}.no-file").exists()


async def test_an_index_that_is_a_link_to_another_disk_stays_one(tmp_path):
    (tmp_path / "ssd").mkdir()
    (tmp_path / "index.sqlite3").symlink_to(tmp_path / "ssd" / "index.sqlite3")
    index = SqliteIndex(tmp_path / "index.sqlite3", events=Events())
    await index.start()
    await index.aclose()
    assert (tmp_path / "ssd" / "index.sqlite3").is_file()


async def test_a_folder_that_cannot_be_read_keeps_no_transfer_waiting(tmp_path, monkeypatch):
    """After a crash everything is counted; until that is done a transfer waits, but not for what does not end."""
    async with open_shelf(tmp_path) as shelf:
        digest = await shelf.put(LARGE)
        await shelf.index.raise_doubt("for the test")
    shelf.emitted.clear()
    blobs = tmp_path / "blobs"
    blobs.rename(tmp_path / "aside")
    blobs.write_text("no folder")
    monkeypatch.setattr("registry_cache.store.condition._KNOWN_SECONDS", 3600.0)
    async with asyncio.timeout(SECONDS), open_shelf(tmp_path, counted=False) as shelf:
        await shelf.store.maintain()
        assert "cannot be counted" in shelf.store.read_only
        async with shelf.store.ingest(digest) as partial:
            with pytest.raises(Exception, match="cannot be counted"):
                await partial.expect(len(LARGE))
        blobs.unlink()
        (tmp_path / "aside").rename(blobs)
        await shelf.store.maintain()
        assert not shelf.store.read_only
        assert await shelf.has(digest)
    told = [type(event) for event in shelf.emitted if isinstance(event, events.StoreReadOnly | events.StoreWritable)]
    assert told == [events.StoreReadOnly, events.StoreWritable]
