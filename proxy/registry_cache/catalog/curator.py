"""The operator's hand on what is cached: list, purge, pin. Keeps what pins need out of eviction's way."""

import asyncio
import traceback
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from itertools import chain, islice
from typing import NamedTuple, Protocol

from cachetools import LRUCache

from registry_cache.catalog.manifests import OpaqueManifests
from registry_cache.model import contents, events
from registry_cache.model.bus import Events
from registry_cache.model.contents import Inventory, Listing, Parts, Pattern, Pin, PurgePlan, Stored
from registry_cache.model.errors import StoreError
from registry_cache.model.oci import Digest, Repository
from registry_cache.model.short_digests import completed
from registry_cache.runtime.background import Background
from registry_cache.runtime.threads import Threads

# What manifests name is kept from one question to the next: digests of 160 bytes each.
_PARSED_MAX_BYTES = 24 * 1024 * 1024
_DIGEST_BYTES = 160
_MANIFESTS_AT_ONCE = 32  # each may name thousands of digests that are of no interest
# So many digests that are not here are looked for in a bucket that is shared; what a purge means beyond stays there.
_ABSENT_MAX = 100_000
# A round that failed is tried again after this time.
_AGAIN_SECONDS = 60.0


class Shelf(Protocol):
    """The store, as far as the curator needs it."""

    async def needs(self, digests: Collection[Digest]) -> dict[Digest, Parts]:
        """What each stored manifest names; nothing of those that are gone."""

    async def purge(self, digests: list[Digest]) -> tuple[int, int]:
        """Remove blobs: how many there were, and their bytes."""

    async def stored_before(self, digests: Sequence[Digest], at: float) -> list[Digest]:
        """Those that have been here since before *at* (Unix seconds)."""


class Catalog(Protocol):
    """The index, as far as the curator needs it."""

    pins_changed: asyncio.Event

    async def inventory(self) -> Inventory:
        """Everything that is known now."""

    async def forget_repositories(self, is_meant: Callable[[Repository], bool]) -> None:
        """Nothing is known any more of what belongs to these."""

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


class Proven(Protocol):
    """What is known of which content belongs to which repository, as far as the curator needs it."""

    def forget(self, is_meant: Callable[[Repository], bool]) -> None:
        """Upstream is asked again for what is still here of these."""


class Herald(Protocol):
    """Whom the operator's orders are told to: the other replicas of a fleet, and the bucket that they share."""

    async def shared(self, digests: Sequence[Digest]) -> list[Digest]:
        """Those that are in the bucket, as far as that is known now."""

    def purged(self, patterns: Sequence[Pattern], digests: Sequence[Digest]) -> None:
        """What *patterns* name has been purged: *digests*, here or not."""

    def pinned(self, pins: Sequence[Pin], *, pinned: bool) -> None:
        """These are pinned, or are no more."""


class PinAnswer(NamedTuple):
    """What came of a pin: the names, and how many bytes all pins hold of the cap.

    ``not_cached`` are those of the names of which nothing is here yet; ``missing`` the places of the patterns that name
    nothing.
    """

    names: list[str]
    pinned_bytes: int
    max_size_bytes: int
    not_cached: list[str]
    missing: list[int]


class PurgeAnswer(NamedTuple):
    """What goes, or went; ``missing`` are the places of the patterns that name nothing cached.

    ``shared`` is what is not here, and goes from the bucket that a fleet shares.
    """

    plan: PurgePlan
    missing: list[int]
    shared: list[Digest]


class Curator:
    """See the module. :meth:`start` it before anything is evicted; whoever starts it calls :meth:`aclose`.

    What looks at all that is cached runs in a thread of its own: a hundred thousand blobs take a tenth of a second.
    """

    def __init__(
        self,
        store: Shelf,
        index: Catalog,
        opaque: OpaqueManifests,
        proven: Proven,
        *,
        cap_bytes: int,
        events: Events,
    ) -> None:
        self._store = store
        self._index = index
        self._opaque = opaque
        self._proven = proven
        self._cap_bytes = cap_bytes
        self._events = events
        self._thread = Threads("curator", 1)
        self._parsed: LRUCache[Digest, tuple[Digest, ...]] = LRUCache(_PARSED_MAX_BYTES, getsizeof=_parsed_bytes)
        self._following = Background("pins", self._follow, interval_seconds=_AGAIN_SECONDS, events=events)
        self._changing = asyncio.Lock()
        self.herald: Herald | None = None

    async def start(self) -> None:
        """Work out what pins need, and again whenever a pinned tag moves or a pinned manifest arrives.

        Whatever is stored, it does not keep the program from starting: until it has been worked out, what was pinned in
        the last run stays pinned.
        """
        try:
            await self._refresh()
        except StoreError as error:  # following tries again, as below
            self._events.emit(events.BackgroundFailed(work="pins", reason=str(error)))
        except Exception:  # noqa: BLE001 -- see above
            self._events.emit(events.Crashed(message="pins at the start", traceback=traceback.format_exc()))
        self._following.start()

    async def aclose(self) -> None:
        """Stop following."""
        await self._following.aclose()
        self._thread.close()

    async def names(self) -> list[str]:
        """The cached tags as people write them, in order: what a shell offers."""
        inventory = await self._index.inventory()
        return await self._thread.run(
            lambda: sorted(contents.familiar(tag.repository, tag.name) for tag in inventory.tags)
        )

    async def listing(self, patterns: Sequence[Pattern] | None) -> Listing:
        """What is cached, by name; ``None`` for everything.

        Raises:
            DigestAmbiguous: a short digest means several.
        """
        inventory = await self._index.inventory()
        if patterns is not None:
            patterns = await self._whole(patterns, inventory)
        return await self._thread.run(contents.listing, inventory, patterns, await self._needs(inventory))

    async def purge(self, patterns: Sequence[Pattern], *, apply: bool) -> PurgeAnswer:
        """What purging *patterns* takes; taken if *apply*.

        Raises:
            DigestAmbiguous: a short digest means several; nothing was taken.
        """
        async with self._changing:
            inventory = await self._index.inventory()
            whole = await self._whole(patterns, inventory)
            plan = await self._plan(inventory, whole)
            shared = await self.herald.shared(plan.absent) if self.herald is not None else []
            missing = await self._thread.run(contents.name_nothing, inventory, whole, set(shared))
            if apply:
                self._events.emit(await self._take(whole, plan.tags, plan.digests))
                if self.herald is not None:
                    self.herald.purged(whole, [*plan.digests, *plan.absent])
        return PurgeAnswer(plan, missing, shared)

    async def _plan(self, inventory: Inventory, patterns: Sequence[Pattern]) -> PurgePlan:
        """What purging *patterns* takes; in a fleet with all that the manifests that go name, here or not."""
        plan = await self._thread.run(contents.plan_purge, inventory, patterns, await self._needs(inventory))
        if self.herald is None:
            return plan
        absent = set(plan.absent)
        async for read in self._read([one for one in plan.digests if inventory.blobs[one].media_type is not None]):
            named = (part for parts in read.values() for part in parts if part not in inventory.blobs)
            absent.update(islice(named, max(0, _ABSENT_MAX - len(absent))))
        if not absent:
            return plan
        needs = await self._needs(inventory, absent)
        return await self._thread.run(contents.plan_purge, inventory, patterns, needs)

    async def purge_older(self, patterns: Sequence[Pattern], before: float) -> list[Digest]:
        """What another replica has purged: what of it was here at that time. Gives the digests.

        Args:
            before: Unix seconds.
        """
        async with self._changing:
            inventory = await self._index.inventory()
            plan = await self._thread.run(contents.plan_purge, inventory, patterns, await self._needs(inventory))
            digests = await self._store.stored_before(plan.digests, before)
            tags = [tag for tag in plan.tags if tag.fetched_at < before]
            taken = await self._take(patterns, tags, digests)
            if tags or digests:
                self._events.emit(taken)
            return digests

    async def _take(
        self, patterns: Sequence[Pattern], tags: Sequence[contents.Tag], digests: list[Digest]
    ) -> events.Purged:
        await self._index.forget_tags([(tag.repository, tag.name) for tag in tags])
        for pattern in patterns:
            if pattern.names_repositories:
                await self._index.forget_repositories(pattern.matches)
                self._proven.forget(pattern.matches)
        count, size_bytes = await self._store.purge(digests)
        return events.Purged(pattern=_text(patterns), tags=len(tags), objects=count, size_bytes=size_bytes)

    async def pin(self, patterns: Sequence[Pattern]) -> PinAnswer:
        """Pin what *patterns* name.

        Raises:
            DigestAmbiguous: a short digest means several; nothing was pinned.
        """
        return await self._change_pins(patterns, contents.pins_for, pinned=True)

    async def unpin(self, patterns: Sequence[Pattern]) -> PinAnswer:
        """Take the pins away that *patterns* name.

        Raises:
            DigestAmbiguous: a short digest means several; nothing was changed.
        """
        return await self._change_pins(patterns, contents.unpins_for, pinned=False)

    async def _change_pins(
        self, patterns: Sequence[Pattern], meant: Callable[[Inventory, Pattern], list[Pin]], *, pinned: bool
    ) -> PinAnswer:
        async with self._changing:
            inventory = await self._index.inventory()
            whole = await self._whole(patterns, inventory)
            found = await self._thread.run(lambda: [meant(*one) for one in contents.each(inventory, whole)])
            pins = list(dict.fromkeys(pin for each in found for pin in each))
            await self._index.change_pins(**{"add" if pinned else "remove": pins})
            names = sorted(map(str, pins))
            if names:
                self._events.emit(events.Pinned(pattern=_text(whole), names=names, pinned=pinned))
                if self.herald is not None:
                    self.herald.pinned(pins, pinned=pinned)
            cached = {(tag.repository, tag.name) for tag in inventory.tags}
            here = cached | {(pin.repository, pin.target) for pin in pins if pin.target in inventory.blobs}
            away = sorted(str(pin) for pin in pins if (pin.repository, pin.target) not in here)
            missing = [one for one, each in enumerate(found) if not each]
            return PinAnswer(names, await self._refresh(), self._cap_bytes, sorted(away), missing)

    async def pins(self) -> set[Pin]:
        """All of them."""
        return {pin for pin, _ in await self._index.pinned()}

    async def follow_pins(self, *, add: Sequence[Pin], remove: Sequence[Pin]) -> None:
        """What the operator has pinned and unpinned at another replica."""
        async with self._changing:
            await self._index.change_pins(add=add, remove=remove)
            for pins, pinned in ((add, True), (remove, False)):
                if pins:
                    names = sorted(map(str, pins))
                    self._events.emit(events.Pinned(pattern="(another replica)", names=names, pinned=pinned))
            await self._refresh()

    async def _whole(self, patterns: Sequence[Pattern], inventory: Inventory) -> list[Pattern]:
        """*patterns* with whole digests."""
        return await self._thread.run(lambda: [completed(pattern, inventory) for pattern in patterns])

    async def _follow(self) -> float:
        await self._index.pins_changed.wait()
        await self._refresh()
        return 0.0

    async def _refresh(self) -> int:
        """Tell the index what pins need; how many bytes of that are here. Looks at nothing but what is pinned."""
        self._index.pins_changed.clear()
        try:
            wanted, held_bytes = await self._pinned_content()
            await self._index.keep(wanted)
        except BaseException:
            self._index.pins_changed.set()
            raise
        return held_bytes

    async def _pinned_content(self) -> tuple[set[Digest], int]:
        """All that pins need, and how many bytes of it are here."""
        wanted: set[Digest] = set()
        held_bytes = 0
        level = set(contents.roots_of(await self._index.pinned()))
        while level:
            wanted |= level
            here = await self._index.stored(level)
            held_bytes += sum(blob.size_bytes for blob in here.values())
            level = set()
            async for read in self._read([digest for digest, blob in here.items() if blob.media_type is not None]):
                level.update(part for parts in read.values() for part in parts if part not in wanted)
        return wanted, held_bytes

    async def _needs(self, inventory: Inventory, absent: Collection[Digest] = ()) -> contents.Needs:
        """What the manifests of *inventory* need of what is in it, and of *absent*."""
        # One object for each digest, however often it is named; what else is not here is nobody's need.
        here = await self._thread.run(lambda: {digest: digest for digest in chain(inventory.blobs, absent)})
        known: dict[Digest, tuple[Digest, ...]] = {}

        def remember(read: Mapping[Digest, tuple[Digest, ...]]) -> None:
            for digest, parts in read.items():
                known[digest] = tuple(here[part] for part in parts if part in here)

        unread = await self._thread.run(self._already_parsed, inventory, remember)
        async for read in self._read(unread):
            await self._thread.run(remember, read)
            await self._thread.run(self._parsed.update, read)
        return lambda digest: known.get(digest, ())

    def _already_parsed(
        self, inventory: Inventory, remember: Callable[[Mapping[Digest, tuple[Digest, ...]]], None]
    ) -> list[Digest]:
        """Runs in the thread, as all that uses ``_parsed``. The manifests that have to be read."""
        unread = []
        for digest, blob in inventory.blobs.items():
            if blob.media_type is not None:
                parts = self._parsed.get(digest)
                unread += [digest] if parts is None else []
                remember({digest: parts or ()})
        return unread

    async def _read(self, digests: Sequence[Digest]) -> AsyncIterator[dict[Digest, tuple[Digest, ...]]]:
        """What manifests name, a few of them at a time; each that cannot be read is told of."""
        for first in range(0, len(digests), _MANIFESTS_AT_ONCE):
            read = await self._store.needs(digests[first : first + _MANIFESTS_AT_ONCE])
            for digest, parts in read.items():
                if parts.opaque:
                    self._opaque.name(digest, parts.opaque)
            yield {digest: parts.digests for digest, parts in read.items()}


def _parsed_bytes(parts: tuple[Digest, ...]) -> int:
    return _DIGEST_BYTES * (len(parts) + 1)


def _text(patterns: Sequence[Pattern]) -> str:
    return " ".join(map(str, patterns))
