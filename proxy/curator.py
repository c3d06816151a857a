"""The operator's hand on what is cached: list, purge, pin. Keeps what pins need out of eviction's way."""

import asyncio
import traceback
from collections.abc import Collection, Sequence
from typing import NamedTuple, Protocol

from cachetools import LRUCache

from proxy import contents, events
from proxy.contents import Inventory, Listed, Pattern, Pin, PurgePlan, Stored
from proxy.oci import Digest, Repository
from proxy.threads import Threads

_PARSED_MANIFESTS = 16_384  # about 1.5 kB each


class Shelf(Protocol):
    """The store, as far as the curator needs it."""

    async def needs(self, digests: Collection[Digest]) -> dict[Digest, tuple[Digest, ...]]:
        """What each stored manifest names."""

    async def purge(self, digests: list[Digest]) -> tuple[int, int]:
        """Remove blobs: how many there were, and their bytes."""


class Catalog(Protocol):
    """The index, as far as the curator needs it."""

    pins_changed: asyncio.Event

    async def inventory(self) -> Inventory:
        """Everything that is known now."""

    async def forget_tags(self, tags: Sequence[tuple[Repository, str]]) -> None:
        """These are gone from here."""

    async def pinned(self) -> list[tuple[Pin, Digest | None]]:
        """Every pin, and what its tag is now."""

    async def stored(self, digests: Collection[Digest]) -> dict[Digest, Stored]:
        """Those that are here."""

    async def keep(self, wanted: Collection[Digest]) -> None:
        """Never evict these."""

    async def change_pins(self, *, add: Sequence[Pin] = (), remove: Sequence[Pin] = ()) -> None:
        """Remember or forget pins."""


class PinAnswer(NamedTuple):
    """What came of a pin: the names, and how many bytes all pins hold of the cap."""

    names: list[str]
    pinned_bytes: int
    max_size_bytes: int


class Curator:
    """See the module. :meth:`start` it before anything is evicted; whoever starts it calls :meth:`aclose`.

    What looks at all that is cached runs in a thread of its own: a hundred thousand blobs take a tenth of a second.
    """

    def __init__(self, store: Shelf, index: Catalog, *, cap_bytes: int, events: events.Events) -> None:
        self._store = store
        self._index = index
        self._cap_bytes = cap_bytes
        self._events = events
        self._thread = Threads("curator", 1)
        self._parsed: LRUCache[Digest, tuple[Digest, ...]] = LRUCache(_PARSED_MANIFESTS)
        self._task: asyncio.Task[None] | None = None
        self._changing = asyncio.Lock()

    async def start(self) -> None:
        """Work out what pins need, and again whenever a pinned tag moves or a pinned manifest arrives."""
        await self._refresh()
        self._task = asyncio.create_task(self._follow(), name="pins")

    async def aclose(self) -> None:
        """Stop following."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._thread.close()

    async def listing(self, pattern: Pattern | None) -> list[Listed]:
        """What is cached, by name."""
        inventory = await self._index.inventory()
        return await self._thread.run(contents.listing, inventory, pattern, await self._needs(inventory))

    async def purge(self, pattern: Pattern, *, apply: bool) -> PurgePlan:
        """What purging *pattern* takes; taken if *apply*."""
        async with self._changing:
            inventory = await self._index.inventory()
            plan = await self._thread.run(contents.plan_purge, inventory, pattern, await self._needs(inventory))
            if apply:
                await self._index.forget_tags([(tag.repository, tag.name) for tag in plan.tags])
                count, size_bytes = await self._store.purge(plan.digests)
                self._events.emit(
                    events.Purged(pattern=_text(pattern), tags=len(plan.tags), objects=count, size_bytes=size_bytes)
                )
        return plan

    async def pin(self, pattern: Pattern) -> PinAnswer:
        """Pin what *pattern* names."""
        async with self._changing:
            pins = contents.pins_for(await self._index.inventory(), pattern)
            await self._index.change_pins(add=pins)
            return await self._answer(pattern, pins, pinned=True)

    async def unpin(self, pattern: Pattern) -> PinAnswer:
        """Take the pins away that *pattern* names."""
        async with self._changing:
            pins = contents.unpins_for(await self._index.inventory(), pattern)
            await self._index.change_pins(remove=pins)
            return await self._answer(pattern, pins, pinned=False)

    async def _answer(self, pattern: Pattern, pins: list[Pin], *, pinned: bool) -> PinAnswer:
        names = sorted(map(str, pins))
        if names:
            self._events.emit(events.Pinned(pattern=_text(pattern), names=names, pinned=pinned))
        return PinAnswer(names, await self._refresh(), self._cap_bytes)

    async def _follow(self) -> None:
        while True:
            await self._index.pins_changed.wait()
            try:
                await self._refresh()
            except Exception:  # noqa: BLE001 -- the next change tries again; it must not end for ever
                self._events.emit(events.Crashed(message="following pins", traceback=traceback.format_exc()))

    async def _refresh(self) -> int:
        """Tell the index what pins need; how many bytes of that are here. Looks at nothing but what is pinned."""
        self._index.pins_changed.clear()
        wanted: set[Digest] = set()
        held_bytes = 0
        level = set(contents.roots_of(await self._index.pinned()))
        while level:
            wanted |= level
            here = await self._index.stored(level)
            held_bytes += sum(blob.size_bytes for blob in here.values())
            read = await self._store.needs([digest for digest, blob in here.items() if blob.media_type is not None])
            level = {part for parts in read.values() for part in parts} - wanted
        await self._index.keep(wanted)
        return held_bytes

    async def _needs(self, inventory: Inventory) -> contents.Needs:
        known, unread = await self._thread.run(self._already_parsed, inventory)
        read = await self._store.needs(unread)
        await self._thread.run(self._remember, known, read)
        return lambda digest: known.get(digest, ())

    def _already_parsed(self, inventory: Inventory) -> tuple[dict[Digest, tuple[Digest, ...]], list[Digest]]:
        """Runs in the thread, as all that uses ``_parsed``."""
        manifests = [digest for digest, blob in inventory.blobs.items() if blob.media_type is not None]
        known = {digest: parts for digest in manifests if (parts := self._parsed.get(digest)) is not None}
        return known, [digest for digest in manifests if digest not in known]

    def _remember(self, known: dict[Digest, tuple[Digest, ...]], read: dict[Digest, tuple[Digest, ...]]) -> None:
        self._parsed.update(read)
        known |= read


def _text(pattern: Pattern) -> str:
    tag = f":{pattern.tag}" if pattern.tag else ""
    return f"{pattern.repository}{tag}" + (f"@{pattern.digest}" if pattern.digest else "")
