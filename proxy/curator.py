"""The operator's hand on what is cached: list, purge, pin. Keeps what pins need out of eviction's way."""

import asyncio
import contextlib
import traceback
from collections.abc import Collection, Sequence
from typing import NamedTuple, Protocol

from cachetools import LRUCache

from proxy import contents, events
from proxy.contents import Inventory, Listed, Pattern, Pin, PurgePlan
from proxy.oci import Digest, Repository

_PARSED_MANIFESTS = 65_536


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

    async def forget_tag(self, repository: Repository, tag: str) -> None:
        """The tag is gone from here."""

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
    """See the module. :meth:`start` it before anything is evicted; whoever starts it calls :meth:`aclose`."""

    def __init__(self, store: Shelf, index: Catalog, *, cap_bytes: int, events: events.Events) -> None:
        self._store = store
        self._index = index
        self._cap_bytes = cap_bytes
        self._events = events
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

    async def listing(self, pattern: Pattern | None) -> list[Listed]:
        """What is cached, by name."""
        inventory = await self._index.inventory()
        return contents.listing(inventory, pattern, await self._needs(inventory))

    async def purge(self, pattern: Pattern, *, apply: bool) -> PurgePlan:
        """What purging *pattern* takes; taken if *apply*."""
        async with self._changing:
            inventory = await self._index.inventory()
            plan = contents.plan_purge(inventory, pattern, await self._needs(inventory))
            if apply:
                for tag in plan.tags:
                    await self._index.forget_tag(tag.repository, tag.name)
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
        """Tell the index what pins need; how many bytes of that are here."""
        self._index.pins_changed.clear()
        inventory = await self._index.inventory()
        if not inventory.pins:
            await self._index.keep(())
            return 0
        wanted = contents.closure(contents.pin_roots(inventory), await self._needs(inventory))
        await self._index.keep(wanted)
        return sum(inventory.blobs[digest].size_bytes for digest in wanted if digest in inventory.blobs)

    async def _needs(self, inventory: Inventory) -> contents.Needs:
        manifests = [digest for digest, blob in inventory.blobs.items() if blob.media_type is not None]
        known = {digest: parts for digest in manifests if (parts := self._parsed.get(digest)) is not None}
        read = await self._store.needs([digest for digest in manifests if digest not in known])
        with contextlib.suppress(ValueError):
            self._parsed.update(read)
        known |= read
        return lambda digest: known.get(digest, ())


def _text(pattern: Pattern) -> str:
    tag = f":{pattern.tag}" if pattern.tag else ""
    return f"{pattern.repository}{tag}" + (f"@{pattern.digest}" if pattern.digest else "")
