"""Rows and files differ only where the next run knows that they may: each moment at which that was not so is held."""

import asyncio
import contextlib
import errno
import os
import sqlite3

import pytest

from registry_cache.model.bus import Events
from registry_cache.model.errors import NoSpace
from registry_cache.model.oci import Digest
from registry_cache.ports.rows import BlobEntry
from registry_cache.store.index import SqliteIndex, rows
from registry_cache.store.index.doubt import Doubt
from registry_cache.store.intake import Intake
from registry_cache.store.reconciliation import Reconciler

from .conftest import open_shelf
from .holding import Held


def rows_on_disk(root):
    """What the index says when nobody has it open."""
    with contextlib.closing(sqlite3.connect(root / "index.sqlite3")) as db:
        return {row[0] for row in db.execute("SELECT digest FROM blobs")}


def is_doubted(root):
    """Whether the next run compares rows and files."""
    with contextlib.closing(sqlite3.connect(root / "index.sqlite3")) as db:
        ended = db.execute("SELECT value FROM meta WHERE key = 'ended'").fetchone()[0]
    return bool(ended) or (root / "index.doubt").exists()


def failing(monkeypatch, name):
    """From now on this query fails, as on a disk with errors; call what is returned to end that."""
    original = getattr(rows, name)

    def fails(*_):
        raise sqlite3.OperationalError("disk I/O error")

    monkeypatch.setattr(rows, name, fails)
    return lambda: monkeypatch.setattr(rows, name, original)


class Beside:
    """The file beside the index, and the one thread that writes and removes it."""

    def __init__(self):
        self.text = ""
        self.may_write = asyncio.Event()
        self._thread = asyncio.Lock()

    async def write(self, reason):
        async with self._thread:
            await self.may_write.wait()
            self.text = reason
            return True

    async def remove(self):
        async with self._thread:
            self.text = ""


# --- doubt itself -------------------------------------------------------------------------------------------------


async def test_doubt_that_is_raised_while_the_last_one_is_settled_stays():
    file, noting, may_note = Beside(), asyncio.Event(), asyncio.Event()
    file.may_write.set()
    doubt = Doubt(file.write, file.remove)
    await doubt.raise_("first")

    async def note():
        noting.set()
        await may_note.wait()
        return True

    settling = asyncio.create_task(doubt.settle(doubt.raised, note))
    await noting.wait()
    raising = asyncio.create_task(doubt.raise_("of what has been compared already"))
    await asyncio.sleep(0)
    may_note.set()
    assert not await settling
    await raising
    assert doubt.reason
    assert file.text
    assert doubt.is_written


async def test_doubt_is_taken_for_written_only_while_its_file_is_there():
    file = Beside()
    doubt = Doubt(file.write, file.remove)
    raising = asyncio.create_task(doubt.raise_("slowly written"))
    await asyncio.sleep(0)

    async def note():
        return True

    settling = asyncio.create_task(doubt.settle(None, note))
    await asyncio.sleep(0)
    file.may_write.set()
    await asyncio.gather(raising, settling)
    assert doubt.is_written == bool(file.text)


async def test_doubt_stays_while_the_index_cannot_take_it_that_rows_were_compared(shelf):
    await shelf.index.raise_doubt("for the test")
    await shelf.refuse_writes()
    await shelf.index.settle_doubt()
    assert shelf.index.doubt
    await shelf.take_writes()
    await shelf.store.maintain()
    assert not shelf.index.doubt


async def test_the_row_of_an_earlier_file_condemns_no_good_one(shelf):
    """A power cut takes rows back, and not files: the one of a file that was cut has come back beside the good file."""
    digest, wrong = await shelf.put(b"good again"), await shelf.put(b"cut")
    await shelf.index.add_blob(BlobEntry(digest, 4, None, 1.0))
    shelf.store.path(wrong).write_bytes(b"cu")
    await shelf.index.raise_doubt("power was cut")
    await shelf.store.maintain()
    assert not shelf.index.doubt
    assert (await shelf.index.blob(digest)).size_bytes == 10
    assert (await shelf.index.blob(wrong)).size_bytes == 3, "what it should be, so that it is found when it is opened"
    found = await shelf.store.open(digest)
    assert found is not None
    found.close()
    assert await shelf.store.open(wrong) is None


# --- reads that fail ----------------------------------------------------------------------------------------------


async def test_a_row_that_cannot_be_read_goes_with_its_file(shelf, monkeypatch):
    kept, gone = await shelf.put(b"kept"), await shelf.put(b"gone")
    works_again = failing(monkeypatch, "_select_stored")
    assert await shelf.store.purge([gone]) == (1, 4)
    works_again()
    assert shelf.index.doubt
    assert set((await shelf.index.entries_between("sha256:", "sha256:g")).keys()) == {kept}
    shelf.check()


async def test_rows_that_cannot_be_read_are_not_compared(shelf, monkeypatch):
    digest = await shelf.put(b"removed by hand")
    shelf.store.path(digest).unlink()
    await shelf.index.raise_doubt("for the test")
    works_again = failing(monkeypatch, "_select_between")
    await shelf.store.maintain()
    works_again()
    assert shelf.index.doubt
    await shelf.store.maintain()
    assert not shelf.index.doubt
    assert await shelf.index.blob(digest) is None


async def test_a_missing_file_whose_row_cannot_be_read_leaves_doubt(shelf, monkeypatch):
    digest = await shelf.put(b"removed by hand" * 10_000)
    shelf.store.path(digest).unlink()
    works_again = failing(monkeypatch, "_select_stored")
    await shelf.store.missing(digest)
    works_again()
    assert shelf.index.doubt
    await shelf.store.maintain()
    shelf.check()


# --- files that go ------------------------------------------------------------------------------------------------


async def test_a_file_that_was_removed_at_the_second_try_takes_its_row_along(shelf, monkeypatch):
    digest, remove, calls = await shelf.put(b"gone"), shelf.store.files.remove, []

    async def refuses_once(paths):
        calls.append(paths)
        if len(calls) == 1:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        await remove(paths)

    async def identify(_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(shelf.store.files, "remove", refuses_once)
    monkeypatch.setattr(shelf.store.files, "identify", identify)
    await shelf.store.purge([digest])
    assert await shelf.index.blob(digest) is None
    shelf.check()


async def test_a_file_of_which_nobody_knows_whether_it_is_gone_leaves_doubt(shelf, monkeypatch):
    digest = await shelf.put(b"perhaps gone")

    async def refuses(_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(shelf.store.files, "remove", refuses)
        patch.setattr(shelf.store.files, "identify", refuses)
        await shelf.store.purge([digest])
    assert shelf.index.doubt


async def test_a_run_that_could_not_begin_doubts_before_a_file_goes(tmp_path, monkeypatch):
    """It may be killed right behind the unlink, and has not told the index that it runs."""
    root = tmp_path / "s"
    async with open_shelf(root) as shelf:
        digest = await shelf.put(b"gone")
    other = sqlite3.connect(root / "index.sqlite3", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    async with open_shelf(root) as shelf:
        assert (shelf.index.writable, shelf.index.doubt) == (False, "")
        remove, seen = shelf.store.files.remove, []

        async def looked_at(paths):
            seen.append(is_doubted(root))
            await remove(paths)

        monkeypatch.setattr(shelf.store.files, "remove", looked_at)
        await shelf.store.purge([digest])
        assert seen == [True]
        other.close()


async def test_a_stop_waits_for_who_takes_files_away(tmp_path, monkeypatch):
    """A client's handler that was cancelled, and that nobody waits for."""
    root = tmp_path / "s"
    opened = open_shelf(root)
    shelf = await opened.__aenter__()
    digest = await shelf.put(b"gone")
    held = Held(monkeypatch, shelf.store.files, "remove")
    purging = asyncio.create_task(shelf.store.purge([digest]))
    await held.reached.wait()
    purging.cancel()
    closing = asyncio.create_task(opened.__aexit__(None, None, None))
    for _ in range(50):
        await asyncio.sleep(0)
    held.go_on.set()
    await closing
    with pytest.raises(asyncio.CancelledError):
        await purging
    assert rows_on_disk(root) == set()
    assert not is_doubted(root)


async def test_a_stop_deletes_what_the_index_refused_a_while_ago(tmp_path):
    root = tmp_path / "s"
    async with open_shelf(root) as shelf:
        kept, gone = await shelf.put(b"kept"), await shelf.put(b"gone")
        await shelf.refuse_writes()
        await shelf.store.purge([gone])
        await shelf.take_writes()
    assert rows_on_disk(root) == {kept}


async def test_a_stop_while_rows_and_files_are_compared_leaves_that_to_the_next_run(tmp_path, monkeypatch):
    root = tmp_path / "s"
    async with open_shelf(root) as shelf:
        digest = await shelf.put(b"gone")
        shelf.store.path(digest).unlink()
        await shelf.index.raise_doubt("for the test")
        held = Held(monkeypatch, Reconciler, "_folder")
        shelf.store._maintenance.wake()
        await held.reached.wait()
    assert (rows_on_disk(root), is_doubted(root)) == ({digest}, True)
    monkeypatch.undo()
    async with open_shelf(root):
        pass
    assert (rows_on_disk(root), is_doubted(root)) == (set(), False)


# --- the database -------------------------------------------------------------------------------------------------


async def test_a_transaction_that_could_be_neither_ended_nor_taken_back_is_over(tmp_path, monkeypatch):
    """Else every later one is refused until the next start."""
    refuses = False

    class Failing(sqlite3.Connection):
        def execute(self, statement, *arguments):
            if refuses and statement in ("COMMIT", "ROLLBACK"):
                raise sqlite3.OperationalError("disk I/O error")
            return super().execute(statement, *arguments)

    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *args, **options: connect(*args, **{"factory": Failing, **options}))
    index = SqliteIndex(tmp_path / "index.sqlite3", events=Events())
    await index.start()
    first, second = (BlobEntry(Digest.of(body), 1, None, 1.0) for body in (b"1", b"2"))
    refuses = True
    with pytest.raises(Exception, match="disk I/O error"):
        await index.add_blob(first)
    refuses = False
    assert await index.probe()
    await index.add_blob(second)
    assert set(await index.stored([first.digest, second.digest])) == {second.digest}
    await index.aclose()


async def test_that_a_run_has_begun_is_on_the_disk_before_its_first_row(tmp_path, monkeypatch):
    """After a power cut the log may lack its last transactions, but not this one."""
    said = []

    class Watched(sqlite3.Connection):
        def execute(self, statement, *arguments):
            if "REPLACE INTO meta" in statement and arguments[0][0] == "ended":
                said.append(super().execute("PRAGMA synchronous").fetchone()[0])
            return super().execute(statement, *arguments)

    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *args, **options: connect(*args, **{"factory": Watched, **options}))
    index = SqliteIndex(tmp_path / "index.sqlite3", events=Events())
    await index.start()
    full, normal = 2, 1
    assert said == [full]
    synchronous = await index._db._writer.run(lambda: index._db._db.execute("PRAGMA synchronous").fetchone()[0])
    assert synchronous == normal
    await index.aclose()


async def test_a_store_that_begins_above_its_cap_promises_no_room_before_it_is_below(tmp_path):
    """A power cut brings removed files back, or the cap was lowered: nobody doubts them, and there are too many."""
    async with open_shelf(tmp_path / "store") as shelf:
        for number in range(3):
            await shelf.put(bytes([number]) * 100_000)
    async with open_shelf(tmp_path / "store", cap_bytes=200_000, counted=False) as shelf:
        assert shelf.store.total_bytes > 200_000
        assert not shelf.store._condition.known.is_set()
        await shelf.store._condition.known.wait()
        assert shelf.store.total_bytes <= 200_000


async def test_a_row_whose_file_does_not_come_is_counted_at_no_moment(tmp_path, monkeypatch):
    """Rows and files are compared while nobody knows yet whether the file has come: the row alone is no file."""
    asked, go = asyncio.Event(), asyncio.Event()
    own = Intake.is_here

    async def held(intake, digest):
        asked.set()
        await go.wait()
        return await own(intake, digest)

    async def refused(*_):
        raise OSError(errno.ENOENT, "somebody has removed it")

    async def compared(*_):
        """Its folder was, before the row came."""

    async with open_shelf(tmp_path / "store") as shelf:
        monkeypatch.setattr(Intake, "is_here", held)
        monkeypatch.setattr(Reconciler, "_folder", compared)
        monkeypatch.setattr(shelf.store._intake._files, "place", refused)
        putting = asyncio.create_task(shelf.put(b"x" * 100_000))
        await asked.wait()
        await shelf.store._reconciler.reconcile()
        go.set()
        with pytest.raises(NoSpace):
            await putting
        assert shelf.store.total_bytes == 0
