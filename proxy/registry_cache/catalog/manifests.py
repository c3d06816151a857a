"""Reading what manifests name, beside the service: large ones in a thread; what cannot be read is named once."""

import asyncio
from collections.abc import Callable

from registry_cache.model import events
from registry_cache.model.bus import Events
from registry_cache.model.errors import ContentError
from registry_cache.model.oci import TOO_MANY_PARTS, Digest, Manifest
from registry_cache.runtime.threads import Threads

# What is larger leaves the event loop: 32 KiB are three hundred layers, and read in three milliseconds.
ON_THE_LOOP_MAX_BYTES = 32 * 1024
# Large manifests that wait to be read; each is held in memory.
_WAITING_MAX = 16
_NAMED_MAX = 4096

# A manifest of which nothing is known: it is served like any other.
OPAQUE = Manifest("", (), (), (), is_whole=False)


class OpaqueManifests:
    """Names each manifest that cannot be read once, however often somebody tries."""

    def __init__(self, bus: Events) -> None:
        self._bus = bus
        self._named: dict[Digest, None] = {}

    def name(self, digest: Digest, reason: str) -> None:
        """*digest* was met again, or for the first time."""
        if digest in self._named:
            return
        while len(self._named) >= _NAMED_MAX:
            del self._named[next(iter(self._named))]
        self._named[digest] = None
        self._bus.emit(events.ManifestOpaque(digest=digest, reason=reason))


class ManifestReader:
    """See the module. Its owner closes it. Nothing of what it reads is kept here; ``opaque`` names what cannot be."""

    def __init__(self, opaque: OpaqueManifests) -> None:
        self.opaque = opaque
        self._thread = Threads("manifests", 1)
        self._waiting: dict[Digest, list[Callable[[Manifest], None]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return f"<ManifestReader {len(self._waiting)} waiting>"

    async def aclose(self) -> None:
        """Read nothing more."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._thread.close()

    def read(self, digest: Digest, body: bytes, then: Callable[[Manifest], None]) -> None:
        """Call *then* with the manifest: at once if it is small. ``OPAQUE`` stands for one that cannot be read.

        When many large ones wait already, *then* is never called; whoever meets the manifest next asks again.
        """
        if len(body) <= ON_THE_LOOP_MAX_BYTES:
            then(self._known(digest, _read(body)))
        elif digest in self._waiting:
            self._waiting[digest].append(then)
        elif len(self._waiting) < _WAITING_MAX:
            self._waiting[digest] = [then]
            task = asyncio.create_task(self._read_in_thread(digest, body), name=f"read {digest}")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def wait(self, digest: Digest, body: bytes) -> Manifest:
        """As :meth:`read`; the caller waits for large ones, however many there are."""
        if len(body) <= ON_THE_LOOP_MAX_BYTES:
            return self._known(digest, _read(body))
        return self._known(digest, await self._thread.run(_read, body))

    async def _read_in_thread(self, digest: Digest, body: bytes) -> None:
        found: Manifest | str = "it was not read"
        try:
            found = await self._thread.run(_read, body)
        finally:
            waiting = self._waiting.pop(digest)
        manifest = self._known(digest, found)
        for then in waiting:
            then(manifest)

    def _known(self, digest: Digest, found: Manifest | str) -> Manifest:
        if isinstance(found, str):
            self.opaque.name(digest, found)
            return OPAQUE
        if not found.is_whole:
            self.opaque.name(digest, TOO_MANY_PARTS)
        return found


def _read(body: bytes) -> Manifest | str:
    """The manifest, or why it is none."""
    try:
        return Manifest.parse(body)
    except ContentError as error:
        return str(error)
