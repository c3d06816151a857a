"""A store, an upstream and a client in memory, which stand still where a test wants them to."""

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from types import SimpleNamespace
from typing import Any

from registry_cache.catalog.manifests import ManifestReader, OpaqueManifests
from registry_cache.catalog.proof import Proof
from registry_cache.model import events
from registry_cache.model.bus import Events
from registry_cache.model.clock import Clock
from registry_cache.model.errors import DigestMismatch, ManifestUnknown, NoSpace, UpstreamError
from registry_cache.model.oci import Digest, Reference, Repository
from registry_cache.ports.names import TagEntry
from registry_cache.pull import registry as pull_registry
from registry_cache.pull.answers import ManifestAnswer
from registry_cache.pull.asking import Policy
from registry_cache.pull.flights import Flights
from registry_cache.pull.manifest_source import ManifestSource
from registry_cache.pull.runway import Runway
from registry_cache.pull.tags import Tags

MEDIA_TYPE = "application/vnd.oci.image.manifest.v1+json"
REPOSITORY = Repository.parse("library/fake")
Step = bytes | Exception | asyncio.Event


def content(size: int, seed: int = 0) -> bytes:
    """Bytes that are nowhere alike."""
    block = hashlib.sha256(b"%d" % seed).digest()
    return b"".join(hashlib.sha256(block + n.to_bytes(4)).digest() for n in range(size // 32 + 1))[:size]


class MemoryPartial:
    """See :class:`registry_cache.ports.blobs.Partial`."""

    def __init__(self, store: "MemoryStore", digest: Digest, data: bytearray) -> None:
        self.digest, self.data, self.offset = digest, data, len(data)
        self.closed = False
        self._store = store
        self._at: int | None = None  # where a restart stands
        self._differs: Callable[[int], None] | None = None

    async def expect(self, size_bytes: int | None) -> None:
        await self._store.expecting.wait()
        if (size_bytes or 0) > self._store.room:
            raise NoSpace("no room")

    async def append(self, data: bytes) -> None:
        self.write(data)

    def write(self, data: bytes) -> None:
        data = bytes(data)
        if self._at is not None:
            known = min(len(data), self.offset - self._at)
            there = self.data[self._at : self._at + known]
            agreed = next((n for n in range(known) if there[n] != data[n]), known)
            self._at += agreed
            if agreed < known:
                if self._differs is not None:
                    self._differs(self._at)
                del self.data[self._at :]
                self.offset = self._at
            if self._at == self.offset:
                self._at = None
            data = data[agreed:]
        if data and self.offset + len(data) > self._store.refuses_at:
            raise NoSpace("the disk is full")
        self.data += data
        self.offset += len(data)

    def restart(self, differs: Callable[[int], None] | None = None) -> None:
        self._at = 0 if self.offset else None
        self._differs = differs

    def resume(self) -> None:
        self._at = None

    def verify(self) -> None:
        if self._at is not None or self.hashed().hexdigest() != self.digest.encoded:
            raise DigestMismatch("wrong bytes")

    def hashed(self) -> Any:
        return hashlib.new(self.digest.algorithm, self.data)

    async def publish(self, media_type: str | None = None) -> None:
        await self._store.publishing(self.digest)
        self._store.blobs[self.digest] = bytes(self.data)
        self._store.partials.pop(self.digest, None)

    async def discard(self) -> None:
        self._store.partials.pop(self.digest, None)

    async def send(self, sink: Any, start: int, stop: int) -> None:
        await sink.write(bytes(self.data[start:stop]))

    def close(self) -> None:
        self.closed = True


class MemoryStore:
    """See :class:`ports.blobs.BlobStore`. ``room``: what is announced as more is refused; ``refuses_at``: the offset
    from which on every partial's write is."""

    def __init__(self) -> None:
        self.blobs: dict[Digest, bytes] = {}
        self.partials: dict[Digest, bytearray] = {}
        self.ingesting: set[Digest] = set()
        self.room = self.refuses_at = 1 << 60
        self.expecting = asyncio.Event()
        self.expecting.set()

        async def at_once(_: Digest) -> None:
            return

        self.publishing: Callable[[Digest], Awaitable[None]] = at_once

    async def open(self, digest: Digest) -> None:
        return None

    def at_hand(self, digest: Digest) -> None:
        return None

    @contextlib.asynccontextmanager
    async def ingest(self, digest: Digest) -> AsyncIterator[MemoryPartial]:
        assert digest not in self.ingesting
        self.ingesting.add(digest)
        try:
            yield MemoryPartial(self, digest, self.partials.setdefault(digest, bytearray()))
        finally:
            self.ingesting.discard(digest)


class Body:
    """See :class:`registry_cache.pull.flight.BlobBody`: pieces, errors to raise, and events to wait for."""

    def __init__(self, start: int, total: int | None, steps: Iterator[Step]) -> None:
        self.start, self.total_bytes = start, total
        self.origin = "upstream"
        self._steps = steps

    async def read(self) -> bytes:
        for step in self._steps:
            if isinstance(step, asyncio.Event):
                await step.wait()
            elif isinstance(step, Exception):
                raise step
            else:
                return step
        return b""

    async def drain(self, take: Callable[[bytes], None]) -> None:
        while piece := await self.read():
            await asyncio.to_thread(take, piece)


class Source:
    """See :class:`pull.flight.BlobSource`. What a GET of a digest is answered with is scripted, one script a GET; the
    last one serves all further ones. Without a script it is the blob."""

    def __init__(self) -> None:
        self.blobs: dict[Digest, bytes] = {}
        self.asked: list[tuple[Digest, int, int | None]] = []
        self.open = 0
        self._scripts: dict[Digest, list[Callable[[int], Any]]] = {}

    def add(self, data: bytes) -> Digest:
        digest = Digest.of(data)
        self.blobs[digest] = data
        return digest

    def script(self, digest: Digest, *answers: Callable[[int], Any]) -> None:
        """Each answer: from the start asked for, an error to raise or a :class:`Body`."""
        self._scripts[digest] = list(answers)

    def gets(self, digest: Digest) -> list[int]:
        """Where the GETs of *digest* began."""
        return [start for asked, start, _ in self.asked if asked == digest]

    @contextlib.asynccontextmanager
    async def blob(
        self, repository: Repository, digest: Digest, *, start: int = 0, stop: int | None = None
    ) -> AsyncIterator[Body]:
        self.asked.append((digest, start, stop))
        scripts = self._scripts.get(digest, [])
        answer = scripts.pop(0) if len(scripts) > 1 else scripts[0] if scripts else self.part(digest)
        body = answer(start)
        if isinstance(body, Exception):
            raise body
        self.open += 1
        try:
            yield body
        finally:
            self.open -= 1

    def part(self, digest: Digest, *, upto: int | None = None, then: Step | None = None, piece: int = 1000) -> Any:
        """From where it is asked for as far as *upto*; then an error or an event, and after that the rest."""

        def answer(start: int) -> Body:
            return self._body(digest, start, upto, then, piece)

        return answer

    def whole(self, digest: Digest, *, upto: int | None = None, then: Step | None = None, piece: int = 1000) -> Any:
        """As :meth:`part`, but from the beginning, whatever is asked for."""
        return lambda _: self._body(digest, 0, upto, then, piece)

    def _body(self, digest: Digest, start: int, upto: int | None, then: Step | None, piece: int) -> Body:
        data = self.blobs[digest]

        def steps() -> Iterator[Step]:
            middle = len(data) if upto is None else max(start, upto)
            for at in range(start, middle, piece):
                yield data[at : min(at + piece, middle)]
            if then is not None:
                yield then
            for at in range(middle, len(data), piece):
                yield data[at : at + piece]

        return Body(start, len(data), steps())


BROKEN = UpstreamError("broken")


class Client:
    """See :class:`registry_cache.ports.blobs.Sink`. It takes nothing while ``takes`` is not set."""

    def __init__(self) -> None:
        self.received = bytearray()
        self.takes = asyncio.Event()
        self.takes.set()
        self.changed = asyncio.Event()

    async def write(self, data: bytes) -> None:
        await self.takes.wait()
        self.received += data
        self.changed.set()

    async def has(self, count: int) -> None:
        """Wait until it has received so many bytes."""
        while len(self.received) < count:
            self.changed.clear()
            await self.changed.wait()


class Airport:
    """Flights over a source and a store in memory."""

    def __init__(
        self, *, limit: int = 2, retries: int = 3, grace_seconds: float | None = None, others: tuple[str, ...] = ()
    ) -> None:
        self.source, self.store = Source(), MemoryStore()
        self.sources = {REPOSITORY.registry: self.source, **{name: Source() for name in others}}
        self.bus, self.emitted = Events(), []
        self.bus.subscribe(self.emitted.append)
        self.published: list[Digest] = []
        graceful = {} if grace_seconds is None else {"grace_seconds": grace_seconds}
        self.runways = {
            name: Runway.of(
                source,
                limit=limit,
                retries=retries,
                backoff=lambda _: 0.0,
                rate_limit_wait_seconds=15.0,
                events=self.bus,
                **graceful,
            )
            for name, source in self.sources.items()
        }
        self.runway = self.runways[REPOSITORY.registry]
        self.flights = Flights(
            self.runways,
            self.store,
            published=lambda flight: self.published.append(flight.digest),
            events=self.bus,
        )

    def seen(self, kind: type[events.Event]) -> list[Any]:
        return [event for event in self.emitted if isinstance(event, kind)]

    async def get(self, digest: Digest, sink: Client | None = None, *, client: str = "a", start: int = 0) -> bytes:
        """What a client gets that asks for the blob from *start* on."""
        sink = sink or Client()
        reader = self.flights.join(REPOSITORY, digest, client=client)
        try:
            await reader.size()
            await reader.send(sink, start, len(self.source.blobs[digest]))
        finally:
            reader.close()
        return bytes(sink.received)

    async def landed(self) -> None:
        """Until no flight is under way."""
        while self.flights._tasks:
            await asyncio.wait(list(self.flights._tasks.values()))


async def until(condition: Callable[[], bool]) -> None:
    """Give way until it holds; the test's timeout is the bound."""
    while not condition():
        await asyncio.sleep(0)


# --- manifests --------------------------------------------------------------------------------------------------


class Registry:
    """See :class:`pull.answers.Upstream`, for manifests. An answer is what is true when it is asked for, however late
    it comes."""

    def __init__(self) -> None:
        self.tags: dict[str, Digest] = {}
        self.manifests: dict[Digest, bytes] = {}
        self.heads: list[str] = []
        self.gets: list[str] = []
        self.head_errors: list[Exception] = []  # the first is raised, until it is taken out
        self.get_errors: list[Exception] = []
        self.told: dict[str, Any] = {}  # what HEAD says otherwise
        self.held = False
        self._gate: asyncio.Event | None = None

    def hold_next_head(self) -> asyncio.Event:
        """The next HEAD is answered when this is set."""
        self._gate = asyncio.Event()
        return self._gate

    def _found(self, reference: Reference, errors: list[Exception]) -> tuple[Digest, bytes]:
        if errors:
            raise errors[0]
        digest = reference.digest or self.tags.get(reference.target)
        if digest not in self.manifests:
            raise ManifestUnknown("no such manifest")
        return digest, self.manifests[digest]

    async def manifest_head(self, reference: Reference, *, attempts: int = 3) -> Any:
        self.heads.append(reference.target)
        gate, self._gate = self._gate, None
        try:
            digest, body = self._found(reference, self.head_errors)
        finally:
            if gate is not None:
                self.held = True
                await gate.wait()
                self.held = False
        said = {"digest": digest, "media_type": MEDIA_TYPE, "size_bytes": len(body), "age_seconds": 0}
        return SimpleNamespace(**said | self.told)

    async def manifest(self, reference: Reference) -> Any:
        self.gets.append(reference.target)
        digest, body = self._found(reference, self.get_errors)
        return SimpleNamespace(digest=digest, media_type=MEDIA_TYPE, body=body, age_seconds=0)


class ManifestStore(MemoryStore):
    """Keeps manifests in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.manifests: dict[Digest, bytes] = {}

    def at_hand(self, digest: Digest) -> Any:
        body = self.manifests.get(digest)
        if body is None:
            return None
        return SimpleNamespace(body=body, media_type=MEDIA_TYPE, size_bytes=len(body), close=lambda: None)

    async def open(self, digest: Digest) -> Any:
        return self.at_hand(digest)

    def remember(self, digest: Digest, body: bytes, media_type: str) -> None:
        self.manifests[digest] = body


class MemoryIndex:
    """See :class:`registry_cache.ports.index.Index`, for tags."""

    def __init__(self) -> None:
        self.tags: dict[str, TagEntry] = {}

    async def tag(self, repository: Repository, tag: str) -> TagEntry | None:
        return self.tags.get(tag)

    def tag_at_hand(self, repository: Repository, tag: str) -> TagEntry | None:
        return self.tags.get(tag)

    async def put_tag(self, repository: Repository, tag: str, entry: TagEntry) -> None:
        known = self.tags.get(tag)
        if known is None or known.fetched_at <= entry.fetched_at:
            self.tags[tag] = entry

    async def forget_tag(self, repository: Repository, tag: str, *, asked_at: float | None = None) -> None:
        known = self.tags.get(tag)
        if known is not None and (asked_at is None or known.fetched_at <= asked_at):
            del self.tags[tag]

    def link(self, repository: Repository, digest: Digest) -> None:
        return

    async def is_linked(self, repository: Repository, digest: Digest) -> bool:
        return False

    async def manifests_of(self, repository: Repository, limit: int) -> list[Digest]:
        return []


class Pulls:
    """Tags over all that."""

    def __init__(self, **policy: float) -> None:
        self.upstream, self.store, self.index = Registry(), ManifestStore(), MemoryIndex()
        self.policy = Policy(
            **{
                "tag_ttl_seconds": 0.0,
                "stale_timeout_seconds": 5.0,
                "request_timeout_seconds": 5.0,
                "rate_limit_wait_seconds": 1.0,
                "negative_ttl_seconds": 10.0,
                "keep_deleted_tags": False,
                **policy,
            }
        )
        registry = pull_registry.Registry(self.upstream, self.policy, lambda: None)
        self.negatives, self.asking = registry.negatives, registry.asking
        registries = {REPOSITORY.registry: registry}
        clock = Clock()
        reader = ManifestReader(OpaqueManifests(Events()))
        self.proof = Proof(self.index, self.store, reader, is_required=True)
        self.source = ManifestSource(
            registries,
            store=self.store,
            index=self.index,
            proof=self.proof,
            known=lambda reference: self.tags.at_hand(reference, head=True),
            clock=clock,
            events=Events(),
        )
        self.tags = Tags(
            self.source,
            store=self.store,
            index=self.index,
            registries=registries,
            proof=self.proof,
            clock=clock,
            served=lambda *_: None,
        )

    @property
    def suspicious(self) -> bool:
        return self.asking.suspicious

    def image(self, text: str, *, pushed: bool = True) -> Digest:
        """A manifest that upstream has."""
        body = f'{{"schemaVersion":2,"note":"{text}"}}'.encode()
        digest = Digest.of(body)
        if pushed:
            self.upstream.manifests[digest] = body
        return digest

    async def head(self, reference: Reference) -> ManifestAnswer:
        return await self._answer(reference, head=True)

    async def get(self, reference: Reference) -> ManifestAnswer:
        return await self._answer(reference, head=False)

    async def _answer(self, reference: Reference, *, head: bool) -> ManifestAnswer:
        at_hand = self.tags.at_hand(reference, head=head)
        answer = at_hand or await self.tags.answer(reference, head=head)
        await asyncio.gather(*self.source.storing)
        return answer

    async def aclose(self) -> None:
        await self.source.aclose()
