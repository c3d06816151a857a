"""What every implementation of :class:`registry_cache.ports.index.Index` does."""

import asyncio
import contextlib

import pytest

from registry_cache.model.contents import Pin
from registry_cache.model.errors import IndexRefused
from registry_cache.model.oci import Digest, Repository
from registry_cache.ports.names import Answer, TagEntry
from registry_cache.ports.rows import BlobEntry, Tally
from registry_cache.store.index import names
from registry_cache.store.index.links import LINKS_KEPT

REPOSITORY, OTHER = Repository.parse("library/one"), Repository.parse("library/two")
MANIFEST = "application/vnd.oci.image.manifest.v1+json"


def digest(number: int) -> Digest:
    return Digest.of(bytes([number]))


def row(number: int, *, size_bytes: int = 10, media_type: str | None = None, last_use: float = 0.0) -> BlobEntry:
    return BlobEntry(digest(number), size_bytes, media_type, last_use or float(number))


def tag(number: int, asked_at: float) -> TagEntry:
    return TagEntry(digest(number), MANIFEST, 10, asked_at)


# --- rows -------------------------------------------------------------------------------------------------------


async def test_rows_are_counted_once(index):
    assert await index.add_blob(row(1)) == Tally(10, 1, 0)
    assert await index.add_blob(row(1)) == Tally()
    assert await index.add_blob(row(1, media_type=MANIFEST)) == Tally(0, -1, 1)
    assert await index.add_blob(row(1)) == Tally(), "once a manifest, always one"
    assert (await index.blob(digest(1))).media_type == MANIFEST
    await index.add_blob(row(2, size_bytes=5))
    assert await index.totals() == Tally(15, 1, 1)
    assert await index.forget_blobs([digest(1), digest(3)]) == Tally(10, 0, 1)
    assert await index.forget_blobs([digest(1)]) == Tally()
    assert await index.blob(digest(1)) is None
    assert await index.stored([digest(1), digest(2)]) == {digest(2): (await index.inventory()).blobs[digest(2)]}


async def test_oldest_are_those_least_recently_used_without_pinned_ones(index):
    for number in (3, 1, 2, 4):
        await index.add_blob(row(number))
    await index.keep([digest(2)])
    first = await index.oldest(2)
    assert [entry.digest for entry in first] == [digest(1), digest(3)]
    assert [entry.digest for entry in await index.oldest(2, first[-1])] == [digest(4)]


async def test_the_largest_blob_is_known(index):
    assert await index.largest_bytes() == 0
    for number, size_bytes in ((1, 10), (2, 30), (3, 20)):
        await index.add_blob(row(number, size_bytes=size_bytes))
    assert await index.largest_bytes() == 30
    await index.forget_blobs([digest(2)])
    assert await index.largest_bytes() == 20


async def test_a_use_is_known_before_it_is_in_its_row(index):
    await index.add_blob(row(1))
    index.touch(digest(1))
    used = index.used_at(digest(1))
    assert used > 1
    assert (await index.oldest(1))[0].last_use == 1
    await index.flush()
    assert index.used_at(digest(1)) is None
    assert (await index.oldest(1))[0].last_use == used
    assert (await index.blob(digest(1))).last_use == used


async def test_what_was_never_verified_is_verified_first(index):
    for number in (1, 2):
        await index.add_blob(row(number))
    await index.verified(digest(1), 50.0)
    assert await index.unverified_longest(5, before=100.0) == [digest(2), digest(1)]
    assert await index.unverified_longest(5, before=50.0) == [digest(2)]


async def test_rows_between_two_digests(index):
    for number in range(20):
        await index.add_blob(row(number))
    found = await index.entries_between("sha256:8", "sha256:8g")
    assert set(found) == {digest(number) for number in range(20) if digest(number).startswith("sha256:8")}


# --- writes that are refused --------------------------------------------------------------------------------------


async def test_rows_are_refused_aloud_and_everything_else_is_kept(kind):
    index = kind.make()
    await index.start()
    await index.add_blob(row(1))
    await kind.refuse(index)
    for refused in (index.add_blob(row(2)), index.forget_blobs([digest(1)]), index.change_pins(add=[Pin(OTHER, "1")])):
        with pytest.raises(IndexRefused):
            await refused
    assert not index.writable
    await index.put_tag(REPOSITORY, "1", tag(1, 5.0))
    index.link(REPOSITORY, digest(1))
    index.touch(digest(1))
    used = index.used_at(digest(1))
    await index.keep([digest(1)])
    await index.flush()
    assert not await index.probe()
    assert await index.tag(REPOSITORY, "1") == tag(1, 5.0)
    assert (await index.blob(digest(1))).size_bytes == 10
    assert await index.repositories(REPOSITORY.registry, "", 5) == [REPOSITORY.name]
    await kind.take(index)
    await index.flush()
    assert index.writable
    await kind.kill(index)
    again = kind.make()
    await again.start()
    assert await again.tag(REPOSITORY, "1") == tag(1, 5.0)
    assert await again.repositories(REPOSITORY.registry, "", 5) == [REPOSITORY.name]
    assert await again.blob(digest(1)) == row(1)._replace(pinned=True, last_use=used)
    await again.aclose()


async def test_a_tag_forgotten_while_writes_are_refused_stays_forgotten(index, kind):
    await index.put_tag(REPOSITORY, "1", tag(1, 5.0))
    await kind.refuse(index)
    await index.forget_tags([(REPOSITORY, "1")])
    assert await index.tag(REPOSITORY, "1") is None
    await kind.take(index)
    await index.flush()
    assert (await index.inventory()).tags == []


# --- names --------------------------------------------------------------------------------------------------------


async def test_what_was_asked_later_wins(index):
    await index.put_tag(REPOSITORY, "1", tag(2, 20.0))
    await index.put_tag(REPOSITORY, "1", tag(1, 10.0))  # its answer was long on its way
    assert await index.tag(REPOSITORY, "1") == tag(2, 20.0)
    await index.forget_tag(REPOSITORY, "1", asked_at=15.0)
    assert await index.tag(REPOSITORY, "1") == tag(2, 20.0)
    await index.put_tag(REPOSITORY, "1", tag(3, 30.0))
    assert index.tag_at_hand(REPOSITORY, "1") == tag(3, 30.0)
    assert index.tag_count == 1


async def test_what_was_asked_before_it_was_forgotten_does_not_bring_it_back(index):
    asked_at = index.clock.now()
    await index.put_tag(REPOSITORY, "1", tag(1, asked_at - 1))
    await index.forget_tags([(REPOSITORY, "1")])
    await index.put_tag(REPOSITORY, "1", tag(1, asked_at))
    assert await index.tag(REPOSITORY, "1") is None
    await index.put_tag(REPOSITORY, "1", tag(1, index.clock.now() + 1))
    assert await index.tag(REPOSITORY, "1") is not None


async def test_a_tag_from_the_future_is_replaced_by_what_is_said_now(index):
    now = index.clock.now()
    await index.put_tag(REPOSITORY, "1", tag(1, now + 1e6))
    await index.put_tag(REPOSITORY, "1", tag(2, now))
    assert (await index.tag(REPOSITORY, "1")).digest == digest(2)


async def test_a_link_waits_for_its_row(index):
    index.link(REPOSITORY, digest(1))
    await index.flush()  # the row waits for a slow disk
    await index.add_blob(row(1))
    await index.flush()
    assert (await index.inventory()).links == {digest(1): (REPOSITORY,)}


async def test_links_go_with_their_blob(index):
    await index.add_blob(row(1))
    index.link(REPOSITORY, digest(1))
    await index.flush()
    index.link(OTHER, digest(1))
    await index.forget_blobs([digest(1)])
    await index.add_blob(row(1))
    await index.flush()
    assert await index.repositories_of([digest(1)]) == {digest(1): []}
    index.link(REPOSITORY, digest(1))
    await index.flush()
    assert await index.repositories_of([digest(1)]) == {digest(1): [REPOSITORY]}


async def test_a_link_is_known_before_and_after_it_is_written(index):
    await index.add_blob(row(1))
    assert not await index.is_linked(REPOSITORY, digest(1))
    index.link(REPOSITORY, digest(1))
    assert await index.is_linked(REPOSITORY, digest(1))
    await index.flush()
    assert await index.is_linked(REPOSITORY, digest(1))
    assert not await index.is_linked(OTHER, digest(1))
    assert not await index.is_linked(REPOSITORY, digest(2))


async def test_manifests_of_a_repository_are_those_linked_or_tagged_the_last_used_first(index):
    for number in (1, 2, 3):
        await index.add_blob(row(number, media_type=MANIFEST))
    await index.add_blob(row(4))
    for number in (1, 4):
        index.link(REPOSITORY, digest(number))
    index.link(OTHER, digest(3))
    await index.flush()
    await index.put_tag(REPOSITORY, "1", tag(2, 1.0))
    assert await index.manifests_of(REPOSITORY, 10) == [digest(2), digest(1)]
    assert await index.manifests_of(REPOSITORY, 1) == [digest(2)]
    assert await index.manifests_of(Repository.parse("library/none"), 10) == []


async def test_what_belonged_to_a_forgotten_repository_is_linked_no_more(index):
    for number in (1, 2):
        await index.add_blob(row(number))
    for repository in (REPOSITORY, OTHER):
        index.link(repository, digest(1))
    await index.flush()
    index.link(REPOSITORY, digest(2))  # not written yet
    await index.forget_repositories(lambda repository: repository == REPOSITORY)
    for number in (1, 2):
        assert not await index.is_linked(REPOSITORY, digest(number)), number
    assert await index.is_linked(OTHER, digest(1))
    await index.flush()
    assert await index.repositories(OTHER.registry, "", 10) == [OTHER.name]
    index.link(REPOSITORY, digest(1))
    assert await index.is_linked(REPOSITORY, digest(1)), "it may come back"


async def test_answers_are_bounded_in_bytes_the_oldest_go(index):
    for number in range(30):
        await index.put_answer(f"question {number}", Answer(b"x" * 1000, "text", None, None, float(number)))
        assert 0 < index.answers_bytes <= 10_000
    assert await index.answer("question 0") is None
    assert (await index.answer("question 29")).body == b"x" * 1000
    await index.put_answer("huge", Answer(b"x" * 20_000, "text", None, None, 99.0))
    assert await index.answer("huge") is None
    assert await index.answer("question 29") is not None, "one that is too large pushes out nothing"


async def test_a_registry_has_what_one_of_its_repositories_has(index):
    await index.add_blob(row(1))
    elsewhere = Repository("ghcr.io", REPOSITORY.name)
    assert not await index.registry_has("ghcr.io", digest(1))
    index.link(elsewhere, digest(1))
    assert await index.registry_has("ghcr.io", digest(1))
    await index.flush()
    assert await index.registry_has("ghcr.io", digest(1))
    assert not await index.registry_has(REPOSITORY.registry, digest(1))
    assert await index.repositories_of([digest(1)]) == {digest(1): [elsewhere]}
    await index.forget_repositories(lambda where: where == elsewhere)
    assert not await index.registry_has("ghcr.io", digest(1))


async def test_repositories_of_a_blob_are_bounded(index):
    await index.add_blob(row(1))
    for number in range(LINKS_KEPT + 20):
        index.link(Repository.parse(f"made-up/{number}"), digest(1))
        if number % 50 == 0:
            await index.flush()
    await index.flush()
    assert len((await index.inventory()).links[digest(1)]) == LINKS_KEPT


async def test_tags_are_bounded_pinned_ones_stay(index, monkeypatch):
    monkeypatch.setattr(names, "TAGS_KEPT", 10)
    await index.change_pins(add=[Pin(REPOSITORY, "0")])
    for number in range(30):
        await index.put_tag(REPOSITORY, str(number), tag(1, float(number)))
        assert index.tag_count <= 10
    left = {found.name for found in (await index.inventory()).tags}
    assert {"0", "29"} <= left
    assert "1" not in left
    assert index.tag_count == len(left)
    assert await index.tag(REPOSITORY, "1") is None


async def test_what_cannot_be_written_down_keeps_nothing_else_waiting(index):
    odd = tag(1, 1.0)._replace(media_type="application/\udcff", size_bytes=1 << 70)
    await index.put_tag(REPOSITORY, "odd", odd)
    await index.put_tag(REPOSITORY, "good", tag(1, 1.0))
    await index.put_answer("odd", Answer(b"", "\udcff", None, None, 1.0))
    with contextlib.suppress(IndexRefused):
        await index.add_blob(row(2, media_type="\udcff"))
    assert await index.tag(REPOSITORY, "odd") == odd
    assert "good" in {found.name for found in (await index.inventory()).tags}
    assert index.writable


# --- pins ---------------------------------------------------------------------------------------------------------


async def test_what_is_wanted_is_pinned_when_it_comes(index):
    await index.keep([digest(1)])
    await index.add_blob(row(1, media_type=MANIFEST))
    assert (await index.blob(digest(1))).pinned
    assert index.pins_changed.is_set()
    await index.keep([])
    assert not (await index.blob(digest(1))).pinned


async def test_pins_know_what_their_tag_is_now(index):
    await index.change_pins(add=[Pin(REPOSITORY, "1"), Pin(OTHER, "1")])
    assert sorted(await index.pinned()) == [(Pin(REPOSITORY, "1"), None), (Pin(OTHER, "1"), None)]
    await index.put_tag(REPOSITORY, "1", tag(1, 1.0))
    assert index.pins_changed.is_set()
    assert (Pin(REPOSITORY, "1"), digest(1)) in await index.pinned()
    await index.change_pins(remove=[Pin(OTHER, "1")])
    assert (await index.pin_summary(5)).first == [Pin(REPOSITORY, "1")]


# --- runs ---------------------------------------------------------------------------------------------------------


async def test_a_new_index_is_in_doubt_until_it_is_settled(run):
    async with run() as index:
        assert index.doubt
        await index.settle_doubt()
    async with run() as index:
        assert not index.doubt


async def test_doubt_survives_a_clean_stop_even_if_nothing_can_be_written(run, kind):
    async with run() as index:
        await index.settle_doubt()
    async with run() as index:
        await kind.refuse(index)
        await index.raise_doubt("a row could not be deleted")
        assert index.doubt == "a row could not be deleted"
    await kind.take(index)
    async with run() as index:
        assert index.doubt
        await index.settle_doubt()
    async with run() as index:
        assert not index.doubt


async def test_doubt_raised_while_rows_and_files_are_compared_stays(index):
    await index.raise_doubt("first")
    raised = index.doubts_raised
    await index.raise_doubt("second")  # about what has been compared already
    await index.settle_doubt(raised)
    assert index.doubt
    await index.settle_doubt(index.doubts_raised)
    assert not index.doubt


async def test_a_killed_run_leaves_doubt(kind, run):
    async with run() as index:
        await index.settle_doubt()
    killed = kind.make()
    await killed.start()
    await kind.kill(killed)
    async with run() as index:
        assert index.doubt


async def test_tags_pins_media_types_and_links_outlive_the_index(run, kind):
    async with run() as index:
        await index.settle_doubt()
        await index.add_blob(row(1, media_type=MANIFEST))
        await index.add_blob(row(2))
        await index.put_tag(REPOSITORY, "1", tag(1, 5.0))
        await index.put_tag(REPOSITORY, "gone", tag(1, 5.0))
        await index.forget_tag(REPOSITORY, "gone")
        await index.change_pins(add=[Pin(REPOSITORY, "1"), Pin(OTHER, "1")])
        await index.change_pins(remove=[Pin(OTHER, "1")])
        index.link(REPOSITORY, digest(1))
        index.link(OTHER, digest(2))
    kind.lose()
    async with run() as index:
        assert index.doubt
        assert await index.totals() == Tally()
        assert await index.tag(REPOSITORY, "1") == tag(1, 5.0)
        assert await index.tag(REPOSITORY, "gone") is None
        assert await index.pinned() == [(Pin(REPOSITORY, "1"), digest(1))]
        assert index.media_type_kept(digest(1)) == MANIFEST
        assert index.media_type_kept(digest(2)) is None
        await index.add_blob(row(1, media_type=MANIFEST))  # its file was found; that of the other one was not
        await index.settle_doubt()
        assert (await index.inventory()).links == {digest(1): (REPOSITORY,)}


# --- reads and writes at the same time ------------------------------------------------------------------------------


async def test_history_is_added_up_and_old_steps_go(index):
    kept = {60: 2}
    counts = (1, 2, 3, 4, 5, 6, 7)
    assert await index.add_history(60.0, counts, kept)
    assert await index.add_history(90.0, counts, kept)
    assert await index.history(60, 0.0) == [(60, 2, 4, 6, 8, 10, 12, 14)]
    assert await index.add_history(180.0, counts, kept)
    assert await index.history(60, 0.0) == [(180, *counts)]


async def test_cancelled_callers_break_nothing(index):
    for work in (index.add_blob(row(1)), index.flush(), index.put_tag(REPOSITORY, "1", tag(1, 5.0))):
        task = asyncio.create_task(work)
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    await index.flush()
    await index.add_blob(row(1))
    assert await index.totals() == Tally(10, 1, 0)
    assert index.tag_count == len((await index.inventory()).tags)
