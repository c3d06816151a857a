"""Moments that no test of one thing at a time meets: a disk or an index that refuses, two things that cross."""

import asyncio
import contextlib
import os
import shutil
import threading

import pytest

from registry_cache.model import events
from registry_cache.model.bus import Events
from registry_cache.model.errors import IndexRefused, NoSpace, ReadFailed
from registry_cache.model.oci import OCI_MANIFEST, Digest
from registry_cache.store.layout import file_name
from registry_cache.store.scrub import Scrubber

from .conftest import open_shelf
from .holding import Held
from .test_disk import content, manifest

SECONDS = 20  # a step that does not wait is done long before


async def filled(shelf, number: int = 10) -> list[Digest]:
    return [await shelf.put(content(seed)) for seed in range(number)]


# --- an index that refuses --------------------------------------------------------------------------------------


async def test_an_index_that_refuses_makes_the_store_read_only_until_it_can_be_written(shelf):
    digests = await filled(shelf)
    await shelf.refuse_writes()
    for seed in (20, 21):
        with pytest.raises(NoSpace):
            await shelf.put(content(seed))
    await shelf.store.maintain()
    assert len(shelf.on_disk()) >= 9  # one had gone before the index was found to refuse
    assert shelf.store.totals().blobs == len(shelf.on_disk())
    assert shelf.store.totals().read_only
    assert await shelf.has(digests[-1])
    assert len([event for event in shelf.emitted if isinstance(event, events.StoreReadOnly)]) == 1
    await shelf.take_writes()
    await shelf.store.maintain()
    assert not shelf.store.totals().read_only
    assert len([event for event in shelf.emitted if isinstance(event, events.StoreWritable)]) == 1
    assert await shelf.has(await shelf.put(content(22)))
    shelf.check()


async def test_eviction_counts_what_it_removed_and_stops_when_that_is_enough(shelf, monkeypatch):
    await filled(shelf)

    async def refuses(_):
        raise IndexRefused("for the test")

    monkeypatch.setattr(shelf.index, "forget_blobs", refuses)
    await shelf.put(content(20))
    await shelf.store.settled()
    assert len(shelf.on_disk()) == 10
    assert shelf.index.doubt
    shelf.check()


async def test_a_full_disk_is_relieved_although_the_index_cannot_be_written(shelf, monkeypatch):
    """It cannot because the disk is full."""
    await filled(shelf)
    await shelf.refuse_writes()

    def statvfs(_path):
        used = sum(shelf.on_disk().values())
        return os.statvfs_result((1, 1, 10_000_000, 0, 1_000_000 - used, 0, 0, 0, 0, 255))

    monkeypatch.setattr(os, "statvfs", statvfs)
    shelf.store.files.min_free_bytes = 250_000
    await shelf.store.maintain()
    assert len(shelf.on_disk()) == 7
    await shelf.store.maintain()
    assert len(shelf.on_disk()) == 7
    await shelf.take_writes()
    await shelf.store.maintain()
    shelf.check()
    assert len(await shelf.index.oldest(100)) == 7


async def test_rows_that_could_not_be_deleted_leave_doubt_behind_a_clean_stop(tmp_path):
    async with open_shelf(tmp_path / "s") as shelf:
        digests = await filled(shelf)
        await shelf.refuse_writes()
        await shelf.store.purge(digests[:3])
        shelf.check()
    async with open_shelf(tmp_path / "s") as shelf:
        assert set(shelf.on_disk()) == set(digests[3:])
        assert len(await shelf.index.oldest(100)) == 7
        shelf.check()


async def test_a_file_without_its_row_never_comes_to_be(shelf, monkeypatch):
    async def refuses(_):
        raise IndexRefused("for the test")

    monkeypatch.setattr(shelf.index, "add_blob", refuses)
    with pytest.raises(NoSpace, match="for the test"):
        await shelf.put(content(1))
    assert shelf.used_bytes() == 0
    shelf.check()


async def test_an_older_file_keeps_its_row_when_its_successor_cannot_be_placed(shelf, monkeypatch):
    digest = await shelf.put(content(1))

    async def place(_source, _target):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(shelf.store.files, "place", place)
    with pytest.raises(NoSpace):
        await shelf.put(content(1))
    await shelf.store.settled()
    assert await shelf.index.blob(digest)
    shelf.check()


async def test_no_first_byte_waits_for_the_index_to_write(shelf, monkeypatch):
    await filled(shelf)
    held = [Held(monkeypatch, shelf.index, name) for name in ("add_blob", "forget_blobs", "flush")]
    async with asyncio.timeout(SECONDS), shelf.store.ingest(Digest.of(content(20))) as partial:
        await partial.expect(100_000)
        await partial.append(content(20))
        await partial.discard()
        partial.close()
    for step in held:
        step.go_on.set()
    assert held[1].calls == 1


# --- two things that cross --------------------------------------------------------------------------------------


@pytest.mark.parametrize("small", [True, False])
async def test_what_is_being_purged_does_not_come_back_through_memory(shelf, monkeypatch, small):
    body = manifest(1) if small else content(1)
    digest = await shelf.put(body, OCI_MANIFEST if small else None)
    reader = await shelf.store.open(digest)
    held = Held(monkeypatch, shelf.store.files, "remove")
    purge = asyncio.create_task(shelf.store.purge([digest]))
    await held.reached.wait()
    assert shelf.store.at_hand(digest) is None
    shelf.store.remember(digest, body, OCI_MANIFEST)  # from an answer that came before
    held.go_on.set()
    assert await purge == (1, len(body))
    reader.close()
    assert shelf.store.at_hand(digest) is None
    assert not await shelf.has(digest)
    shelf.check()


async def test_what_is_on_its_way_in_when_it_is_purged_is_not_stored(shelf):
    digest = Digest.of(content(1))
    async with shelf.store.ingest(digest) as partial:
        await partial.expect(100_000)
        await partial.append(content(1))
        await shelf.store.purge([digest])
        with pytest.raises(NoSpace, match="purged"):
            await partial.publish()
        partial.close()
    assert shelf.used_bytes() == 0
    assert await shelf.has(await shelf.put(content(1)))  # asked for later
    shelf.check()


class Failing:
    """A client's connection that finds the file cut."""

    async def send_file(self, _fd, _start, _stop):
        raise ReadFailed("the file ends at 0", offset=0)


async def test_two_readers_of_a_cut_file_quarantine_it_once_and_not_its_successor(shelf):
    digest = await shelf.put(content(1))
    fast, slow = [await shelf.store.open(digest) for _ in range(2)]
    os.truncate(shelf.store.path(digest), 10)
    with pytest.raises(ReadFailed):
        await fast.send(Failing(), 0, 100_000)
    await shelf.put(content(1))  # pulled anew
    with pytest.raises(ReadFailed):
        await slow.send(Failing(), 0, 100_000)
    fast.close()
    slow.close()
    assert await shelf.has(digest)
    assert shelf.store.totals().quarantined == 1
    shelf.check()


async def test_a_scrub_does_not_quarantine_what_was_pulled_anew_while_it_hashed(shelf, monkeypatch):
    digest = await shelf.put(content(1))
    shelf.store.path(digest).write_bytes(content(2))
    await shelf.index.verified(digest, 0.0)
    scrubber = Scrubber(shelf.store, shelf.index, bytes_per_second=1_000_000_000, events=Events())
    held = Held(monkeypatch, shelf.store, "quarantine")
    scrub = asyncio.create_task(scrubber.scrub_some())
    await held.reached.wait()
    await shelf.store.purge([digest])
    await shelf.put(content(1))
    held.go_on.set()
    await scrub
    await scrubber.aclose()
    assert await shelf.has(digest)
    assert shelf.store.totals().quarantined == 0
    shelf.check()


async def test_a_file_that_gets_shorter_on_its_way_into_quarantine_is_counted_once(shelf, monkeypatch):
    """Its row cannot be read: both accounts go by the file."""
    digest = await shelf.put(b"rotten" * 100)
    original = shelf.store.files.look

    async def unreadable(_digests):
        raise IndexRefused("for the test")

    async def cut_behind(path):
        seen = await original(path)
        os.truncate(path, seen.size_bytes - 1)
        return seen

    monkeypatch.setattr(shelf.store._rows, "of", unreadable)
    monkeypatch.setattr(shelf.store.files, "look", cut_behind)
    before_bytes = shelf.store.room.total_bytes
    await shelf.store.quarantine(digest, "for the test")
    assert shelf.store.room.total_bytes <= before_bytes


async def test_a_partial_that_is_asked_for_while_it_is_evicted_is_stored(shelf, monkeypatch):
    await shelf.put(content(3, 500_000))
    digest = Digest.of(content(1))
    async with shelf.store.ingest(digest) as partial:
        await partial.expect(100_000)
        await partial.append(content(1)[:60_000])
        partial.close()
    held = Held(monkeypatch, shelf.store.files, "remove")
    other = asyncio.create_task(shelf.put(content(2, 450_000)))
    await held.reached.wait()
    again = asyncio.create_task(shelf.put(content(1)))
    await asyncio.sleep(0)
    held.go_on.set()
    await asyncio.gather(other, again)
    assert await shelf.has(digest)
    shelf.check()


async def test_what_is_taken_up_again_is_no_victim(shelf):
    digest = Digest.of(content(1))
    async with shelf.store.ingest(digest) as partial:
        await partial.expect(100_000)
        await partial.append(content(1)[:60_000])
        partial.close()
    async with shelf.store.ingest(digest) as partial:
        with pytest.raises(NoSpace):
            await shelf.put(content(2, 960_000))
        await partial.expect(100_000)
        await partial.append(content(1)[60_000:])
        partial.verify()
        await partial.publish()
        partial.close()
    assert await shelf.has(digest)
    shelf.check()


async def test_what_is_taken_up_while_another_partial_is_evicted_is_no_victim(shelf, monkeypatch):
    """Which may go was asked before the first of them went."""
    await shelf.put(content(3, 500_000))
    digests = [Digest.of(content(seed)) for seed in (1, 2)]
    for digest, seed in zip(digests, (1, 2), strict=True):
        async with shelf.store.ingest(digest) as partial:
            await partial.expect(100_000)
            await partial.append(content(seed)[:60_000])
            partial.close()
    held = Held(monkeypatch, shelf.store.files, "remove", when=lambda paths: file_name(digests[0]) in paths[0])
    other = asyncio.create_task(shelf.put(content(4, 500_000)))
    await held.reached.wait()
    async with shelf.store.ingest(digests[1]) as partial:
        held.go_on.set()
        await other
        await partial.expect(100_000)
        await partial.append(content(2)[partial.offset :])
        partial.verify()
        await partial.publish()
        partial.close()
    assert await shelf.has(digests[1])
    shelf.check()


async def test_room_that_is_made_for_one_is_not_taken_by_another(shelf, monkeypatch):
    await filled(shelf)
    held = Held(monkeypatch, shelf.store.files, "remove")
    puts = [asyncio.create_task(shelf.put(content(20 + number, 400_000))) for number in range(2)]
    await held.reached.wait()
    puts += [asyncio.create_task(shelf.put(content(30 + number, 40_000))) for number in range(5)]
    held.go_on.set()
    await asyncio.gather(*puts)
    shelf.check()


async def test_a_small_one_does_not_take_what_is_being_made_for_a_large_one(shelf, monkeypatch):
    """The large one has each byte as soon as it is free."""
    await filled(shelf)
    async with contextlib.AsyncExitStack() as stack:
        large, small = [await stack.enter_async_context(shelf.store.ingest(Digest.of(bytes([n])))) for n in range(2)]
        remove, removed = shelf.store.files.remove, 0

        async def remove_and_ask(paths):
            nonlocal removed
            await remove(paths)
            removed += 1
            assert shelf.store.room.spare_bytes == 0

        monkeypatch.setattr(shelf.store.files, "remove", remove_and_ask)
        await large.expect(900_000)
        assert removed > 1
        monkeypatch.undo()
        with pytest.raises(NoSpace):
            await small.expect(200_000)
        large.close()
        small.close()


async def test_nobodys_bytes_wait_for_anothers_fsync(shelf, monkeypatch):
    go_on = threading.Event()
    monkeypatch.setattr(os, "fsync", lambda _: go_on.wait(60))
    puts = [asyncio.create_task(shelf.put(content(seed, 10_000))) for seed in range(12)]
    try:
        async with asyncio.timeout(SECONDS):
            while shelf.store.room.unwritten_bytes or shelf.store.room.partial_bytes < 120_000:
                await asyncio.sleep(0.01)  # each has its bytes, and none is published
            async with shelf.store.ingest(Digest.of(content(20))) as partial:
                await partial.expect(100_000)
                await partial.append(content(20))
                await partial.discard()
                partial.close()
        assert shelf.on_disk() == {}
    finally:
        go_on.set()
    await asyncio.gather(*puts)
    shelf.check()


# --- room ahead of the writing ----------------------------------------------------------------------------------


async def test_what_is_only_announced_pushes_nothing_out(tmp_path):
    async with open_shelf(tmp_path / "s", step_bytes=50_000) as shelf:
        await filled(shelf)
        async with shelf.store.ingest(Digest.of(content(20, 900_000))) as partial:
            await partial.expect(900_000)
            assert len(shelf.on_disk()) == 9
            for start in range(0, 400_000, 4000):
                await partial.append(content(20, 900_000)[start : start + 4000])
                assert shelf.used_bytes() <= shelf.store.room.cap_bytes
            assert len(shelf.on_disk()) == 5
            partial.close()
        assert shelf.store.totals().partial_bytes == 400_000
        shelf.check()


async def test_of_two_transfers_that_do_not_fit_together_one_is_stored(tmp_path):
    async with open_shelf(tmp_path / "s", step_bytes=50_000) as shelf:
        await filled(shelf)

        async def put(seed: int) -> None:
            whole = content(seed, 600_000)
            async with shelf.store.ingest(Digest.of(whole)) as partial:
                try:
                    await partial.expect(len(whole))
                    for start in range(0, len(whole), 40_000):
                        await partial.append(whole[start : start + 40_000])
                        assert shelf.store.total_bytes <= shelf.store.room.cap_bytes
                    partial.verify()
                    await partial.publish()
                finally:
                    partial.close()

        async with asyncio.timeout(SECONDS):
            results = await asyncio.gather(put(20), put(21), return_exceptions=True)
        assert [type(result) for result in results if result is not None] == [NoSpace]
        assert 600_000 in shelf.on_disk().values()
        shelf.check()


async def test_what_does_not_fit_beside_the_pins_evicts_nothing(shelf):
    digests = await filled(shelf)
    await shelf.index.keep(digests[:5])
    with pytest.raises(NoSpace, match="pinned"):
        await shelf.put(content(20, 600_000))
    assert len(shelf.on_disk()) == 10


async def test_no_inodes_left_is_pressure(shelf, monkeypatch):
    await filled(shelf)

    def statvfs(_path):
        return os.statvfs_result((1, 1, 1 << 40, 0, 1 << 39, 1000, 0, 22 - len(shelf.on_disk()), 0, 255))

    monkeypatch.setattr(os, "statvfs", statvfs)
    await shelf.store.maintain()  # 12 are left, 16 have to be
    assert len(shelf.on_disk()) == 6
    await shelf.put(content(20))
    assert len(shelf.on_disk()) == 7
    await shelf.store.maintain()
    assert len(shelf.on_disk()) == 6
    shelf.check()


# --- folders that are gone --------------------------------------------------------------------------------------


async def test_folders_that_were_removed_by_hand_are_made_again(shelf):
    digest = await shelf.put(content(1))
    async with shelf.store.ingest(Digest.of(content(2))) as partial:
        await partial.expect(100_000)
        await partial.append(content(2)[:60_000])
        partial.close()
    for name in ("blobs", "partials", "quarantine"):
        shutil.rmtree(shelf.store.root / name)
    assert not await shelf.has(digest)
    for seed in (1, 2):
        assert await shelf.has(await shelf.put(content(seed)))
    await shelf.store.quarantine(digest, "for the test")
    assert shelf.store.totals().quarantined == 1
    shelf.check()
