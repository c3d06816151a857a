"""Prefetch: the layers that a pull is about to ask for, fetched before it asks.

dockerd fetches three layers at a time, each over one connection, while the cache has seen the manifest and knows the
rest. A pull shows itself by the first layer that is not here: clients that only inspect ask for the manifest and the
config too, but for no layer. Fetched ahead are the layers behind that one, because clients ask from the base upwards
and leave out what they have.

What is fetched ahead is an ordinary flight: a client that asks for it joins it, the cap holds for it, nobody sees it
fail. Flights that clients started never wait for it: it has slots of its own.
"""

import asyncio
import functools
from collections.abc import Collection
from weakref import WeakValueDictionary

from registry_cache.catalog.manifests import ManifestReader
from registry_cache.model import events
from registry_cache.model.bus import Events
from registry_cache.model.errors import RegistryCacheError
from registry_cache.model.events import CacheResult
from registry_cache.model.oci import Descriptor, Digest, Manifest, Repository
from registry_cache.pull.answers import Elsewhere
from registry_cache.pull.flights import Flights

# Manifests whose layers are remembered, and all those layers together: the pulls that may be under way.
_PLANS = 256
_PLANNED_LAYERS = 16_384
# An image with more layers than any daemon can unpack is none: nothing of it is fetched ahead.
_LAYERS_MAX = 1000
# Of an image so many layers in a row are tried that upstream does not give.
_FAILURES_MAX = 3
# Layers that wait for a slot or for a client, over all pulls.
_AHEAD = 512
# What a client waits for comes first, if it comes soon: asking for the layers behind it takes the same processor.
# Of a far upstream nothing comes that soon, and nothing is lost.
_HEAD_START_SECONDS = 0.01
# What nobody has asked for after this long was fetched for nothing.
_PATIENCE_SECONDS = 300.0


class _Ahead:
    """A layer between being chosen and being asked for. *size_bytes* counts against the bound."""

    __slots__ = ("expiry", "fetched", "is_shared", "size_bytes")

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self.fetched = False
        self.is_shared = False  # the fleet's bucket brought it
        self.expiry: asyncio.TimerHandle | None = None


# A manifest in a repository. A plain tuple: a named one is built by a call, and every hit makes one.
_Key = tuple[Repository, Digest]


class _Plan:
    """The layers of a manifest in their order, and where each of them is among them.

    ``failures``: so many of them in a row could not be fetched ahead.
    """

    __slots__ = ("failures", "layers", "places")

    def __init__(self, layers: tuple[Descriptor, ...]) -> None:
        self.layers = layers
        self.places = {layer.digest: place for place, layer in reversed([*enumerate(layers)])}
        self.failures = 0

    @property
    def is_worth_it(self) -> bool:
        """Whether upstream may have what it names; what its author made up would be asked for a thousand times."""
        return self.failures < _FAILURES_MAX


class Prefetcher:
    """See the module. Its owner closes it before the flights.

    Args:
        concurrency: layers fetched ahead at the same time from a registry; 0 turns it off.
        without: registries of which nothing is.
        elsewhere: what clients are sent there for is not fetched ahead.
        max_bytes: of what is being fetched ahead, or was and nobody has asked for it yet, by the manifests' word.
    """

    def __init__(
        self,
        flights: Flights,
        manifests: ManifestReader,
        *,
        concurrency: int,
        max_bytes: int,
        events: Events,
        without: Collection[str] = (),
        elsewhere: Elsewhere | None = None,
    ) -> None:
        self._without = frozenset(without)
        self._elsewhere = elsewhere
        self._flights = flights
        self._manifests = manifests
        self._enabled = concurrency > 0
        self._max_bytes = max_bytes
        self._events = events
        self._concurrency = concurrency
        # By registry: one that hangs takes none of another's. Kept while something waits for one or has one.
        self._slots: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()
        self._plans: dict[_Key, _Plan] = {}  # the one served last is the last one
        self._planned_layers = 0
        self._ahead: dict[Digest, _Ahead] = {}
        self._ahead_bytes = 0
        self._tasks: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return f"<Prefetcher {len(self._ahead)} layers, {self._ahead_bytes}/{self._max_bytes} bytes ahead>"

    async def aclose(self) -> None:
        """Start nothing more; the flights under way belong to :class:`Flights`."""
        self._enabled = False
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for digest in list(self._ahead):
            self._forget(digest)

    def served(self, repository: Repository, digest: Digest, body: bytes) -> None:
        """A client has got this manifest: it may be about to pull. On the path of every hit, so it parses once."""
        if not self._enabled or repository.registry in self._without:
            return
        key = (repository, digest)
        plan = self._plans.pop(key, None)
        if plan is not None:
            plan.failures = 0
            self._plans[key] = plan
        else:
            self._manifests.read(digest, body, functools.partial(self._plan, key))

    def _plan(self, key: _Key, manifest: Manifest) -> None:
        if key in self._plans:
            return
        layers = manifest.layers
        if len(layers) > _LAYERS_MAX:
            self._manifests.opaque.name(key[1], f"it names more than {_LAYERS_MAX} layers: none is fetched ahead")
            layers = ()
        self._plans[key] = _Plan(layers)
        self._planned_layers += len(layers)
        while len(self._plans) > _PLANS or self._planned_layers > _PLANNED_LAYERS:
            self._planned_layers -= len(self._plans.pop(next(iter(self._plans))).layers)

    def asked(self, repository: Repository, digest: Digest) -> CacheResult | None:
        """A client has asked for this blob; if it was fetched ahead for it and nobody had asked before, how it came."""
        if digest not in self._ahead:
            return None
        ahead = self._forget(digest)
        self._go_on(repository, digest)
        flight = self._flights.get(digest)
        if not ahead.fetched and flight is None:
            return None
        return "shared" if ahead.is_shared or (flight is not None and flight.is_shared) else "collapsed"

    def missed(self, repository: Repository, digest: Digest) -> None:
        """A client has started the flight of this blob: what comes behind it in its manifest is fetched ahead."""
        if digest in self._ahead:
            ahead = self._forget(digest)
            if ahead.fetched:
                self._waste(digest, "it was evicted before a client asked for it", ahead)
        self._go_on(repository, digest, after_seconds=_HEAD_START_SECONDS)

    def _go_on(self, repository: Repository, digest: Digest, *, after_seconds: float = 0.0) -> None:
        """Choose as many layers behind *digest* as the bounds allow."""
        if not self._enabled:
            return
        plan, behind = self._behind(repository, digest)
        for layer in behind:
            size_bytes = max(0, layer.size_bytes)
            if layer.digest in self._ahead or self._flights.get(layer.digest) is not None:
                continue
            if not self._flights.may_store(size_bytes):
                return  # it would go past the store, once for nobody and once more for the client
            if len(self._ahead) >= _AHEAD or self._ahead_bytes + size_bytes > self._max_bytes:
                return  # in order: what comes first is asked for first; the next request goes on from there
            self._ahead[layer.digest] = ahead = _Ahead(size_bytes)
            self._ahead_bytes += size_bytes
            fetch = self._fetch(repository, layer.digest, ahead, plan, after_seconds)
            task = asyncio.create_task(fetch, name=f"prefetch {layer.digest}")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _behind(self, repository: Repository, digest: Digest) -> tuple[_Plan, tuple[Descriptor, ...]]:
        """The manifest that was served last and has *digest*, and its layers behind that."""
        for key in reversed(self._plans):
            if key[0] == repository:
                plan = self._plans[key]
                if (place := plan.places.get(digest)) is not None:
                    return plan, plan.layers[place + 1 :] if plan.is_worth_it else ()
        return _Plan(()), ()

    async def _fetch(
        self, repository: Repository, digest: Digest, ahead: _Ahead, plan: _Plan, after_seconds: float
    ) -> None:
        """Fetch one layer, unless it is here or a client has asked for it meanwhile."""
        await asyncio.sleep(after_seconds)
        slots = self._slots.setdefault(repository.registry, asyncio.Semaphore(self._concurrency))
        async with slots:
            if self._ahead.get(digest) is not ahead:
                return
            if not plan.is_worth_it:
                self._forget_this(digest, ahead)
                return
            if self._elsewhere is not None and await self._elsewhere.has(repository, digest, ahead.size_bytes):
                self._forget_this(digest, ahead)
                return
            blob = await self._flights.stored(digest)
            if blob is not None:
                blob.close()
            if blob is not None or self._ahead.get(digest) is not ahead or self._flights.get(digest) is not None:
                self._forget_this(digest, ahead)
                return
            reader = self._flights.fetch_ahead(repository, digest, ahead.size_bytes)
            try:
                size_bytes = await reader.size() or 0
                if self._ahead.get(digest) is ahead and size_bytes > ahead.size_bytes:  # the manifest said less
                    self._ahead_bytes += size_bytes - ahead.size_bytes
                    ahead.size_bytes = size_bytes
                await reader.landed()
            except RegistryCacheError:
                plan.failures += 1
                self._forget_this(digest, ahead)  # the flight has said why; a client that asks gets a new one
            else:
                plan.failures = 0
                ahead.is_shared = reader.flight.is_shared
                self._landed(digest, ahead, stored=not reader.flight.unstored)
            finally:
                reader.close()

    def _landed(self, digest: Digest, ahead: _Ahead, *, stored: bool) -> None:
        if not stored:
            self._forget_this(digest, ahead)
            return
        self._events.emit(events.Prefetched(digest=digest, size_bytes=ahead.size_bytes))
        ahead.fetched = True
        if self._ahead.get(digest) is ahead:
            ahead.expiry = asyncio.get_running_loop().call_later(_PATIENCE_SECONDS, self._give_up, digest)

    def _give_up(self, digest: Digest) -> None:
        self._waste(digest, f"no client asked for it within {_PATIENCE_SECONDS:g} s", self._forget(digest))

    def _waste(self, digest: Digest, reason: str, ahead: _Ahead) -> None:
        self._events.emit(events.PrefetchWasted(digest=digest, size_bytes=ahead.size_bytes, reason=reason))

    def _forget_this(self, digest: Digest, ahead: _Ahead) -> None:
        if self._ahead.get(digest) is ahead:
            self._forget(digest)

    def _forget(self, digest: Digest) -> _Ahead:
        ahead = self._ahead.pop(digest)
        self._ahead_bytes -= ahead.size_bytes
        if ahead.expiry is not None:
            ahead.expiry.cancel()
        return ahead
