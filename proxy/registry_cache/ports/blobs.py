"""Verified content by digest: a store, a blob that is open, one on its way in, and where its bytes go."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Literal, NamedTuple, Protocol

from registry_cache.model.oci import Digest

# A piece of a body, until the next one is read: it may lie in a buffer that is used again.
Piece = bytes | memoryview
# Who sends the bytes of a blob that is not here.
Origin = Literal["upstream", "replica", "bucket"]


class Hash(Protocol):
    """A running hash, as :mod:`hashlib` has it."""

    def update(self, data: bytes | bytearray | memoryview, /) -> None:
        """Go on with *data*."""

    def hexdigest(self) -> str:
        """Of everything so far."""

    def copy(self) -> "Hash":
        """Another one, in the same state."""


class Sink(Protocol):
    """Where a body goes: the connection of one client. All calls return when the kernel has taken the bytes."""

    async def write(self, data: Piece) -> None:
        """Send *data*.

        Raises:
            ConnectionError: the client is gone, or has taken nothing for too long.
        """

    def send_file_now(self, fd: int, start: int, stop: int) -> int:
        """Of the bytes [start, stop) of an open file, send what goes without waiting.

        Returns:
            Where the rest begins, for :meth:`send_file`; errors are its to find.
        """

    async def send_file(self, fd: int, start: int, stop: int) -> None:
        """Send the bytes [start, stop) of an open file without copying them.

        Raises:
            ReadFailed: the file has fewer bytes, or cannot be read; what was sent until then is counted in *offset*.
            ConnectionError: as for :meth:`write`.
        """


class OpenBlob(Protocol):
    """A stored blob that will not go away until it is closed."""

    digest: Digest
    size_bytes: int
    media_type: str | None
    body: bytes | None  # the whole verified content, when it is small

    def send_now(self, sink: Sink, start: int, stop: int) -> int:
        """Of the bytes [start, stop), send what goes without waiting; where the rest begins, for :meth:`send`."""

    async def send(self, sink: Sink, start: int, stop: int) -> None:
        """Send the bytes [start, stop) to *sink*."""

    def close(self) -> None:
        """Let go of it; may be called twice."""


class Partial(Protocol):
    """A blob on its way in: appended to, read while it grows, published once it verifies."""

    offset: int  # bytes that are in, and readable by send()

    async def expect(self, size_bytes: int | None) -> None:
        """Reserve room for the whole blob; where its size is not known, room is made as it grows.

        Raises:
            NoSpace: there is none, even after eviction.
        """

    async def append(self, data: Piece) -> None:
        """Add *data* behind what is there. Only after :meth:`expect`.

        Raises:
            NoSpace: the disk is full or refuses to take it; :attr:`offset` says how much of it is in all the same.
        """

    def write(self, data: Piece) -> None:
        """As :meth:`append`. Blocks: for a thread, while the event loop runs."""

    def restart(self, differs: Callable[[int], None] | None = None) -> None:
        """Expect the content from its beginning again; what is there stays as far as the same bytes come.

        Args:
            differs: called before the bytes behind an offset are thrown away because others have come, in the thread
                that writes. Readers that have seen more are lost.
        """

    def resume(self) -> None:
        """Expect the content from :attr:`offset`, whatever restart() has begun."""

    def verify(self) -> None:
        """Raise DigestMismatch unless everything appended is the blob."""

    def hashed(self) -> Hash:
        """The hash of the bytes [0, offset), to go on with elsewhere."""

    async def publish(self, media_type: str | None = None) -> None:
        """Make it a stored blob. Only after :meth:`verify`.

        Raises:
            NoSpace: the disk refuses; the partial is gone.
        """

    async def discard(self) -> None:
        """Throw it away and give its room back."""

    async def send(self, sink: Sink, start: int, stop: int) -> None:
        """Send the bytes [start, stop) to *sink*; they must be there already."""

    def close(self) -> None:
        """Close the file; after the last reader. Published or kept, the content stays."""


class StoreTotals(NamedTuple):
    """What is in a store; all sizes in bytes."""

    size_bytes: int
    partial_bytes: int
    blobs: int
    manifests: int
    tags: int
    quarantined: int
    read_only: str = ""  # why nothing is stored; empty when all is well


class BlobStore(Protocol):
    """Verified content by digest, within a cap."""

    async def open(self, digest: Digest) -> OpenBlob | None:
        """The blob, marked as just used; None when it is not here."""

    def at_hand(self, digest: Digest) -> OpenBlob | None:
        """As :meth:`open`, if nothing has to be waited for."""

    def ingest(self, digest: Digest) -> AbstractAsyncContextManager[Partial]:
        """Begin to write a blob, or go on where an earlier ingest stopped.

        Leaving the context without publish() or discard() keeps what is there for the next one.
        One ingest of a digest at a time.
        """

    def remember(self, digest: Digest, body: bytes, media_type: str) -> None:
        """Serve this verified small content from memory, from now on and until it is forgotten."""
