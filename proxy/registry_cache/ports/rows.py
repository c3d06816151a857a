"""What is known of each stored blob."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from registry_cache.model.clock import Clock
from registry_cache.model.oci import Digest


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


class BlobRows(Protocol):
    """What is known of each stored blob: size, media type, last use, whether it is pinned.

    A pull's reads never fail: what cannot be read is not known. Where files go or are compared, that is not enough:
    those reads say so. :meth:`add_blob` and :meth:`forget_blobs` say when they cannot write, since no file may be there
    without its row; everything else that cannot be written is kept and written later.
    """

    # Bytes that were never synced to the disk may be zeros now.
    machine_crashed: bool

    # Never before what is written down.
    clock: Clock

    @property
    def doubt(self) -> str:
        """Why rows and files have to be compared; "" when they are known to agree."""

    @property
    def doubts_raised(self) -> int:
        """How often doubt was raised; see :meth:`settle_doubt`."""

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

    async def largest_bytes(self) -> int:
        """The size of the largest blob; 0 without any."""

    async def oldest(self, limit: int, after: Entry | None = None) -> list[Entry]:
        """Unpinned blobs behind *after*, least recently used first, as their rows have it: see :meth:`used_at`."""

    async def verified(self, digest: Digest, at: float) -> None:
        """The content was re-hashed and is good."""

    async def unverified_longest(self, limit: int, *, before: float) -> list[Digest]:
        """The blobs last re-hashed before *before* (Unix seconds), the longest ago first."""

    async def entries_between(self, first: str, last: str) -> dict[Digest, BlobEntry]:
        """Rows whose digest is in [first, last), for the comparison with the disk.

        Raises:
            IndexRefused: they cannot be read.
        """

    async def totals(self) -> Tally:
        """All rows, counted afresh.

        Raises:
            IndexRefused: they cannot be read.
        """

    async def flush(self) -> None:
        """Write what is buffered; what cannot be written stays buffered."""
