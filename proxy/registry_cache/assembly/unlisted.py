"""Registries that nobody has listed and whose names are allowed: made when they are asked for, a few at a time.

Who keeps something of one of them keeps its name: its connections are borrowed for each question (:class:`Lent`), and
those of the one that was not asked for longest are closed when another is asked.
"""

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import TypeVar

from cachetools import LRUCache

from registry_cache.model.errors import NameUnknown, UpstreamBusy
from registry_cache.model.oci import Digest, Reference, Repository
from registry_cache.model.registry_patterns import RegistryPatterns
from registry_cache.upstream.blob_body import BlobBody
from registry_cache.upstream.client import FetchedList, FetchedManifest, ManifestHead, Upstream

T = TypeVar("T")

ALIVE_MAX = 64
# What is known of a registry without its connections: what it said no to, how slow it was.
_REMEMBERED_MAX = 256


class Unlisted:
    """Their connections; whoever builds it closes it.

    Args:
        allowed: the names that may be asked.
        build: makes the upstream of a name; nothing is dialled before the first question.
        limit: so many have connections at a time.
    """

    def __init__(self, allowed: RegistryPatterns, build: Callable[[str], Upstream], *, limit: int = ALIVE_MAX) -> None:
        self.allowed = allowed
        self._build = build
        self._limit = limit
        self._alive: OrderedDict[str, Upstream] = OrderedDict()  # the last used last
        self._questions: dict[str, int] = {}  # under way, by name
        self._closing: set[asyncio.Task[None]] = set()

    @property
    def alive(self) -> Mapping[str, Upstream]:
        """Those that have connections now, the last used last."""
        return self._alive

    @contextlib.contextmanager
    def lent(self, name: str) -> Iterator[Upstream]:
        """The upstream of *name*; it stays open as long as this is entered.

        Raises:
            UpstreamBusy: as many others are being asked as may be.
        """
        upstream = self._alive.get(name) or self._made(name)
        self._alive.move_to_end(name)
        self._questions[name] = self._questions.get(name, 0) + 1
        try:
            yield upstream
        finally:
            self._questions[name] -= 1
            if not self._questions[name]:
                del self._questions[name]

    def _made(self, name: str) -> Upstream:
        if name not in self.allowed:
            raise NameUnknown(f"registry {name} is not served here")
        if len(self._alive) >= self._limit:
            idle = next((other for other in self._alive if other not in self._questions), None)
            if idle is None:
                raise UpstreamBusy(f"{self._limit} registries that are not listed are being asked already")
            task = asyncio.create_task(self._alive.pop(idle).aclose(), name=f"close {idle}")
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)
        upstream = self._alive[name] = self._build(name)
        return upstream

    def interrupt(self) -> None:
        """See :meth:`Upstream.interrupt`."""
        for upstream in self._alive.values():
            upstream.interrupt()

    async def aclose(self) -> None:
        """Close every connection."""
        await asyncio.gather(*self._closing, *(upstream.aclose() for upstream in self._alive.values()))
        self._alive.clear()


class Lent:
    """One of them, as pulls see it: :class:`registry_cache.pull.answers.Upstream`."""

    def __init__(self, unlisted: Unlisted, name: str) -> None:
        self._unlisted = unlisted
        self._name = name

    def __repr__(self) -> str:
        return f"<Lent {self._name}>"

    async def manifest_head(self, reference: Reference, **options: int) -> ManifestHead:
        """See :class:`Upstream`."""
        with self._unlisted.lent(self._name) as upstream:
            return await upstream.manifest_head(reference, **options)

    async def manifest(self, reference: Reference) -> FetchedManifest:
        """See :class:`Upstream`."""
        with self._unlisted.lent(self._name) as upstream:
            return await upstream.manifest(reference)

    async def blob_head(self, repository: Repository, digest: Digest) -> int:
        """See :class:`Upstream`."""
        with self._unlisted.lent(self._name) as upstream:
            return await upstream.blob_head(repository, digest)

    async def listing(self, repository: Repository, path: str) -> FetchedList:
        """See :class:`Upstream`."""
        with self._unlisted.lent(self._name) as upstream:
            return await upstream.listing(repository, path)

    @contextlib.asynccontextmanager
    async def blob(
        self, repository: Repository, digest: Digest, *, start: int = 0, stop: int | None = None
    ) -> AsyncIterator[BlobBody]:
        """See :class:`Upstream`."""
        with self._unlisted.lent(self._name) as upstream:
            async with upstream.blob(repository, digest, start=start, stop=stop) as body:
                yield body


class OnDemand(dict[str, T]):
    """What there is of each registry: of those that are listed at once, of the others when it is asked for.

    A dict, since hits look into it: only what is not listed takes the longer way.
    """

    def __init__(self, listed: Mapping[str, T], make: Callable[[str], T], allowed: RegistryPatterns) -> None:
        super().__init__(listed)
        self._make = make
        self._allowed = allowed
        self._made: LRUCache[str, T] = LRUCache(_REMEMBERED_MAX)

    def __missing__(self, name: str) -> T:
        if name not in self._allowed:
            raise KeyError(name)
        made = self._made.get(name)
        if made is None:
            made = self._made[name] = self._make(name)
        return made
