"""names.journal: what is known beside the content, whatever a crash or a disk does to the file."""

import contextlib
import errno
import os
import sqlite3

import pytest

from registry_cache.model import events
from registry_cache.model.bus import Events
from registry_cache.model.contents import Pin
from registry_cache.model.oci import Digest, Repository
from registry_cache.ports.names import TagEntry
from registry_cache.ports.rows import BlobEntry
from registry_cache.store.index import SqliteIndex, journal
from registry_cache.store.index.journal import Journal

REPOSITORY = Repository.parse("library/kept")
MANIFEST = "application/vnd.oci.image.manifest.v1+json"


def digest(number: int) -> Digest:
    return Digest.of(b"%d" % number)


def tag(number: int) -> TagEntry:
    return TagEntry(digest(number), MANIFEST, 10, float(number))


@contextlib.asynccontextmanager
async def opened(path, emitted=None):
    bus = Events()
    bus.subscribe(emitted.append if emitted is not None else lambda _: None)
    index = SqliteIndex(path, events=bus)
    await index.start()
    try:
        yield index
    finally:
        await index.aclose()


@pytest.fixture
async def path(tmp_path):
    """An index with two tags, which rows and files agree with."""
    path = tmp_path / "index.sqlite3"
    async with opened(path) as index:
        await index.settle_doubt()
        for number in (1, 2):
            await index.put_tag(REPOSITORY, str(number), tag(number))
    return path


def lose(path):
    for file in path.parent.glob("index.sqlite3*"):
        file.unlink()


async def tags_after_a_loss(path):
    lose(path)
    async with opened(path) as index:
        return {found.name for found in (await index.inventory()).tags}


def damaged(data: bytes, how: str) -> bytes:
    lines = data.splitlines(keepends=True)
    return {
        "torn": data[:-20],
        "rotten": data.replace(b'"2"', b'"3"'),
        "zeros": b"".join(lines[:-1]) + bytes(len(lines[-1])),
        "no text": b"".join([*lines[:-1], b"\xff\xfe\n"]),
        "an endless line": b"".join([*lines[:-1], b"x" * 1_000_000]),
        "another shape": b"".join(lines[:-1]) + journal._line("tag", 1, 2) + journal._line("new kind", []),
        "no array": b"".join(lines[:-1]) + b'f3553e9b {"a": 1}\n' + b"00000000 \n",
    }[how]


HOWS = ["torn", "rotten", "zeros", "no text", "an endless line", "another shape", "no array"]


@pytest.mark.parametrize("how", HOWS)
async def test_a_line_that_a_crash_or_rot_has_damaged_costs_itself_only(path, how):
    file = path.parent / "names.journal"
    file.write_bytes(damaged(file.read_bytes(), how))
    async with opened(path) as index:
        await index.put_tag(REPOSITORY, "4", tag(4))  # behind what is damaged
    assert await tags_after_a_loss(path) == {"1", "4"}


async def test_a_journal_that_is_no_file_breaks_nothing(path):
    (path.parent / "names.journal").unlink()
    (path.parent / "names.journal").mkdir()
    emitted = []
    lose(path)
    async with opened(path, emitted) as index:
        await index.settle_doubt()
        await index.put_tag(REPOSITORY, "1", tag(1))
        assert await index.tag(REPOSITORY, "1") == tag(1)
        await index.flush()
        await index.flush()
    assert [event.operation for event in emitted if isinstance(event, events.StorageFailed)] == ["names.journal"]


async def test_an_index_from_before_there_were_journals_gets_one(path):
    (path.parent / "names.journal").unlink()
    async with opened(path) as index:
        await index.flush()
    assert await tags_after_a_loss(path) == {"1", "2"}


async def test_an_older_version_that_ran_meanwhile_knows_better(path):
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("DELETE FROM meta WHERE key = 'filled'")
        db.execute("DELETE FROM tags WHERE tag = '1'")
        db.commit()
    async with opened(path) as index:
        assert await index.tag(REPOSITORY, "1") is None
    assert await tags_after_a_loss(path) == {"2"}


async def test_a_journal_that_was_lost_is_written_anew_as_a_whole(path):
    (path.parent / "names.journal").unlink()
    async with opened(path) as index:
        await index.raise_doubt("rows are missing: what is written now would not be the whole")
        await index.put_tag(REPOSITORY, "4", tag(4))
        await index.flush()
    async with opened(path) as index:
        await index.settle_doubt()
    assert await tags_after_a_loss(path) == {"1", "2", "4"}


async def test_what_a_disk_refuses_is_appended_later(path, monkeypatch):
    emitted, write = [], os.write

    def full(fd, data):
        write(fd, data[:7])  # a part of it goes
        raise OSError(errno.ENOSPC, "No space left on device")

    async with opened(path, emitted) as index:
        await index.put_tag(REPOSITORY, "4", tag(4))
        monkeypatch.setattr(journal, "_write_all", full)
        await index.flush()
        await index.flush()
        monkeypatch.undo()
    assert [event.operation for event in emitted if isinstance(event, events.StorageFailed)] == ["names.journal"]
    assert await tags_after_a_loss(path) == {"1", "2", "4"}


async def test_what_waits_for_a_disk_is_bounded_and_written_as_a_whole_later(path, monkeypatch):
    def broken(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(journal, "_BUFFER_BYTES", 1000)
    async with opened(path) as index:
        with monkeypatch.context() as patched:
            patched.setattr(Journal, "append", broken)
            patched.setattr(Journal, "rewrite", broken)
            for number in range(3, 40):
                await index.put_tag(REPOSITORY, str(number), tag(number))
                await index.flush()
                assert index._journal._buffered_bytes <= 1000
    assert await tags_after_a_loss(path) == {str(number) for number in range(1, 40)}


async def test_the_file_is_as_large_as_what_lives_not_as_what_was(path, monkeypatch):
    monkeypatch.setattr(journal, "_SLACK_BYTES", 2000)
    file = path.parent / "names.journal"
    async with opened(path) as index:
        for number in range(200):
            await index.put_tag(REPOSITORY, "moves", tag(number))
            await index.add_blob(BlobEntry(digest(number), 10, MANIFEST, 1.0))
            await index.forget_blobs([digest(number)])
            await index.flush()
        assert file.stat().st_size < 5000
    assert await tags_after_a_loss(path) == {"1", "2", "moves"}


async def test_a_confirmed_tag_is_not_written_again(path):
    file = path.parent / "names.journal"
    size = file.stat().st_size
    async with opened(path) as index:
        for asked_at in range(3, 50):
            await index.put_tag(REPOSITORY, "1", tag(1)._replace(fetched_at=float(asked_at)))
            await index.flush()
    assert file.stat().st_size == size


async def test_what_was_purged_does_not_come_back_with_the_journal(path):
    async with opened(path) as index:
        await index.add_blob(BlobEntry(digest(1), 10, MANIFEST, 1.0))
        index.link(REPOSITORY, digest(1))
        await index.change_pins(add=[Pin(REPOSITORY, "1")])
        await index.flush()
        await index.forget_tags([(REPOSITORY, "1")])
        await index.forget_blobs([digest(1)])
        await index.change_pins(remove=[Pin(REPOSITORY, "1")])
    lose(path)
    async with opened(path) as index:
        assert index.media_type_kept(digest(1)) is None
        inventory = await index.inventory()
        assert [found.name for found in inventory.tags] == ["2"]
        assert (inventory.links, inventory.pins) == ({}, [])


async def test_an_index_that_breaks_while_it_runs_has_its_names_again(path):
    async with opened(path) as index:
        await index.put_tag(REPOSITORY, "4", tag(4))  # not even appended yet
        await index._db._writer.run(index._db._start_over, "for the test")
        index._lost()
        assert {found.name for found in (await index.inventory()).tags} == {"1", "2", "4"}
        assert index.tag_count == 3


async def test_an_index_whose_rows_are_not_found_yet_does_not_replace_the_journal(path):
    async with opened(path) as index:
        await index.add_blob(BlobEntry(digest(1), 10, MANIFEST, 1.0))
    lose(path)
    async with opened(path) as index:
        index._journal._is_whole = False  # it is due
        index._doubt.reason = ""  # as between the loss and the moment that it is known
        await index.flush()
    lose(path)
    async with opened(path) as index:
        assert index.media_type_kept(digest(1)) == MANIFEST
