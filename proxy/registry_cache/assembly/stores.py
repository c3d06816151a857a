"""The store and its index, and what is known of the names in it."""

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

from registry_cache.catalog.curator import Curator
from registry_cache.catalog.listings import Listings
from registry_cache.catalog.manifests import ManifestReader, OpaqueManifests
from registry_cache.catalog.proof import Proof
from registry_cache.model import events
from registry_cache.model.bus import Events
from registry_cache.model.errors import RegistryCacheError
from registry_cache.settings.model import Settings
from registry_cache.settings.registries import registries
from registry_cache.store.disk import DiskStore
from registry_cache.store.index import ANSWERS_MAX_BYTES, SqliteIndex
from registry_cache.store.lock import DirectoryLock
from registry_cache.store.scrub import Scrubber

_FAILURES = (OSError, RegistryCacheError)


@contextlib.asynccontextmanager
async def open_store(
    settings: Settings, bus: Events, *, is_kept: bool = True
) -> AsyncIterator[tuple[SqliteIndex, DiskStore]]:
    """What is cached, for this process alone.

    Args:
        is_kept: the directory stays, whatever happens. Else a start that fails before it is ready (``events.Ready``)
            takes away again what it has made.

    Raises:
        StoreLocked: another process has it.
        StoreError: the cache directory cannot be used.
    """
    async with contextlib.AsyncExitStack() as stack:
        lock = DirectoryLock(settings.cache_dir)
        stack.callback(lock.release)
        if not is_kept:
            bus.subscribe(lambda _: lock.keep(), events.Ready)
            stack.push(lambda kind, *_: lock.undo() if kind and issubclass(kind, _FAILURES) else None)
        if lock.warning:
            bus.emit(events.Warned(message=lock.warning))
        index = SqliteIndex(
            settings.cache_dir / "index.sqlite3",
            events=bus,
            answers_max_bytes=min(ANSWERS_MAX_BYTES, settings.max_size // 20),
        )
        await index.start()
        stack.push_async_callback(index.aclose)
        store = DiskStore(
            settings.cache_dir,
            cap_bytes=settings.max_size,
            min_free_bytes=settings.min_free,
            index=index,
            events=bus,
        )
        await store.start()
        stack.push_async_callback(store.aclose)
        yield index, store


@dataclass(frozen=True)
class Catalog:
    """What is here, whose it is, and who may change that."""

    manifests: ManifestReader
    proof: Proof
    curator: Curator
    listings: Listings


@contextlib.asynccontextmanager
async def open_catalog(settings: Settings, bus: Events, index: SqliteIndex, store: DiskStore) -> AsyncIterator[Catalog]:
    """The catalog of a store, and the scrub, which goes on in the background."""
    async with contextlib.AsyncExitStack() as stack:
        opaque = OpaqueManifests(bus)
        manifests = ManifestReader(opaque)
        stack.push_async_callback(manifests.aclose)
        # What one account reads is handed out under no name of another registry either.
        served = registries(settings)
        has_account = any(registry.has_account for registry in served.values())
        # And where not everybody may pull everything, a name that one may pull gives no content of another.
        proof = Proof(
            index,
            store,
            manifests,
            is_required=has_account or settings.has_rules or bool(settings.forwarding),
            tells_registries_apart=len(served) > 1 or bool(settings.allow_unlisted),
        )
        curator = Curator(
            store,
            index,
            opaque,
            proof,
            cap_bytes=int(settings.max_size),
            events=bus,
        )
        await curator.start()
        stack.push_async_callback(curator.aclose)
        listings = Listings(lambda: curator.listing(None))
        stack.push_async_callback(listings.aclose)
        scrubber = Scrubber(store, index, bytes_per_second=settings.scrub_rate, events=bus)
        scrubber.start()
        stack.push_async_callback(scrubber.aclose)
        yield Catalog(manifests, proof, curator, listings)
