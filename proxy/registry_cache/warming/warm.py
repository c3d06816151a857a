"""Warming: what a list of images would cost, and then pulling what is missing, as far as the quota allows."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple, Protocol

from registry_cache.model.errors import RegistryCacheError
from registry_cache.model.oci import Descriptor
from registry_cache.model.registry_patterns import RegistryPatterns
from registry_cache.observe.figures import QuotaFigures, Stats
from registry_cache.warming.platforms import EVERY_PLATFORM
from registry_cache.warming.puller import Look, Name, Puller, PullFailed

_BLOBS_AT_ONCE = 3  # of one image, as dockerd does it
_LOOKS_AT_ONCE = 8
_ABSENT = (401, 403, 404)
_TOO_MANY = 429

Status = Literal["here", "warmed", "failed", "skipped"]


class Wish(NamedTuple):
    """An image to be warmed.

    ``may_be_absent``: it may be on no registry, and that is no error. ``source``: who wishes it; empty for the command
    line itself.
    """

    name: Name
    platforms: tuple[str, ...]
    may_be_absent: bool = False
    source: str = ""


class Planned(NamedTuple):
    """A wish after a look at it: either what is here, or why it cannot be had."""

    wish: Wish
    look: Look | None
    error: PullFailed | None = None

    @property
    def pulls(self) -> int:
        """Quota that it would cost, at most."""
        return self.look.pulls if self.look is not None else 0


class Outcome(NamedTuple):
    """What came of one image; ``pulls`` is the quota that it did cost."""

    name: str
    status: Status
    pulls: int = 0
    size_bytes: int = 0
    from_upstream_bytes: int = 0
    reason: str = ""


class Listener(Protocol):
    """Is told how it goes."""

    def expect(self, name: str, count: int) -> None:
        """So many more bytes will come."""

    def came(self, name: str, count: int) -> None:
        """So many more bytes have come."""

    def done(self, outcome: Outcome) -> None:
        """One image is done with."""


def joined(wishes: Iterable[Wish]) -> list[Wish]:
    """Each image once, for all the platforms that are wished."""
    found: dict[Name, Wish] = {}
    for wish in wishes:
        known = found.get(wish.name, Wish(wish.name, (), may_be_absent=True))
        platforms = tuple(dict.fromkeys([*known.platforms, *wish.platforms]))
        # Who names it themselves is told most clearly what is wrong with it.
        source = wish.source and (known.source if wish.name in found else wish.source)
        found[wish.name] = Wish(wish.name, platforms, known.may_be_absent and wish.may_be_absent, source)
    return list(found.values())


class NotServed(RegistryCacheError):
    """An image is named whose registry the cache does not serve."""


def served(wishes: Iterable[Wish], stats: Stats) -> tuple[list[Wish], list[str]]:
    """Those that the cache serves, and a note for each that something else named.

    Raises:
        NotServed: one that was asked for by name is not among them.
    """
    names = {alias for figures in stats.upstreams.values() for alias in figures.aliases} | {*stats.upstreams}
    kept, notes = [], []
    for wish in wishes:
        registry = wish.name.repository.registry
        if not names or registry in names or registry in RegistryPatterns(names):  # an older cache does not tell
            kept.append(wish)
        elif wish.source:
            notes.append(f"left out: {wish.name} ({wish.source}): the cache does not serve {registry}")
        else:
            raise NotServed(f'{wish.name}: the cache does not serve {registry}: [upstreams."{registry}"] there would')
    return kept, notes


class Warmer:
    """Warms images through a cache.

    Args:
        quota_floor: pulls that are left to others: what would go below is not begun.
    """

    def __init__(self, puller: Puller, *, parallel: int, quota_floor: int, listener: Listener) -> None:
        self._puller = puller
        self._floor = quota_floor
        self._listener = listener
        self._images = asyncio.Semaphore(parallel)
        self._looks = asyncio.Semaphore(_LOOKS_AT_ONCE)
        self._spending = asyncio.Lock()
        # By registry: pulls that have been begun and are perhaps not in upstream's figure yet, and why nothing that
        # costs quota is begun any more.
        self._promised: Counter[str] = Counter()
        self.stopped: dict[str, str] = {}

    async def plan(self, wishes: Sequence[Wish]) -> list[Planned]:
        """Look at each image, for free."""
        return list(await asyncio.gather(*map(self._look, wishes)))

    async def quota(self, planned: Sequence[Planned]) -> QuotaFigures | None:
        """The quota that is left now: upstream is asked once more, for free, if anything is to be spent."""
        costly = next((each for each in planned if each.pulls), None)
        if costly is not None:
            with contextlib.suppress(PullFailed):
                await self._puller.observe_quota(costly.wish.name)
        return await self._quota(costly.wish.name if costly is not None else None)

    async def warm(self, planned: Sequence[Planned]) -> list[Outcome]:
        """Pull what is missing."""
        tasks = [asyncio.ensure_future(self._warm(each)) for each in planned]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()

    async def _look(self, wish: Wish) -> Planned:
        async with self._looks:
            try:
                return Planned(wish, await self._puller.look(wish.name, wish.platforms))
            except PullFailed as error:
                return Planned(wish, None, error)

    async def _warm(self, planned: Planned) -> Outcome:
        async with self._images:
            name = str(planned.wish.name)
            try:
                outcome = await self._pull(planned)
            except PullFailed as error:
                if error.status == _TOO_MANY:
                    self.stopped.setdefault(planned.wish.name.repository.registry, f"upstream's rate limit: {error}")
                absent = planned.wish.may_be_absent and error.status in _ABSENT
                reason = "built here, and on no registry" if absent else str(error)
                outcome = Outcome(name, "skipped" if absent else "failed", reason=reason)
            self._listener.done(outcome)
            return outcome

    async def _pull(self, planned: Planned) -> Outcome:
        wish, look = planned.wish, planned.look
        name, registry = str(wish.name), wish.name.repository.registry
        if look is None:
            raise planned.error or PullFailed(f"{name}: was not looked at")
        if look.is_whole:
            return Outcome(name, "here", size_bytes=look.size_bytes)
        if look.pulls and not await self._may_spend(wish.name, look.pulls):
            return Outcome(name, "skipped", reason=self.stopped[registry])
        try:
            pulled = await self._puller.manifests(wish.name, wish.platforms)
        finally:
            self._promised[registry] -= look.pulls
        missing = [blob for blob in pulled.blobs if not await self._puller.is_here(wish.name, "blobs", blob.digest)]
        self._listener.expect(name, sum(blob.size_bytes for blob in missing))
        fetched = await self._blobs(wish.name, missing)
        await self._see_that_it_stayed(wish.name, pulled.blobs)
        size = sum(blob.size_bytes for blob in pulled.blobs)
        return Outcome(name, "warmed", pulled.fetched, size, fetched)

    async def _blobs(self, name: Name, blobs: Sequence[Descriptor]) -> int:
        """Pull *blobs*; how many bytes of them came from upstream."""
        slots = asyncio.Semaphore(_BLOBS_AT_ONCE)

        async def one(blob: Descriptor) -> int:
            async with slots:
                hit = await self._puller.blob(name, blob, lambda count: self._listener.came(str(name), count))
                return 0 if hit else blob.size_bytes

        tasks = [asyncio.ensure_future(one(blob)) for blob in blobs]
        try:
            return sum(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()

    async def _see_that_it_stayed(self, name: Name, blobs: Sequence[Descriptor]) -> None:
        """A cache that is full, or cannot write, passes blobs through without keeping them."""
        gone = [blob for blob in blobs if not await self._puller.is_here(name, "blobs", blob.digest)]
        if gone:
            raise PullFailed(
                f"{name}: {len(gone)} of {len(blobs)} blobs came, but were not kept: is MAX_SIZE too small?"
            )

    async def _may_spend(self, name: Name, pulls: int) -> bool:
        """Whether the registry's quota allows it; if not, nothing of it that costs is begun any more."""
        registry = name.repository.registry
        async with self._spending:
            quota = None if registry in self.stopped else await self._quota(name)
            if quota is not None and quota.remaining - self._promised[registry] - pulls < self._floor:
                left = f"the quota: {quota.remaining} pulls are left, and {self._floor} are left to others"
                self.stopped[registry] = left
            if registry in self.stopped:
                return False
            self._promised[registry] += pulls
            return True

    async def _quota(self, name: Name | None) -> QuotaFigures | None:
        """Of the registry of *name*; of the default one without it, and of a cache that knows no other."""
        stats = await self._puller.stats()
        registry = name.repository.registry if name is not None else ""
        of_registry = (
            figures
            for known, figures in stats.upstreams.items()
            if registry in (known, *figures.aliases) or registry in RegistryPatterns(figures.aliases)
        )
        return next(of_registry, stats.upstream).rate_limit


def would_be(planned: Planned) -> Outcome:
    """What a dry run says of it."""
    name = str(planned.wish.name)
    if planned.look is None:
        absent = planned.wish.may_be_absent
        return Outcome(name, "skipped" if absent else "failed", reason=str(planned.error))
    if planned.look.is_whole:
        return Outcome(name, "here", size_bytes=planned.look.size_bytes)
    return Outcome(name, "skipped", planned.pulls, planned.look.size_bytes, reason="dry run")


def platforms_text(wishes: Sequence[Wish]) -> str:
    """For people."""
    found = sorted({platform for wish in wishes for platform in wish.platforms})
    return "every platform" if EVERY_PLATFORM in found else ", ".join(found)
