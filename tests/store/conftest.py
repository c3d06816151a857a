"""A store on a real disk, and ways to fill it."""

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from registry_cache.model.bus import Events
from registry_cache.model.oci import Digest
from registry_cache.store.disk import DiskStore
from registry_cache.store.entries import inspect
from registry_cache.store.index import SqliteIndex

CAP = 1_000_000


@dataclass
class Shelf:
    """An open store, its index and what it has told."""

    store: DiskStore
    index: SqliteIndex
    emitted: list

    async def put(self, content: bytes, media_type: str | None = None) -> Digest:
        """Ingest *content* as a blob; returns its digest."""
        digest = Digest.of(content)
        async with self.store.ingest(digest) as partial:
            try:
                await partial.expect(len(content))
                await partial.append(content)
                partial.verify()
                await partial.publish(media_type)
            finally:
                partial.close()
        return digest

    async def has(self, digest: Digest) -> bool:
        """Whether it can be opened; this is a use of it."""
        blob = await self.store.open(digest)
        if blob is None:
            return False
        blob.close()
        return True

    async def refuse_writes(self) -> None:
        """From now on the index cannot be written, as on a full disk."""
        database = self.index._db
        await database._writer.run(database._db.execute, "PRAGMA query_only = on")

    async def take_writes(self) -> None:
        """It can be written again."""
        database = self.index._db
        await database._writer.run(database._db.execute, "PRAGMA query_only = off")

    def on_disk(self) -> dict[str, int]:
        """What is really in blobs/, by digest; sizes in bytes."""
        folder = self.store.root / "blobs" / "sha256"
        return {f"sha256:{path.name}": path.stat().st_size for path in folder.glob("??/*")}

    def manifests_on_disk(self) -> int:
        """How many of them are manifests."""
        return sum(inspect(self.store.path(Digest(digest)))[1] is not None for digest in self.on_disk())

    def used_bytes(self) -> int:
        """What the cap is about, as the disk has it."""
        folders = ("blobs", "partials", "quarantine")
        return sum(p.stat().st_size for name in folders for p in (self.store.root / name).rglob("*") if p.is_file())

    def check(self) -> None:
        """The invariants of the store, whenever nothing is under way."""
        totals = self.store.totals()
        assert totals.size_bytes == sum(self.on_disk().values())
        assert totals.blobs + totals.manifests == len(self.on_disk())
        assert totals.manifests == self.manifests_on_disk()
        assert self.store.total_bytes == self.used_bytes()
        assert self.store.total_bytes <= self.store.room.cap_bytes


@contextlib.asynccontextmanager
async def open_shelf(
    root: Path, cap_bytes: int = CAP, min_free_bytes: int | None = 0, *, counted: bool = True, **options: Any
):
    """Open the store in *root* as the assembly does, and wait until everything is *counted*."""
    root.mkdir(exist_ok=True)
    bus, emitted = Events(), []
    bus.subscribe(emitted.append)
    index = SqliteIndex(root / "index.sqlite3", events=bus)
    await index.start()
    store = DiskStore(root, cap_bytes=cap_bytes, min_free_bytes=min_free_bytes, index=index, events=bus, **options)
    await store.start()
    if counted:
        await store._condition.known.wait()
    try:
        yield Shelf(store, index, emitted)
    finally:
        await store.aclose()
        await index.aclose()


@pytest.fixture
async def shelf(tmp_path):
    """A store with a cap of one megabyte."""
    async with open_shelf(tmp_path / "store") as opened:
        yield opened
