"""What the rest of the program asks of a store and of an index; it knows no files.

``store/`` implements these on a disk, and the index in memory too. Another implementation (an object store, a shared
index) has to pass ``tests/contract/``.
"""

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import NamedTuple, Protocol

from registry_cache.model.clock import Clock
from registry_cache.model.contents import Inventory, Pin, PinSummary, Stored
from registry_cache.model.oci import Digest, Repository

# A piece of a body, until the next one is read: it may lie in a buffer that is used again.
Piece = bytes | memoryview


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


class BlobEntry(NamedTuple):
    """A row of the index: ``media_type`` is set for manifests only."""

    digest: Digest
    size_bytes: int
    media_type: str | None
    last_use: float
    verified_at: float = 0.0  # 0: never re-hashed since it was found on the disk
    pinned: bool = False


class Tally(NamedTuple):
    """So many bytes, blobs and manifests: all that is here, or what came and went."""

    size_bytes: int = 0
    blobs: int = 0
    manifests: int = 0

    @property
    def objects(self) -> int:
        """Blobs and manifests."""
        return self.blobs + self.manifests

    def plus(self, other: "Tally") -> "Tally":
        """Both together."""
        return Tally(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))

    def minus(self, other: "Tally") -> "Tally":
        """What is left of this without *other*."""
        return Tally(*(mine - theirs for mine, theirs in zip(self, other, strict=True)))


class Entry(NamedTuple):
    """A stored blob as the evictor sees it."""

    digest: Digest
    size_bytes: int
    last_use: float  # Unix seconds


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


class TagEntry(NamedTuple):
    """What upstream last said of a tag. ``fetched_at``: when it was asked, Unix seconds; later questions win."""

    digest: Digest
    media_type: str
    size_bytes: int
    fetched_at: float


class Answer(NamedTuple):
    """A body that upstream gave to a question that has no digest: a tags list, a referrers index."""

    body: bytes
    content_type: str
    link: str | None  # the pagination link as path and query, already ours
    filters_applied: str | None
    fetched_at: float


class BlobRows(Protocol):
    """What is known of each stored blob: size, media type, last use, whether it is pinned.

    Reads never fail: what cannot be read is not known. :meth:`add_blob` and :meth:`forget_blobs` say when they cannot
    write, since no file may be there without its row; everything else that cannot be written is kept and written later.
    """

    # Why rows and files have to be compared; "" when they are known to agree.
    doubt: str
    # Bytes that were never synced to the disk may be zeros now.
    machine_crashed: bool

    # Never before what is written down.
    clock: Clock
    # How often doubt was raised; see settle_doubt().
    doubts_raised: int

    @property
    def writable(self) -> bool:
        """False after a write was refused, until :meth:`probe` succeeds: meanwhile rows are refused at once."""

    @property
    def refusal(self) -> str:
        """Why it refuses writes; "" while it does not."""

    async def probe(self) -> bool:
        """Try to write; whether that went."""

    async def raise_doubt(self, reason: str) -> None:
        """Rows and files may differ from now on; known also to the next run, however this one ends."""

    async def settle_doubt(self, raised: int | None = None) -> None:
        """Rows and files have been compared, and agree.

        Args:
            raised: what :attr:`doubts_raised` was before; doubt that was raised meanwhile stays.
        """

    def media_type_kept(self, digest: Digest) -> str | None:
        """While there is doubt: as what manifest *digest* was stored, even if its row is lost."""

    async def blob(self, digest: Digest) -> BlobEntry | None:
        """The row of *digest*."""

    def blob_at_hand(self, digest: Digest) -> BlobEntry | None:
        """As :meth:`blob`, if it is in memory."""

    async def add_blob(self, entry: BlobEntry) -> Tally:
        """Write a row; by how much the totals grew (not at all for a row that was there).

        Raises:
            IndexRefused: it is not written.
        """

    def placed(self, entry: BlobEntry) -> None:
        """The file of a new row is there."""

    async def forget_blobs(self, digests: Sequence[Digest]) -> Tally:
        """Delete rows; what there was of them, each counted by one caller only.

        Raises:
            IndexRefused: all of them are still there.
        """

    def touch(self, digest: Digest) -> None:
        """*digest* is used now. Buffered: a crash loses a few seconds of order."""

    def used_at(self, digest: Digest) -> float | None:
        """The last use that is not in its row yet, Unix seconds."""

    async def oldest(self, limit: int, after: Entry | None = None) -> list[Entry]:
        """Unpinned blobs behind *after*, least recently used first, as their rows have it: see :meth:`used_at`."""

    async def verified(self, digest: Digest, at: float) -> None:
        """The content was re-hashed and is good."""

    async def unverified_longest(self, limit: int, *, before: float) -> list[Digest]:
        """The blobs last re-hashed before *before* (Unix seconds), the longest ago first."""

    async def entries_between(self, first: str, last: str) -> dict[Digest, BlobEntry]:
        """Rows whose digest is in [first, last), for the comparison with the disk."""

    async def totals(self) -> Tally:
        """All rows, counted afresh.

        Raises:
            IndexRefused: they cannot be read.
        """

    async def flush(self) -> None:
        """Write what is buffered; what cannot be written stays buffered."""


class Names(Protocol):
    """Which digest a tag was, which repository holds what, what upstream last answered to other questions."""

    @property
    def tag_count(self) -> int:
        """How many tags are known."""

    @property
    def answers_bytes(self) -> int:
        """What kept answers take: bounded, and part of what counts against the cap."""

    async def tag(self, repository: Repository, tag: str) -> TagEntry | None:
        """What the tag was when upstream was last asked."""

    def tag_at_hand(self, repository: Repository, tag: str) -> TagEntry | None:
        """As :meth:`tag`, if it is in memory."""

    async def put_tag(self, repository: Repository, tag: str, entry: TagEntry) -> None:
        """Remember it, unless something is known that upstream was asked later; memory has it at once."""

    async def forget_tag(self, repository: Repository, tag: str, *, asked_at: float | None = None) -> None:
        """Upstream says that it is gone.

        Args:
            asked_at: when upstream was asked (Unix seconds): what it said to a later question stays; None for now.
        """

    async def forget_tags(self, tags: Sequence[tuple[Repository, str]]) -> None:
        """These are gone from here."""

    def link(self, repository: Repository, digest: Digest) -> None:
        """*digest* belongs to *repository*: that is proven, see :mod:`registry_cache.catalog.proof`. Buffered."""

    async def is_linked(self, repository: Repository, digest: Digest) -> bool:
        """Whether that is known."""

    async def manifests_of(self, repository: Repository, limit: int) -> list[Digest]:
        """Manifests that are here and belong to *repository*, the last used first."""

    async def forget_repositories(self, is_meant: Callable[[Repository], bool]) -> None:
        """Nothing is known any more of what belongs to these."""

    async def repositories(self, registry: str, after: str, limit: int) -> Sequence[str]:
        """Names of a registry's repositories with something cached, in order, behind *after*."""

    async def repositories_of(self, digests: Sequence[Digest]) -> dict[Digest, list[str]]:
        """Through which repositories these were pulled."""

    async def answer(self, key: str) -> Answer | None:
        """The last good answer to the question *key*."""

    async def put_answer(self, key: str, answer: Answer) -> None:
        """Remember it; the oldest ones are forgotten."""


class Pins(Protocol):
    """What the operator wants to stay, and all that is here, by name."""

    # What pins need, whether it is here yet or not; and that it may have to be worked out again.
    wanted: frozenset[Digest]
    pins_changed: asyncio.Event

    async def inventory(self) -> Inventory:
        """Everything that is known at one moment."""

    async def stored(self, digests: Collection[Digest]) -> dict[Digest, Stored]:
        """Those of *digests* that are here."""

    async def pinned(self) -> list[tuple[Pin, Digest | None]]:
        """Every pin, and what its tag is now (None when it is a digest, or nothing is known of it)."""

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
