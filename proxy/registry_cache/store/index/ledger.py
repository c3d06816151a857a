"""What was counted, in steps of time."""

import sqlite3
from collections.abc import Mapping, Sequence

from registry_cache.store.index.part import Part
from registry_cache.store.index.schema import transaction


class Ledger(Part):
    """See the module and :class:`registry_cache.ports.index.Ledger`."""

    async def add_history(self, at: float, counts: Sequence[int], kept: Mapping[int, int]) -> bool:
        """See :class:`registry_cache.ports.index.Ledger`."""
        return await self._db.try_write(_add_history, False, at, counts, kept)

    async def history(self, step_seconds: int, since: float) -> list[tuple[int, ...]]:
        """See :class:`registry_cache.ports.index.Ledger`."""
        return await self._db.read(_select_history, [], step_seconds, since)


def _add_history(db: sqlite3.Connection, at: float, counts: Sequence[int], kept: Mapping[int, int]) -> bool:
    with transaction(db):
        for step, number in kept.items():
            began = int(at // step * step)
            db.execute(
                "INSERT INTO history VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET "
                "hits = hits + excluded.hits, misses = misses + excluded.misses, errors = errors + excluded.errors, "
                "cached_bytes = cached_bytes + excluded.cached_bytes, "
                "served_bytes = served_bytes + excluded.served_bytes, "
                "received_bytes = received_bytes + excluded.received_bytes, "
                "evicted_bytes = evicted_bytes + excluded.evicted_bytes",
                (step, began, *counts),
            )
            # Steps behind now were written while the machine's clock was ahead.
            db.execute(
                "DELETE FROM history WHERE step_seconds = ? AND (began_at <= ? OR began_at > ?)",
                (step, began - number * step, began),
            )
    return True


def _select_history(db: sqlite3.Connection, step_seconds: int, since: float) -> list[tuple[int, ...]]:
    return db.execute(
        "SELECT began_at, hits, misses, errors, cached_bytes, served_bytes, received_bytes, evicted_bytes "
        "FROM history WHERE step_seconds = ? AND began_at >= ? ORDER BY began_at",
        (step_seconds, since),
    ).fetchall()
