"""Who has how many bytes of the cap: pure accounting, changed under no await.

``stored + promised + quarantined`` never exceeds the cap: a byte is promised to a transfer before it is written, and
what one has been promised nobody else gets.
"""

from collections.abc import Callable, Iterator

from registry_cache.model.oci import Digest
from registry_cache.ports.rows import Tally


class Share:
    """What one partial may grow to.

    ``is_leaving``: it was refused, and gives its room back as soon as its transfer has noticed.
    """

    def __init__(self, digest: Digest, written_bytes: int) -> None:
        self.digest = digest
        self.promised_bytes = written_bytes
        self.written_bytes = written_bytes
        self.is_leaving = False

    def has(self, size_bytes: int) -> None:
        """The file was found to be of this size."""
        self.promised_bytes = self.written_bytes = size_bytes

    def __repr__(self) -> str:
        return f"<Share {self.digest} {self.written_bytes}/{self.promised_bytes}>"


class Room:
    """See the module. Wrong calls raise KeyError: an account is kept by its owner only.

    Args:
        beside: how many bytes others keep that count as well (answers, in the index). They may push the sum above the
            cap until the next round of maintenance.
    """

    def __init__(self, cap_bytes: int, beside: Callable[[], int] = int) -> None:
        self.cap_bytes = cap_bytes
        self._beside = beside
        self.stored = Tally()  # files in blobs/
        self._active: dict[Digest, Share] = {}
        self._idle: dict[Digest, int] = {}  # interrupted transfers: what has arrived of them
        self._quarantined: dict[str, int] = {}
        self._adopting_bytes = 0

    def __repr__(self) -> str:
        return f"<Room {self.total_bytes}/{self.cap_bytes} bytes, {len(self._active)} ingests>"

    # --- what there is ------------------------------------------------------------------------------------------

    @property
    def total_bytes(self) -> int:
        """Everything that counts against the cap."""
        files = self.stored.size_bytes + self.partial_bytes + self.quarantined_bytes + self._adopting_bytes
        return files + self._beside()

    @property
    def spare_bytes(self) -> int:
        """What nobody has been promised; negative when the cap was lowered."""
        return self.cap_bytes - self.total_bytes

    @property
    def partial_bytes(self) -> int:
        """Of transfers under way or interrupted."""
        return sum(share.promised_bytes for share in self._active.values()) + sum(self._idle.values())

    @property
    def unwritten_bytes(self) -> int:
        """Promised, and not on the disk yet."""
        return sum(max(0, share.promised_bytes - share.written_bytes) for share in self._active.values())

    @property
    def droppable_bytes(self) -> int:
        """What serves nobody: interrupted transfers, quarantine."""
        return sum(self._idle.values()) + self.quarantined_bytes

    @property
    def quarantined_bytes(self) -> int:
        """Evidence."""
        return sum(self._quarantined.values())

    @property
    def quarantined(self) -> list[str]:
        """Names, the oldest first."""
        return list(self._quarantined)

    @property
    def idle(self) -> list[Digest]:
        """Interrupted transfers, the oldest first."""
        return list(self._idle)

    @property
    def active(self) -> Iterator[Share]:
        """Transfers under way."""
        return iter(self._active.values())

    # --- partials -----------------------------------------------------------------------------------------------

    def found(self, digest: Digest, size_bytes: int) -> None:
        """An earlier run left this partial."""
        self._idle[digest] = size_bytes

    def is_idle(self, digest: Digest) -> bool:
        """Whether there is something of *digest* to go on with."""
        return digest in self._idle

    def begin(self, digest: Digest) -> Share:
        """A transfer begins or goes on: what there is of it is nobody's victim any more."""
        if digest in self._active:
            raise KeyError(digest)
        share = self._active[digest] = Share(digest, self._idle.pop(digest, 0))
        return share

    def grow(self, share: Share, size_bytes: int) -> bool:
        """Promise *share* as much towards *size_bytes* as there is to spare; whether that is all of it."""
        self._active[share.digest]
        share.promised_bytes += max(0, min(size_bytes - share.promised_bytes, self.spare_bytes))
        return share.promised_bytes >= size_bytes

    def shrink(self, share: Share, size_bytes: int) -> None:
        """Take back what *share* was promised beyond *size_bytes* and has not written."""
        share.promised_bytes = min(share.promised_bytes, max(size_bytes, share.written_bytes))

    def leave(self, share: Share) -> None:
        """The transfer stops here: it keeps what is written."""
        del self._active[share.digest]
        if share.written_bytes:
            self._idle[share.digest] = share.written_bytes

    def discard(self, share: Share) -> None:
        """Nothing is left of it."""
        del self._active[share.digest]

    def drop(self, digest: Digest) -> int:
        """An interrupted transfer is gone; the bytes that it had."""
        return self._idle.pop(digest)

    # --- blobs and evidence -------------------------------------------------------------------------------------

    def promise(self, size_bytes: int) -> None:
        """So many bytes are about to come in that are on the disk already; negative once they have, or have not."""
        self._adopting_bytes += size_bytes

    def publish(self, share: Share, came: Tally) -> None:
        """A partial has become a blob; *came*: what that added to blobs/."""
        del self._active[share.digest]
        self.store(came)

    def store(self, came: Tally) -> None:
        """So much came into blobs/ (or less, with negative numbers)."""
        self.stored = self.stored.plus(came)

    def remove(self, gone: Tally) -> None:
        """So much went from blobs/."""
        self.stored = self.stored.minus(gone)

    def quarantine(self, name: str, size_bytes: int) -> None:
        """A file lies in quarantine."""
        self._quarantined.pop(name, None)
        self._quarantined[name] = size_bytes

    def unquarantine(self, name: str) -> int:
        """It is gone; the bytes that it had."""
        return self._quarantined.pop(name)
