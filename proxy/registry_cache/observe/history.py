"""What was counted, by minute, quarter of an hour and day: a bounded number of steps of each, so it never grows.

The steps are kept by the index. Each length of a step is added up by itself as time goes by, so nothing has to be
rolled up later, and a restart loses what was counted in the last few seconds.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol

from registry_cache.model.bus import Events
from registry_cache.runtime.background import Background

MINUTE, QUARTER, DAY = 60, 900, 86_400
# By length of a step in seconds, how many are kept: two hours, two days, two months.
KEPT: Mapping[int, int] = {MINUTE: 120, QUARTER: 192, DAY: 62}
_WRITE_SECONDS = 10.0


class Counts(NamedTuple):
    """What happened in some time. The order is that of the index's columns."""

    hits: int = 0
    misses: int = 0
    errors: int = 0
    cached_bytes: int = 0  # sent to clients without asking upstream for them
    served_bytes: int = 0  # sent to clients
    received_bytes: int = 0  # from upstream
    evicted_bytes: int = 0

    def plus(self, other: "Counts") -> "Counts":
        """Both together."""
        return Counts(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))

    def minus(self, other: "Counts") -> "Counts":
        """What was counted since *other*."""
        return Counts(*(mine - theirs for mine, theirs in zip(self, other, strict=True)))

    @property
    def hit_ratio(self) -> float | None:
        """Hits over hits and misses; None before the first of either."""
        asked = self.hits + self.misses
        return self.hits / asked if asked else None


class Step(NamedTuple):
    """The counts of the time from ``began_at`` (Unix seconds) on, as long as a step is."""

    began_at: int
    counts: Counts


class Span(NamedTuple):
    """A stretch of time that ends now, in steps."""

    name: str
    step_seconds: int
    steps: int

    def began_at(self, now: float) -> int:
        """When its first step began; the last one is the one that is going on."""
        return int(now // self.step_seconds - self.steps + 1) * self.step_seconds

    def filled(self, rows: Iterable[Sequence[int]], now: float) -> list[Step]:
        """Every step of the span, the oldest first, those without a row with zeros.

        Args:
            rows: when each step began, then its counts; others than the span's are left out.
        """
        known = {row[0]: Counts(*row[1:]) for row in rows}
        first = self.began_at(now)
        starts = range(first, first + self.steps * self.step_seconds, self.step_seconds)
        return [Step(start, known.get(start, Counts())) for start in starts]


HOUR_SPAN = Span("hour", MINUTE, 60)
DAY_SPAN = Span("day", QUARTER, 96)
MONTH_SPAN = Span("month", DAY, 30)
SPANS = (HOUR_SPAN, DAY_SPAN, MONTH_SPAN)


def total(steps: Iterable[Step]) -> Counts:
    """All of *steps* together."""
    added = Counts()
    for step in steps:
        added = added.plus(step.counts)
    return added


class Ledger(Protocol):
    """The index, as far as the history needs it."""

    async def add_history(self, at: float, counts: Sequence[int], kept: Mapping[int, int]) -> bool:
        """Add *counts* to the step at *at* of each length; whether that could be written."""

    async def history(self, step_seconds: int, since: float) -> list[tuple[int, ...]]:
        """The steps of this length since *since*: when each began, then its counts."""


class History:
    """Writes down what is counted. Whoever starts it calls :meth:`aclose`, before the index is closed.

    Args:
        counted: everything counted since the start of this process.
        now: Unix seconds; never decreases.
    """

    def __init__(self, ledger: Ledger, counted: Callable[[], Counts], now: Callable[[], float], events: Events) -> None:
        self._ledger = ledger
        self._counted = counted
        self._now = now
        self._written = counted()
        self._writing = asyncio.Lock()
        self._loop = Background("history", self.record, interval_seconds=_WRITE_SECONDS, events=events)

    def start(self) -> None:
        """Write every few seconds from now on, if there is anything to write."""
        self._loop.start()

    async def aclose(self) -> None:
        """Write the rest and stop."""
        await self._loop.aclose()
        await self.record()

    async def record(self) -> None:
        """Write what was counted since the last time; what cannot be written now is written later."""
        async with self._writing:
            counted = self._counted()
            news = counted.minus(self._written)
            if any(news) and await self._ledger.add_history(self._now(), news, KEPT):
                self._written = counted

    async def spans(self) -> dict[str, list[Step]]:
        """The last hour, day and month, by name, up to this moment."""
        await self.record()
        now = self._now()
        return {
            span.name: span.filled(await self._ledger.history(span.step_seconds, span.began_at(now)), now)
            for span in SPANS
        }
