"""Another process holds the lock of the index: reads have their own way, and nothing that was to be written is lost."""

import asyncio
import contextlib
import sqlite3

import pytest

from registry_cache.model import events
from registry_cache.model.bus import Events
from registry_cache.model.contents import Pin
from registry_cache.model.errors import IndexRefused
from registry_cache.model.oci import Digest, Repository
from registry_cache.ports.names import Answer, TagEntry
from registry_cache.ports.rows import BlobEntry
from registry_cache.store.index import SqliteIndex
from registry_cache.store.index.database import Database

REPOSITORY = Repository.parse("library/locked")
DIGEST = Digest.of(b"locked")
TAG = TagEntry(DIGEST, "application/vnd.oci.image.manifest.v1+json", 10, 5.0)


@contextlib.contextmanager
def lock_held(path):
    """As by a backup, or by sqlite3 in somebody's shell."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        yield


def forget_what_is_in_memory(index):
    index._blobs.clear()
    index._tags.clear()
    index._linked.clear()


async def test_reads_do_not_wait_for_a_write_that_waits_for_the_lock(tmp_path):
    path, seen = tmp_path / "index.sqlite3", []
    bus = Events()
    bus.subscribe(seen.append)
    index = SqliteIndex(path, events=bus, busy_seconds=60)  # a write waits for as long as the lock is held
    await index.start()
    await index.add_blob(BlobEntry(DIGEST, 10, TAG.media_type, 1.0))
    await index.put_tag(REPOSITORY, "1", TAG)
    await index.put_answer("question", Answer(b"answer", "text", None, None, 1.0))
    index.link(REPOSITORY, DIGEST)
    await index.flush()
    with lock_held(path):
        moved = TAG._replace(digest=Digest.of(b"moved"), fetched_at=6.0)
        writes = [asyncio.create_task(index.put_tag(REPOSITORY, "2", moved)), asyncio.create_task(index.flush())]
        await asyncio.sleep(0)
        forget_what_is_in_memory(index)
        assert await index.tag(REPOSITORY, "1") == TAG
        assert await index.tag(REPOSITORY, "2") == moved, "not written yet, and known"
        assert (await index.blob(DIGEST)).size_bytes == 10
        assert DIGEST in await index.stored([DIGEST])
        assert (await index.answer("question")).body == b"answer"
        assert [entry.digest for entry in await index.oldest(1)] == [DIGEST]
        assert await index.repositories(REPOSITORY.registry, "", 5) == [REPOSITORY.name]
        assert (await index.totals()).manifests == 1
        assert not any(write.done() for write in writes)
    await asyncio.gather(*writes)
    assert {tag.name for tag in (await index.inventory()).tags} == {"1", "2"}
    assert not any(isinstance(event, events.StorageFailed) for event in seen)
    await index.aclose()


async def test_a_locked_index_is_not_taken_for_a_broken_one(tmp_path):
    path = tmp_path / "index.sqlite3"
    index = SqliteIndex(path, events=Events())
    await index.start()
    await index.put_tag(REPOSITORY, "1", TAG)
    await index.settle_doubt()
    await index.aclose()
    index = SqliteIndex(path, events=Events(), busy_seconds=0.01)
    with lock_held(path):
        await index.start()
        assert not index.writable
        assert await index.tag(REPOSITORY, "1") == TAG
    await index.flush()
    assert index.writable
    await index.aclose()


async def test_an_older_index_that_is_locked_is_opened_later(tmp_path):
    from registry_cache.store.index import schema  # noqa: PLC0415

    path = tmp_path / "index.sqlite3"
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.executescript(schema.SCHEMA_1 + "PRAGMA user_version = 1; PRAGMA journal_mode = WAL;")
        db.execute("INSERT INTO tags VALUES (?, ?, ?, ?, ?, ?, ?)", (*REPOSITORY, "1", *TAG))
        db.commit()
    index = SqliteIndex(path, events=Events(), busy_seconds=0.01)
    with lock_held(path):
        await index.start()
        assert (index.writable, await index.tag(REPOSITORY, "1")) == (False, None)
        assert index.doubt
        await index.flush()
        assert not index.writable
    await index.flush()
    assert index.writable
    assert await index.tag(REPOSITORY, "1") == TAG
    await index.aclose()


async def test_an_index_whose_file_was_removed_is_made_again(tmp_path):
    path = tmp_path / "index.sqlite3"
    index = SqliteIndex(path, events=Events())
    await index.start()
    await index.settle_doubt()
    await index.put_tag(REPOSITORY, "1", TAG)
    await index.add_blob(BlobEntry(DIGEST, 10, TAG.media_type, 1.0))
    await index.flush()
    for file in tmp_path.glob("index.sqlite3*"):
        file.unlink()
    await index.flush()
    assert path.exists()
    assert index.writable
    assert index.doubt
    assert await index.blob(DIGEST) is None
    assert index.media_type_kept(DIGEST) == TAG.media_type
    assert await index.tag(REPOSITORY, "1") == TAG
    await index.aclose()


async def test_an_index_that_cannot_be_written_at_all_is_read(tmp_path, monkeypatch):
    """As on a read-only filesystem, where SQLite can make no log."""
    path = tmp_path / "index.sqlite3"
    index = SqliteIndex(path, events=Events())
    await index.start()
    await index.settle_doubt()
    await index.put_tag(REPOSITORY, "1", TAG)
    await index.add_blob(BlobEntry(DIGEST, 10, TAG.media_type, 1.0))
    await index.aclose()
    connect = sqlite3.connect

    def read_only(name, **options):
        if "immutable" not in str(name):
            raise sqlite3.OperationalError("unable to open database file")
        return connect(name, **options)

    monkeypatch.setattr(sqlite3, "connect", read_only)
    index = SqliteIndex(path, events=Events())
    await index.start()
    assert (index.writable, index.doubt) == (False, "")
    assert await index.tag(REPOSITORY, "1") == TAG
    assert (await index.blob(DIGEST)).media_type == TAG.media_type
    assert (await index.totals()).manifests == 1
    await index.flush()
    assert index.blob_at_hand(DIGEST), "what is in memory stays there while it is tried again"
    monkeypatch.undo()
    await index.flush()
    assert index.writable
    await index.aclose()


async def test_where_no_index_can_be_made_names_are_known_all_the_same(tmp_path):
    path = tmp_path / "index.sqlite3"
    index = SqliteIndex(path, events=Events())
    await index.start()
    await index.put_tag(REPOSITORY, "1", TAG)
    await index.add_blob(BlobEntry(DIGEST, 10, TAG.media_type, 1.0))
    await index.aclose()
    for file in tmp_path.glob("index.sqlite3*"):
        file.unlink()
    path.mkdir()
    index = SqliteIndex(path, events=Events())
    await index.start()
    assert not index.writable
    assert await index.tag(REPOSITORY, "1") == TAG
    assert index.media_type_kept(DIGEST) == TAG.media_type
    await index.flush()
    path.rmdir()
    await index.flush()
    assert index.writable
    assert index.doubt
    assert await index.tag(REPOSITORY, "1") == TAG
    await index.aclose()
    assert (tmp_path / "names.journal").read_bytes().count(b"tag") == 1


async def test_an_index_that_was_opened_to_read_only_is_opened_again_once_it_can_be_written(tmp_path, monkeypatch):
    """As after a restore by root: SQLite opens a file that it may not write only to read, and stays with that."""
    path = tmp_path / "index.sqlite3"
    index = SqliteIndex(path, events=Events())
    await index.start()
    await index.settle_doubt()
    await index.put_tag(REPOSITORY, "1", TAG)
    await index.aclose()
    connect = sqlite3.connect

    def read_only(name, **options):
        options["uri"] = True
        return connect(name if str(name).startswith("file:") else f"file:{name}?mode=ro", **options)

    monkeypatch.setattr(sqlite3, "connect", read_only)
    index = SqliteIndex(path, events=Events())
    await index.start()
    assert not index.writable
    for _ in range(2):
        await index.flush()
        assert not index.writable
        assert await index.tag(REPOSITORY, "1") == TAG
    monkeypatch.undo()
    await index.flush()
    assert index.writable
    assert await index.tag(REPOSITORY, "1") == TAG
    await index.aclose()


async def test_a_try_to_write_that_fails_takes_nothing_from_who_reads(tmp_path, monkeypatch):
    """On a read-only disk each try opened the readers' file in a way that it cannot be read in there."""
    path = tmp_path / "index.sqlite3"
    index = SqliteIndex(path, events=Events())
    await index.start()
    await index.put_tag(REPOSITORY, "1", TAG)
    await index.aclose()
    monkeypatch.setattr(Database, "_opens_to_read", only_unchanged(Database._opens_to_read))
    monkeypatch.setattr(Database, "_bring_up_to_date", refuse)
    index = SqliteIndex(path, events=Events())
    await index.start()
    database, seen = index._db, []
    as_it_was = database._read_as, database._opened

    def look(self, db):
        seen.append((self._read_as, self._opened))
        return refuse(self, db)

    monkeypatch.setattr(Database, "_bring_up_to_date", look)
    assert not await database.probe()
    assert seen == [as_it_was]
    assert (database._read_as, database._opened) == as_it_was == ("mode=ro&immutable=1", database._opened)
    assert await index.tag(REPOSITORY, "1") == TAG
    await index.aclose()


def refuse(self, db):
    raise sqlite3.OperationalError("unable to open database file")


def only_unchanged(opens):
    return lambda self, options: "immutable" in options and opens(self, options)


async def test_an_index_that_cannot_be_read_has_not_lost_its_pins_and_names(tmp_path, monkeypatch):
    """Whoever took "nothing" for the answer would let go of every pin, and list an empty cache."""
    index = SqliteIndex(tmp_path / "index.sqlite3", events=Events())
    await index.start()
    await index.add_blob(BlobEntry(DIGEST, 10, TAG.media_type, 1.0))
    await index.put_tag(REPOSITORY, "1", TAG)
    await index.change_pins(add=[Pin(REPOSITORY, "1")])

    def fails(*_):
        raise sqlite3.OperationalError("disk I/O error")

    with monkeypatch.context() as patched:
        patched.setattr(Database, "_with_reader", fails)
        with pytest.raises(IndexRefused):
            await index.pinned()
        with pytest.raises(IndexRefused):
            await index.inventory()
    assert [pin for pin, _ in await index.pinned()] == [Pin(REPOSITORY, "1")]
    assert [tag.name for tag in (await index.inventory()).tags] == ["1"]
    await index.aclose()
