"""Fixes taken out again, one at a time: the simulator has to find each of them missing.

``python -m tests.simulator.mutations`` says after how many runs it did.
"""

import contextlib
import itertools
import sys
from collections.abc import Callable, Iterator
from typing import Any

from registry_cache.model.errors import IndexRefused
from registry_cache.ports.rows import Tally
from registry_cache.store.eviction import Evictor
from registry_cache.store.intake import Intake
from registry_cache.store.locks import Locks
from registry_cache.store.quarantine import Quarantine
from registry_cache.store.reading import Reading
from registry_cache.store.removal import Removal
from registry_cache.store.row_writer import RowWriter, tally

from .world import run, simulated

_RUNS = 4000


def rows_say_what_was_evicted(patch: Callable[..., None]) -> None:
    """Issue 18, "writes of the index fail": eviction believes what rows say, and goes on until nothing is left."""

    def gone(self: Removal, rows: Any) -> Tally:
        total = Tally()
        for row in rows.values():
            total = total.plus(row)
        self._rows.forget(rows)
        if not self._rows._index.writable:
            return Tally()
        self._room.remove(total)
        return total

    patch(Removal, "gone", gone)


def a_row_that_was_refused_is_no_trouble(patch: Callable[..., None]) -> None:
    """Issue 18, "another process holds the index": the file comes without its row."""
    add = RowWriter.add

    async def careless(self: RowWriter, entry: Any) -> Tally:
        try:
            return await add(self, entry)
        except IndexRefused:
            return tally(entry.size_bytes, entry.media_type)

    patch(RowWriter, "add", careless)


def purged_content_comes_back_through_memory(patch: Callable[..., None]) -> None:
    """Issue 18, "purge beside a reader": memory is emptied once, before the file goes."""

    @contextlib.contextmanager
    def leaving(self: Reading, digests: Any) -> Iterator[None]:
        for digest in digests:
            self._memory.pop(digest, None)
        yield

    patch(Reading, "leaving", leaving)


def the_name_is_quarantined(patch: Callable[..., None]) -> None:
    """Issue 18, "a blob is cut under two readers; pulled anew while the scrub hashes it"."""
    put_aside = Quarantine.put_aside

    async def by_name(self: Quarantine, reading: Any, digest: Any, reason: str, _: Any) -> None:
        await put_aside(self, reading, digest, reason, None)

    patch(Quarantine, "put_aside", by_name)


def a_victim_may_be_taken_up(patch: Callable[..., None]) -> None:
    """Issue 18, "a partial is being evicted when its blob is asked for": nobody waits for anybody."""

    @contextlib.asynccontextmanager
    async def hold(_self: Locks, _digests: Any) -> Any:
        yield

    patch(Locks, "hold", hold)


def room_is_not_held_for_who_made_it(patch: Callable[..., None]) -> None:
    """Issue 18, "two transfers need room at once": what was freed is anybody's, and one round is all there is."""

    def take(self: Evictor, share: Any, size_bytes: int) -> Any:
        missing = self.lacks(share, size_bytes)
        if share is not None and missing.is_none:
            self._room.grow(share, size_bytes)
        return missing

    async def nobody(_self: Evictor, _share: Any) -> bool:
        return False

    def still_needed(_self: Evictor, missing: Any, freed: Tally, _share: Any, _size_bytes: int) -> int:
        return max(0, max(missing.cap_bytes, missing.disk_bytes) - freed.size_bytes)

    evict = Evictor._evict

    async def once(self: Evictor, share: Any, size_bytes: int) -> Any:
        missing = await evict(self, share, size_bytes)
        self._evictions = 0
        return missing

    patch(Evictor, "_take", take)
    patch(Evictor, "_still_needed", still_needed)
    patch(Evictor, "_evict", once)
    patch(Evictor, "_somebody_leaves", nobody)


def a_first_byte_waits_for_rows(patch: Callable[..., None]) -> None:
    """Issue 18, "the index is locked for 40 s": what makes room waits until the rows are gone too."""
    remove = Removal.remove

    async def and_wait(self: Removal, digests: Any) -> Tally:
        gone = await remove(self, digests)
        await self._rows.settled()
        return gone

    patch(Removal, "remove", and_wait)


def the_row_comes_after_the_file(patch: Callable[..., None]) -> None:
    """Dying, or being looked at, in between: a file that nobody knows."""

    async def place(self: Intake, entry: Any, place: Any) -> Tally:
        await place()
        return await self._rows.add(entry)

    patch(Intake, "_place", place)


def rows_are_read_beside_their_deletion(patch: Callable[..., None]) -> None:
    """Found by the simulator: a row that was read before it was deleted is counted out twice."""

    async def of(self: RowWriter, digests: Any) -> Any:
        here = await self._index.stored(digests)
        return {d: tally(row.size_bytes, row.media_type) for d, row in here.items() if d not in self._going}

    patch(RowWriter, "of", of)


def a_row_that_cannot_be_read_is_none(patch: Callable[..., None]) -> None:
    """Its file goes, and the row stays: nobody looks for it again."""
    of = RowWriter.of

    async def hopeful(self: RowWriter, digests: Any) -> Any:
        try:
            return await of(self, digests)
        except IndexRefused:
            return {}

    patch(RowWriter, "of", hopeful)


def a_file_that_is_gone_is_looked_at(patch: Callable[..., None]) -> None:
    """Found by the simulator: it was removed, the look at it failed, and its row stayed without doubt."""

    async def is_gone(self: Removal, _digest: Any, path: str) -> bool:
        try:
            await self._files.remove([path])
            return await self._files.identify(path) is None
        except OSError:
            return False

    patch(Removal, "_is_gone", is_gone)


def files_go_before_doubt_is_written(patch: Callable[..., None]) -> None:
    """A run that could not even say that it has begun dies between the unlink and the refusal of the row."""

    async def counted(self: Removal, digests: Any) -> Any:
        return await self._rows.of(digests)

    patch(Removal, "counted", counted)


def a_stop_waits_for_nobody(patch: Callable[..., None]) -> None:
    """Who was cancelled and not waited for takes a file away behind the last rows that are deleted."""

    async def all_free(_self: Locks) -> None:
        return

    patch(Locks, "all_free", all_free)


MUTATIONS = (
    rows_say_what_was_evicted,
    a_row_that_was_refused_is_no_trouble,
    purged_content_comes_back_through_memory,
    the_name_is_quarantined,
    a_victim_may_be_taken_up,
    room_is_not_held_for_who_made_it,
    a_first_byte_waits_for_rows,
    the_row_comes_after_the_file,
    rows_are_read_beside_their_deletion,
    a_row_that_cannot_be_read_is_none,
    a_file_that_is_gone_is_looked_at,
    files_go_before_doubt_is_written,
    a_stop_waits_for_nobody,
)


# Where a fix matters in one kind of trouble, it is looked for there.
TROUBLES = {
    rows_say_what_was_evicted: ("full disk", "refusing rows"),
    room_is_not_held_for_who_made_it: (),
    a_first_byte_waits_for_rows: ("slow rows",),
    rows_are_read_beside_their_deletion: ("slow rows",),
    a_row_that_cannot_be_read_is_none: ("failing reads",),
    a_file_that_is_gone_is_looked_at: ("failing files",),
    files_go_before_doubt_is_written: ("slow files", "refusing rows", "crash"),
    a_stop_waits_for_nobody: ("slow files", "slow rows"),
}
# The first seed to try, where one that finds it comes late.
FIRST = {a_stop_waits_for_nobody: 8000}


def found(mutation: Callable[..., None], runs: int = _RUNS) -> tuple[int, str] | None:
    """After how many runs *mutation* was found, and by what; None if it was not."""
    before: list[tuple[Any, str, Any]] = []

    def patch(owner: Any, name: str, replacement: Any) -> None:
        before.append((owner, name, getattr(owner, name)))
        setattr(owner, name, replacement)

    with simulated():
        mutation(patch)
        try:
            first = FIRST.get(mutation, 0)
            for seed in itertools.islice(itertools.count(first), runs):
                try:
                    run(seed, TROUBLES.get(mutation))
                except Exception as error:
                    return seed - first + 1, f"{type(error).__name__}: {error}"
        finally:
            for owner, name, original in reversed(before):
                setattr(owner, name, original)
    return None


if __name__ == "__main__":
    sys.unraisablehook = lambda _: None
    asked = sys.argv[1:]
    for mutation in MUTATIONS:
        if not asked or mutation.__name__ in asked:
            print(f"{mutation.__name__}: {found(mutation)}", flush=True)
