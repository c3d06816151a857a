"""The index: all that is known beside the bytes. An implementation has to pass ``tests/contract/``."""

import asyncio
from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

from registry_cache.model.contents import Inventory, Pin, PinSummary, Stored
from registry_cache.model.oci import Digest
from registry_cache.ports.names import Names
from registry_cache.ports.rows import BlobRows


class Pins(Protocol):
    """What the operator wants to stay, and all that is here, by name."""

    # What pins need, whether it is here yet or not; and that it may have to be worked out again.
    wanted: frozenset[Digest]
    pins_changed: asyncio.Event

    async def inventory(self) -> Inventory:
        """Everything that is known at one moment.

        Raises:
            IndexRefused: nobody can tell.
        """

    async def stored(self, digests: Collection[Digest]) -> dict[Digest, Stored]:
        """Those of *digests* that are here.

        Raises:
            IndexRefused: nobody can tell.
        """

    async def pinned(self) -> list[tuple[Pin, Digest | None]]:
        """Every pin, and what its tag is now (None when it is a digest, or nothing is known of it).

        Raises:
            IndexRefused: nobody can tell.
        """

    async def pin_summary(self, limit: int) -> PinSummary:
        """How much is pinned, and the first *limit* pins."""

    async def change_pins(self, *, add: Sequence[Pin] = (), remove: Sequence[Pin] = ()) -> None:
        """Remember or forget pins.

        Raises:
            IndexRefused: nothing has changed.
        """

    async def keep(self, wanted: Collection[Digest]) -> None:
        """From now on these blobs, and no others, are never evicted; those of them that are yet to come, too."""


class Ledger(Protocol):
    """What was counted, in steps of time: see :mod:`registry_cache.observe.history`."""

    async def add_history(self, at: float, counts: Sequence[int], kept: Mapping[int, int]) -> bool:
        """Add *counts* to the step at *at* of each length; whether that could be written.

        Args:
            at: Unix seconds.
            kept: by length of a step in seconds, how many steps are kept; older ones are forgotten.
        """

    async def history(self, step_seconds: int, since: float) -> list[tuple[int, ...]]:
        """The steps of this length since *since*: when each began, then its counts."""


class Index(BlobRows, Names, Pins, Ledger, Protocol):
    """All that is known beside the bytes. An implementation has to pass ``tests/contract/``."""

    async def start(self) -> None:
        """Open it.

        Raises:
            StoreTooNew: a newer version of this program wrote it.
        """

    async def aclose(self) -> None:
        """Write what is buffered and say that the run ended properly."""
