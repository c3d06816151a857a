"""The store: what is in blobs/ is verified, within the cap, and goes least recently used first."""

import asyncio
import contextlib
import os
import sqlite3
import threading

import pytest

from registry_cache.model import events
from registry_cache.model.errors import DigestMismatch, NoSpace, StoreLocked, StoreTooNew
from registry_cache.model.oci import OCI_MANIFEST, Digest, Repository
from registry_cache.store.lock import DirectoryLock
from registry_cache.store.reading import SMALL_BYTES
from tests.cache import open_content

from .conftest import CAP, open_shelf


def content(seed: int, size: int = 100_000) -> bytes:
    return seed.to_bytes(4, "big") * (size // 4)


async def test_blob_is_served_as_it_was_stored(shelf):
    for size in (4, SMALL_BYTES + 4):
        digest = await shelf.put(content(1, size))
        blob = await shelf.store.open(digest)
        assert blob.size_bytes == size
        assert (blob.body is not None) == (size <= SMALL_BYTES)
        blob.close()
        blob.close()
    shelf.check()


async def test_wrong_content_is_never_published(shelf):
    digest = Digest.of(b"right")
    async with shelf.store.ingest(digest) as partial:
        await partial.expect(None)
        await partial.append(b"wrong")
        with pytest.raises(DigestMismatch):
            partial.verify()
        await partial.discard()
        partial.close()
    assert not await shelf.has(digest)
    assert shelf.used_bytes() == 0
    shelf.check()


async def test_least_recently_used_goes_first(shelf):
    digests = [await shelf.put(content(n)) for n in range(10)]
    assert await shelf.has(digests[0])
    await shelf.put(content(10))
    assert set(digests) - set(shelf.on_disk()) == {digests[1]}
    evicted = [event for event in shelf.emitted if isinstance(event, events.Evicted)]
    assert [(event.objects, event.size_bytes, event.reason) for event in evicted] == [(1, 100_000, "cap")]
    shelf.check()


async def test_order_of_use_survives_a_restart(tmp_path):
    async with open_shelf(tmp_path / "s") as shelf:
        digests = [await shelf.put(content(n)) for n in range(10)]
        assert await shelf.has(digests[0])
    async with open_shelf(tmp_path / "s") as shelf:
        await shelf.put(content(10))
        assert set(digests) - set(shelf.on_disk()) == {digests[1]}


async def test_open_and_pinned_blobs_stay(shelf):
    digests = [await shelf.put(content(n)) for n in range(10)]
    reader = await shelf.store.open(digests[0])
    await shelf.index.keep([digests[1]])
    await shelf.put(content(10))
    assert set(digests) - set(shelf.on_disk()) == {digests[2]}
    reader.close()
    await shelf.put(content(11))
    # Opening was a use: the reader's blob is not the oldest any more.
    assert set(digests) - set(shelf.on_disk()) == {digests[2], digests[3]}
    shelf.check()


async def test_room_is_reserved_before_it_is_written(shelf):
    async with contextlib.AsyncExitStack() as stack:
        partials = [await stack.enter_async_context(shelf.store.ingest(Digest.of(content(n)))) for n in range(3)]
        for partial in partials[:2]:
            stack.callback(partial.close)
            await partial.expect(450_000)
        stack.callback(partials[2].close)
        with pytest.raises(NoSpace):
            await partials[2].expect(200_000)
        assert shelf.store.totals().partial_bytes == 900_000
    assert shelf.store.totals().partial_bytes == 0


async def test_blob_larger_than_the_cap_is_refused_without_evicting(shelf):
    kept = await shelf.put(content(1))
    with pytest.raises(NoSpace):
        await shelf.put(content(2, CAP + 4))
    assert await shelf.has(kept)
    shelf.check()


async def test_interrupted_ingest_is_taken_up_again(tmp_path):
    whole = content(1)
    digest = Digest.of(whole)
    async with open_shelf(tmp_path / "s") as shelf:
        async with shelf.store.ingest(digest) as partial:
            await partial.expect(len(whole))
            await partial.append(whole[:60_000])
            partial.close()
        assert shelf.store.totals().partial_bytes == 60_000
    async with open_shelf(tmp_path / "s") as shelf:
        assert shelf.store.totals().partial_bytes == 60_000
        async with shelf.store.ingest(digest) as partial:
            assert partial.offset == 60_000
            await partial.expect(len(whole))
            await partial.append(whole[60_000:])
            partial.verify()
            await partial.publish()
            partial.close()
        assert await shelf.has(digest)
        shelf.check()


async def test_restart_keeps_what_comes_again(shelf):
    whole = content(1)
    async with shelf.store.ingest(Digest.of(whole)) as partial:
        await partial.expect(None)
        await partial.append(whole[:60_000])
        partial.restart()
        await partial.append(whole[:10_000])
        assert partial.offset == 60_000  # readers keep what they have seen
        await partial.append(whole[10_000:])
        partial.verify()
        await partial.discard()
        partial.close()
    shelf.check()


@pytest.mark.parametrize("rotten_at", [0, 9_999, 10_000, 59_999])
async def test_restart_throws_away_what_comes_otherwise(shelf, rotten_at):
    """A partial that changed on the disk is no reason to fetch anything twice: the new bytes are the blob."""
    whole, lost = content(1), []
    rotten = bytearray(whole[:60_000])
    rotten[rotten_at] ^= 1
    async with shelf.store.ingest(Digest.of(whole)) as partial:
        await partial.expect(None)
        await partial.append(rotten)
        partial.restart(lost.append)
        await partial.append(whole[:10_000])
        await partial.append(whole[10_000:])
        assert lost == [rotten_at]
        assert partial.offset == len(whole)
        partial.verify()
        await partial.publish()
        partial.close()
    assert await shelf.has(Digest.of(whole))
    shelf.check()


async def test_resume_goes_on_behind_a_restart_that_broke(shelf):
    whole = content(1)
    async with shelf.store.ingest(Digest.of(whole)) as partial:
        await partial.expect(None)
        await partial.append(whole[:60_000])
        partial.restart()
        await partial.append(whole[:10_000])
        partial.resume()
        await partial.append(whole[60_000:])
        partial.verify()
        await partial.discard()
        partial.close()
    shelf.check()


async def test_abandoned_partials_make_room_before_blobs(shelf):
    kept = await shelf.put(content(1, 500_000))
    async with shelf.store.ingest(Digest.of(content(2))) as partial:
        await partial.expect(None)
        await partial.append(content(2)[:90_000])
        partial.close()
    await shelf.put(content(3, 480_000))
    assert await shelf.has(kept)
    assert shelf.store.totals().partial_bytes == 0
    shelf.check()


async def test_second_ingest_of_a_digest_is_refused(shelf):
    digest = Digest.of(content(1))
    async with shelf.store.ingest(digest) as partial:
        with pytest.raises(NoSpace):
            async with shelf.store.ingest(digest):
                pytest.fail("two writers of one file")
        partial.close()


@pytest.mark.parametrize("size", [1000, 200_000])
@pytest.mark.parametrize("damage", ["truncated", "removed", "flipped"])
async def test_rot_is_found_when_it_is_opened(tmp_path, size, damage):
    async with open_shelf(tmp_path / "s") as shelf:
        digest = await shelf.put(content(1, size))
    path = tmp_path / "s" / "blobs" / "sha256" / digest.encoded[:2] / digest.encoded
    if damage == "truncated":
        os.truncate(path, size - 1)
    elif damage == "removed":
        path.unlink()
    else:
        path.write_bytes(content(2, size))
    async with open_shelf(tmp_path / "s") as shelf:
        if (damage, size) == ("flipped", 200_000):
            return  # right in size: the scrubber's case
        assert not await shelf.has(digest)
        assert shelf.store.totals().quarantined == int(damage != "removed")
        shelf.check()
        await shelf.put(content(1, size))
        assert await shelf.has(digest)
        shelf.check()


def manifest(seed: int) -> bytes:
    return b'{"schemaVersion":2,"layers":[],"annotations":{"seed":"%d"}}' % seed


async def test_counts_follow_what_comes_and_goes(shelf):
    """Blobs and manifests apart, whichever way they go; check() compares them with the disk."""
    first = [await shelf.put(manifest(n), OCI_MANIFEST) for n in range(3)]
    await shelf.put(b"")  # a blob without bytes is a blob
    shelf.check()
    await shelf.put(content(1, 990_000))
    await shelf.put(content(2, 990_000))  # evicts everything before it
    assert shelf.store.totals()[:4] == (990_000, 0, 1, 0)
    shelf.check()
    await shelf.put(manifest(0), OCI_MANIFEST)
    await shelf.put(manifest(1), OCI_MANIFEST)
    await shelf.store.quarantine(first[0], "for the test")
    shelf.check()
    shelf.store.path(first[1]).unlink()
    await shelf.store.missing(first[1])
    shelf.check()
    await shelf.put(manifest(2), OCI_MANIFEST)
    assert await shelf.store.purge(first) == (1, len(manifest(2)))
    shelf.check()
    await shelf.put(manifest(5))  # as a blob, and then as the manifest that it is
    await shelf.put(manifest(5), OCI_MANIFEST)
    shelf.check()


async def test_blobs_adopted_while_the_index_is_rebuilt_are_counted(shelf):
    put = [await shelf.put(content(1)), await shelf.put(manifest(1), OCI_MANIFEST)]
    await shelf.index.forget_blobs(put)
    shelf.store.room.stored = await shelf.index.totals()
    shelf.store._reading._memory.clear()
    shelf.index._doubt.reason = "for the test"
    shelf.store._reconciler.is_counted = False
    assert all([await shelf.has(digest) for digest in put])
    shelf.check()


@pytest.mark.parametrize("loss", ["deleted", "garbage", "emptied"])
async def test_index_is_rebuilt_from_the_blobs(tmp_path, loss):
    body = b'{"schemaVersion":2,"layers":[]}'
    async with open_shelf(tmp_path / "s") as shelf:
        digests = [await shelf.put(content(n)) for n in range(5)]
        manifest = await shelf.put(body, OCI_MANIFEST)
    path = tmp_path / "s" / "index.sqlite3"
    if loss == "deleted":
        path.unlink()
    else:
        path.write_bytes(b"garbage" * 1000 if loss == "garbage" else b"")
    async with open_shelf(tmp_path / "s") as shelf:
        shelf.check()
        assert all([await shelf.has(digest) for digest in digests])
        blob = await shelf.store.open(manifest)
        assert (blob.media_type, blob.body) == (OCI_MANIFEST, body)
        assert (shelf.store.totals().blobs, shelf.store.totals().manifests) == (5, 1)
        assert [event.blobs for event in shelf.emitted if isinstance(event, events.IndexRebuilt)] == [6]


async def test_index_that_breaks_while_running_costs_nothing_but_order(tmp_path):
    async with open_shelf(tmp_path / "s") as shelf:
        digest = await shelf.put(content(1))
        database = shelf.index._db
        await database._writer.run(database._close)
        shelf.index._blobs.clear()
        (tmp_path / "s" / "index.sqlite3").write_bytes(b"garbage" * 1000)
        (tmp_path / "s" / "index.sqlite3-wal").unlink(missing_ok=True)
        await database._writer.run(lambda: setattr(database, "_db", sqlite3.connect(database.path)))
        assert await shelf.has(digest)  # found in blobs/ although no row is left
        assert any(isinstance(event, events.StorageFailed) for event in shelf.emitted)
        await shelf.store._reconciler.reconcile()
        shelf.check()


async def test_newer_index_is_refused_and_kept(tmp_path):
    async with open_shelf(tmp_path / "s") as shelf:
        await shelf.put(content(1))
    db = sqlite3.connect(tmp_path / "s" / "index.sqlite3")
    db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(StoreTooNew, match="newer version"):
        async with open_shelf(tmp_path / "s"):
            pytest.fail("opened")


@pytest.mark.parametrize("made_before", [False, True])
def test_directory_is_made_private(tmp_path, made_before):
    if made_before:
        (tmp_path / "s").mkdir(mode=0o755)
    lock = DirectoryLock(tmp_path / "s")
    assert lock.warning == ""
    lock.release()
    assert (tmp_path / "s").stat().st_mode & 0o777 == 0o700


def test_directory_of_somebody_else_is_named_with_the_remedy(tmp_path, monkeypatch):
    (tmp_path / "s").mkdir(mode=0o755)
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    lock = DirectoryLock(tmp_path / "s")
    lock.release()
    assert lock.warning.endswith(f"chmod 0700 {tmp_path / 's'}")
    assert (tmp_path / "s").stat().st_mode & 0o777 == 0o755


async def test_files_are_nobody_elses(shelf):
    digest = await shelf.put(content(1))
    async with shelf.store.ingest(Digest.of(content(2))) as partial:
        await partial.expect(None)
        assert partial.path.stat().st_mode & 0o777 == 0o600
        partial.close()
    assert shelf.store.path(digest).stat().st_mode & 0o777 == 0o600


def test_directory_has_one_owner(tmp_path):
    lock = DirectoryLock(tmp_path / "s")
    with pytest.raises(StoreLocked, match=f"pid {os.getpid()}"):
        DirectoryLock(tmp_path / "s")
    lock.release()
    DirectoryLock(tmp_path / "s").release()


async def test_min_free_evicts_then_stops_storing(shelf, monkeypatch):
    digests = [await shelf.put(content(n)) for n in range(5)]
    free = 150_000

    def statvfs(_path):
        used = sum(shelf.on_disk().values())
        return os.statvfs_result((1, 1, 10_000_000, 0, free - used + 500_000, 0, 0, 0, 0, 255))

    monkeypatch.setattr(os, "statvfs", statvfs)
    shelf.store.files.min_free_bytes = 100_000
    new = await shelf.put(content(9))  # 150 kB free, 100 kB to stay free: half of it has to come from old blobs
    assert set(shelf.on_disk()) == {*digests[1:], new}
    free = -1_000_000
    with pytest.raises(NoSpace, match="MIN_FREE"):
        await shelf.put(content(10))
    assert shelf.on_disk()  # nothing is evicted for what would not fit all the same
    await shelf.store._evictor.relieve()
    assert shelf.on_disk() == {}  # others used up the disk: everything is given back
    shelf.check()


@pytest.mark.parametrize("moment", ["begun", "done"])
@pytest.mark.parametrize("step", range(1, 30))
async def test_cancellation_leaves_accounts_and_files_in_step(shelf, monkeypatch, step, moment):
    """Cancel an ingest at each of its steps off the loop: no room, file descriptor or file is lost."""
    await shelf.put(content(8, 300_000))
    await shelf.store._maintenance.aclose()  # its steps are not the ingest's
    steps = 0

    async def work() -> None:
        for seed in range(3):
            await shelf.put(content(seed, 400_000))

    def run(pool, call, *args):
        nonlocal steps
        steps += 1
        if steps == step and moment == "begun":
            task.cancel()
        future = run_in_executor(pool, call, *args)
        if steps == step and moment == "done":
            future.add_done_callback(lambda _: task.cancel())
        return future

    loop = asyncio.get_running_loop()
    run_in_executor = loop.run_in_executor
    monkeypatch.setattr(loop, "run_in_executor", run)
    task = asyncio.create_task(work())
    await asyncio.gather(task, return_exceptions=True)
    monkeypatch.undo()
    await shelf.store.settled()
    assert task.cancelled() or steps < step
    assert shelf.store.ingests == 0
    shelf.check()
    await shelf.put(content(7, 900_000))
    shelf.check()
    assert open_content(shelf.store.root) == []


async def test_pinned_blobs_stay_before_the_pins_are_worked_out_again(tmp_path):
    async with open_shelf(tmp_path / "s") as shelf:
        digest = await shelf.put(content(1, 400_000))
        await shelf.index.keep([digest])
    async with open_shelf(tmp_path / "s") as shelf:
        await shelf.put(content(2, 500_000))
        await shelf.put(content(3, 500_000))
        assert digest in shelf.on_disk()
        await shelf.index.keep([])  # the pin is gone
        await shelf.put(content(4, 500_000))
        await shelf.put(content(5, 500_000))
        assert digest not in shelf.on_disk()


@pytest.mark.parametrize("trouble", ["cancelled", "disk full"])
async def test_interrupted_flush_loses_neither_order_nor_names(tmp_path, trouble):
    repository = Repository.parse("library/flushed")
    async with open_shelf(tmp_path / "s") as shelf:
        digests = [await shelf.put(content(seed, 300_000)) for seed in range(3)]
        await shelf.index.flush()
        assert await shelf.has(digests[0])  # the first one is now the last one used
        shelf.index.link(repository, digests[0])
        if trouble == "cancelled":
            flush = asyncio.create_task(shelf.index.flush())
            await asyncio.sleep(0)  # it has begun
            flush.cancel()
            await asyncio.gather(flush, return_exceptions=True)
            assert flush.cancelled()
        else:
            await shelf.refuse_writes()
            await shelf.index.flush()
            await shelf.take_writes()
    async with open_shelf(tmp_path / "s") as shelf:
        await shelf.index.flush()
        assert [entry.digest for entry in await shelf.index.oldest(3)] == [*digests[1:], digests[0]]
        assert await shelf.index.repositories(repository.registry, "", 10) == [repository.name]


async def test_order_of_use_is_not_the_order_in_which_a_slow_disk_stores(shelf, monkeypatch):
    fsync, slow = os.fsync, threading.Event()
    calls = 0

    def first_is_slow(fd):
        nonlocal calls
        calls += 1
        if calls == 1:
            assert slow.wait(30)
        fsync(fd)

    monkeypatch.setattr(os, "fsync", first_is_slow)
    first = asyncio.create_task(shelf.put(content(1, 100_000)))
    async with asyncio.timeout(30):
        while not calls:
            await asyncio.sleep(0.01)
    second = await shelf.put(content(2, 100_000))
    slow.set()
    in_order = [await first, second]
    assert [entry.digest for entry in await shelf.index.oldest(2)] == in_order
