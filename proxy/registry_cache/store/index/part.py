"""What the parts of the index have in common."""

import asyncio

from registry_cache.model.clock import Clock
from registry_cache.model.oci import Digest, Repository
from registry_cache.store.index.database import Database
from registry_cache.store.index.journal import Journal

# Bounds of what is kept in memory, and of what waits to be written: about 300 bytes each, so a few MB.
KEPT_IN_MEMORY = 16_384


class Part:
    """A part of the index: one idea, its rows in memory and its SQL."""

    _db: Database
    _journal: Journal
    clock: Clock

    def __init__(self) -> None:
        # What pins need, whether it is here yet or not; and that it may have to be worked out again.
        self.wanted: frozenset[Digest] = frozenset()
        self.pinned_tags: frozenset[tuple[Repository, str]] = frozenset()
        self.pins_changed = asyncio.Event()

    def _row_came(self, digest: Digest) -> None:
        """*digest* has a row now."""

    def _row_went(self, digest: Digest) -> None:
        """*digest* has none any more."""
