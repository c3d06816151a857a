"""The index in memory: the shortest way to say what an index does, and what tests of the store and of pulls run on.

What would be on the disk is in a :class:`Saved`: another index over the same one is the next run. Everything else is
lost with the process.
"""

import asyncio
import itertools
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from registry_cache.model.clock import Clock
from registry_cache.model.contents import Inventory, Pin, PinSummary, Stored, Tag
from registry_cache.model.errors import IndexRefused
from registry_cache.model.oci import Digest, Repository
from registry_cache.ports.names import Answer, TagEntry
from registry_cache.ports.rows import BlobEntry, Entry, Tally
from registry_cache.store.index import names
from registry_cache.store.index.answers import answer_bytes
from registry_cache.store.index.links import LINKS_KEPT

Name = tuple[Repository, str]


@dataclass
class Saved:
    """What outlives the process."""

    rows: dict[Digest, BlobEntry] = field(default_factory=dict)
    tags: dict[Name, TagEntry] = field(default_factory=dict)
    links: dict[Digest, set[Repository]] = field(default_factory=dict)
    pins: set[Pin] = field(default_factory=set)
    answers: dict[str, Answer] = field(default_factory=dict)
    steps: dict[tuple[int, int], Counter[int]] = field(default_factory=dict)
    media_types: dict[Digest, str] = field(default_factory=dict)
    running: bool = False
    doubt: str = "the index is new"

    def lose(self, reason: str) -> None:
        """As when the file of an index is lost: what lies beside the content stays."""
        self.rows.clear()
        self.answers.clear()
        self.steps.clear()
        self.doubt = reason


class MemoryIndex:
    """See the module and :class:`registry_cache.ports.index.Index`.

    ``refusal`` says why it refuses writes, when it is set. ``before_write`` is awaited by every write, to hold it.
    """

    def __init__(
        self, saved: Saved | None = None, *, clock: Clock | None = None, answers_max_bytes: int = 1 << 20
    ) -> None:
        self.saved = saved or Saved()
        self.clock = clock or Clock()
        self.refusal = ""
        self.before_write: Callable[[], Awaitable[None]] | None = None
        self._answers_max_bytes = answers_max_bytes
        self._used: dict[Digest, float] = {}
        self._unwritten_links: dict[Digest, set[Repository]] = {}
        self._unwritten: dict[Name, TagEntry | None] = {}
        self._forgotten: dict[Name, float] = {}
        self.writable = True
        self.doubt = ""
        self.doubts_raised = 0
        self.machine_crashed = False
        self.wanted: frozenset[Digest] = frozenset()
        self._pins_told = False
        self.pins_changed = asyncio.Event()

    async def start(self) -> None:
        """See :class:`registry_cache.ports.index.Index`."""
        killed = "the last run was killed" if self.saved.running else ""
        self.doubt, self.saved.running = self.saved.doubt or killed, True

    async def aclose(self) -> None:
        """See :class:`registry_cache.ports.index.Index`."""
        await self.flush()
        self.saved.running = False

    # --- whether it can be written, and is right -----------------------------------------------------------------

    async def _write(self) -> None:
        if self.before_write is not None:
            await self.before_write()
        if self.refusal or not self.writable:
            self.writable = False
            raise IndexRefused(f"the index refuses writes: {self.refusal}")

    async def probe(self) -> bool:
        """See :class:`registry_cache.ports.rows.BlobRows`."""
        self.writable = not self.refusal
        return self.writable

    async def raise_doubt(self, reason: str) -> None:
        """See :class:`registry_cache.ports.rows.BlobRows`."""
        self.doubt = self.saved.doubt = self.doubt or reason
        self.doubts_raised += 1

    async def settle_doubt(self, raised: int | None = None) -> None:
        """See :class:`registry_cache.ports.rows.BlobRows`."""
        if raised is None or raised == self.doubts_raised:
            self.doubt = self.saved.doubt = ""
            links = self.saved.links.items()
            self.saved.links = {digest: where for digest, where in links if digest in self.saved.rows}

    def media_type_kept(self, digest: Digest) -> str | None:
        """See :class:`registry_cache.ports.rows.BlobRows`."""
        return self.saved.media_types.get(digest)

    async def flush(self) -> None:
        """See :class:`registry_cache.ports.rows.BlobRows`."""
        if not self.writable and not await self.probe():
            return
        try:
            await self._write()
        except IndexRefused:
            return
        self._write_names()
        for digest, at in self._used.items():
            if digest in self.saved.rows:
                self.saved.rows[digest] = self.saved.rows[digest]._replace(last_use=at)
        self._used.clear()
        for digest in [*self._unwritten_links]:
            if digest in self.saved.rows:
                self.saved.links.setdefault(digest, set()).update(self._unwritten_links.pop(digest))
        self._mark_pinned()

    # --- rows ---------------------------------------------------------------------------------------------------

    async def blob(self, digest: Digest) -> BlobEntry | None:
        """See :class:`registry_cache.ports.rows.BlobRows`."""
        return self.saved.rows.get(digest)

    def blob_at_hand(self, digest: Digest) -> BlobEntry | None:
        """See :class:`registry_cache.ports.rows.BlobRows`."""
        return self.saved.rows.get(digest)

    async def add_blob(self, entry: BlobEntry) -> Tally:
        """See :class:`registry_cache.ports.rows.BlobRows`."""
        await self._write()
        old = self.saved.rows.get(entry.digest)
        new = entry._replace(
            media_type=entry.media_type or (old.media_type if old else None),
            pinned=entry.pinned or entry.digest in self.wanted or (old is not None and old.pinned),
        )
        self.saved.rows[entry.digest] = new
        if new.media_type is not None:
            self.saved.media_types[entry.digest] = new.media_type
        self.placed(entry)
        return _tally([new]).minus(_tally([old] if old else []))

    def placed(self, entry: BlobEntry) -> None:
        """See :class:`registry_cache.ports.rows.BlobRows`."""
        if entry.media_type is not None and entry.digest in self.wanted:
            self.pins_changed.set()

    async def forget_blobs(self, digests: Sequence[Digest]) -> Tally:
        """See :class:`registry_cache.ports.rows.BlobRows`."""
        await self._write()
        for digest in digests:
            self._used.pop(digest, None)
            self.saved.media_types.pop(digest, None)
            self._unwritten_links.pop(digest, None)
            self.saved.links.pop(digest, None)
        return _tally([self.saved.rows.pop(digest) for digest in digests if digest in self.saved.rows])

    def touch(self, digest: Digest) -> None:
        """See :class:`registry_cache.ports.rows.BlobRows`."""
        self._used[digest] = self.clock.now()

    def used_at(self, digest: Digest) -> float | None:
        """See :class:`registry_cache.ports.rows.BlobRows`."""
        return self._used.get(digest)

    async def largest_bytes(self) -> int:
        """See :class:`registry_cache.ports.rows.BlobRows`."""
        return max((row.size_bytes for row in self.saved.rows.values()), default=0)

    async def oldest(self, limit: int, after: Entry | None = None) -> list[Entry]:
        """See :class:`registry_cache.ports.rows.BlobRows`."""
        order = sorted((row.last_use, row.digest) for row in self.saved.rows.values() if not row.pinned)
        behind = [at for at in order if after is None or at > (after.last_use, after.digest)]
        return [Entry(digest, self.saved.rows[digest].size_bytes, at) for at, digest in behind[:limit]]

    async def verified(self, digest: Digest, at: float) -> None:
        """See :class:`registry_cache.ports.rows.BlobRows`."""
        if digest in self.saved.rows and self.writable:
            self.saved.rows[digest] = self.saved.rows[digest]._replace(verified_at=at)

    async def unverified_longest(self, limit: int, *, before: float) -> list[Digest]:
        """See :class:`registry_cache.ports.rows.BlobRows`."""
        due = sorted((row.verified_at, row.digest) for row in self.saved.rows.values() if row.verified_at < before)
        return [digest for _, digest in due[:limit]]

    async def entries_between(self, first: str, last: str) -> dict[Digest, BlobEntry]:
        """See :class:`registry_cache.ports.rows.BlobRows`."""
        return {digest: row for digest, row in self.saved.rows.items() if first <= digest < last}

    async def stored(self, digests: Collection[Digest]) -> dict[Digest, Stored]:
        """See :class:`registry_cache.ports.index.Pins`."""
        rows = {digest: self.saved.rows[digest] for digest in digests if digest in self.saved.rows}
        return {digest: Stored(row.size_bytes, row.media_type, row.last_use) for digest, row in rows.items()}

    async def totals(self) -> Tally:
        """See :class:`registry_cache.ports.rows.BlobRows`."""
        return _tally(self.saved.rows.values())

    # --- names --------------------------------------------------------------------------------------------------

    @property
    def tag_count(self) -> int:
        """See :class:`registry_cache.ports.names.Names`."""
        return len(self.saved.tags)

    async def tag(self, repository: Repository, tag: str) -> TagEntry | None:
        """See :class:`registry_cache.ports.names.Names`."""
        return self.tag_at_hand(repository, tag)

    def tag_at_hand(self, repository: Repository, tag: str) -> TagEntry | None:
        """See :class:`registry_cache.ports.names.Names`."""
        name = (repository, tag)
        return self._unwritten[name] if name in self._unwritten else self.saved.tags.get(name)

    async def put_tag(self, repository: Repository, tag: str, entry: TagEntry) -> None:
        """See :class:`registry_cache.ports.names.Names`."""
        name, known = (repository, tag), self.tag_at_hand(repository, tag)
        if self._is_news(known, entry.fetched_at) and entry.fetched_at > self._forgotten.get(name, -1.0):
            self._unwritten[name] = entry
            await self._try_to_write_names()
            pinned = Pin(repository, tag) in self.saved.pins
            if pinned and (known is None or known.digest != entry.digest):
                self.pins_changed.set()

    def _is_news(self, known: TagEntry | None, asked_at: float) -> bool:
        return known is None or known.fetched_at <= asked_at or known.fetched_at > self.clock.now()

    async def forget_tag(self, repository: Repository, tag: str, *, asked_at: float | None = None) -> None:
        """See :class:`registry_cache.ports.names.Names`."""
        if asked_at is None or self._is_news(self.tag_at_hand(repository, tag), asked_at):
            self._forgotten[repository, tag] = self.clock.now() if asked_at is None else asked_at
            self._unwritten[repository, tag] = None
            await self._try_to_write_names()

    async def forget_tags(self, tags: Sequence[Name]) -> None:
        """See :class:`registry_cache.ports.names.Names`."""
        for repository, tag in tags:
            await self.forget_tag(repository, tag)

    async def _try_to_write_names(self) -> None:
        try:
            await self._write()
        except IndexRefused:
            return
        self._write_names()

    def _write_names(self) -> None:
        for name, entry in self._unwritten.items():
            self.saved.tags.pop(name, None)
            if entry is not None:
                self.saved.tags[name] = entry
        self._unwritten.clear()
        while len(self.saved.tags) > names.TAGS_KEPT:
            pinned = {(pin.repository, pin.target) for pin in self.saved.pins}
            del self.saved.tags[min(self.saved.tags.keys() - pinned, key=lambda name: self.saved.tags[name].fetched_at)]

    def link(self, repository: Repository, digest: Digest) -> None:
        """See :class:`registry_cache.ports.names.Names`."""
        buffered = self._unwritten_links.setdefault(digest, set())
        if len(buffered | self.saved.links.get(digest, set())) < LINKS_KEPT:
            buffered.add(repository)

    async def is_linked(self, repository: Repository, digest: Digest) -> bool:
        """See :class:`registry_cache.ports.names.Names`."""
        links = (self.saved.links, self._unwritten_links)
        return any(repository in known.get(digest, ()) for known in links)

    async def manifests_of(self, repository: Repository, limit: int) -> list[Digest]:
        """See :class:`registry_cache.ports.names.Names`."""
        rows = [row for row in self.saved.rows.values() if row.media_type is not None]
        rows.sort(key=lambda row: -row.last_use)
        tagged = {entry.digest for (where, _), entry in self.saved.tags.items() if where == repository}
        found = (
            row.digest for row in rows if row.digest in tagged or repository in self.saved.links.get(row.digest, ())
        )
        return list(itertools.islice(found, limit))

    async def forget_repositories(self, is_meant: Callable[[Repository], bool]) -> None:
        """See :class:`registry_cache.ports.names.Names`."""
        for repositories in (*self.saved.links.values(), *self._unwritten_links.values()):
            repositories -= {where for where in repositories if is_meant(where)}

    async def repositories(self, registry: str, after: str, limit: int) -> list[str]:
        """See :class:`registry_cache.ports.names.Names`."""
        links = [*self.saved.links.values(), *self._unwritten_links.values()]
        found = {where.name for some in links for where in some if where.registry == registry and where.name > after}
        return sorted(found)[:limit]

    async def registry_has(self, registry: str, digest: Digest) -> bool:
        """See :class:`registry_cache.ports.names.Names`."""
        links = (self.saved.links, self._unwritten_links)
        return any(where.registry == registry for some in links for where in some.get(digest, ()))

    async def repositories_of(self, digests: Sequence[Digest]) -> dict[Digest, list[Repository]]:
        """See :class:`registry_cache.ports.names.Names`."""

        def where(digest: Digest) -> set[Repository]:
            return self.saved.links.get(digest, set()) | self._unwritten_links.get(digest, set())

        return {digest: sorted(where(digest)) for digest in digests}

    async def answer(self, key: str) -> Answer | None:
        """See :class:`registry_cache.ports.names.Names`."""
        return self.saved.answers.get(key)

    async def put_answer(self, key: str, answer: Answer) -> None:
        """See :class:`registry_cache.ports.names.Names`."""
        if answer_bytes(key, answer) > self._answers_max_bytes // 2:
            return
        try:
            await self._write()
        except IndexRefused:
            return
        self.saved.answers[key] = answer
        while self.answers_bytes > self._answers_max_bytes:
            oldest = min(self.saved.answers, key=lambda key: self.saved.answers[key].fetched_at)
            del self.saved.answers[oldest]

    @property
    def answers_bytes(self) -> int:
        """See :class:`registry_cache.ports.names.Names`."""
        return sum(answer_bytes(key, answer) for key, answer in self.saved.answers.items())

    # --- pins ---------------------------------------------------------------------------------------------------

    async def inventory(self) -> Inventory:
        """See :class:`registry_cache.ports.index.Pins`."""
        await self.flush()
        tags = [Tag(where, tag, entry.digest, entry.fetched_at) for (where, tag), entry in self.saved.tags.items()]
        links = {digest: tuple(where) for digest, where in self.saved.links.items()}
        return Inventory(await self.stored([*self.saved.rows]), tags, links, [*self.saved.pins])

    async def pinned(self) -> list[tuple[Pin, Digest | None]]:
        """See :class:`registry_cache.ports.index.Pins`."""
        found = {pin: self.tag_at_hand(pin.repository, pin.target) for pin in self.saved.pins}
        return [(pin, entry.digest if entry else None) for pin, entry in found.items()]

    async def pin_summary(self, limit: int) -> PinSummary:
        """See :class:`registry_cache.ports.index.Pins`."""
        pins = sorted(self.saved.pins, key=lambda pin: (pin.repository.name, pin.target))
        held_bytes = sum(row.size_bytes for row in self.saved.rows.values() if row.pinned)
        return PinSummary(len(pins), held_bytes, pins[:limit])

    async def change_pins(self, *, add: Sequence[Pin] = (), remove: Sequence[Pin] = ()) -> None:
        """See :class:`registry_cache.ports.index.Pins`."""
        await self._write()
        self.saved.pins |= {*add}
        self.saved.pins -= {*remove}

    async def keep(self, wanted: Iterable[Digest]) -> None:
        """See :class:`registry_cache.ports.index.Pins`."""
        self.wanted, self._pins_told = frozenset(wanted), True
        try:
            await self._write()
        except IndexRefused:
            return
        self._mark_pinned()

    def _mark_pinned(self) -> None:
        if self._pins_told:
            for digest, row in self.saved.rows.items():
                self.saved.rows[digest] = row._replace(pinned=digest in self.wanted)

    # --- ledger -------------------------------------------------------------------------------------------------

    async def add_history(self, at: float, counts: Sequence[int], kept: Mapping[int, int]) -> bool:
        """See :class:`registry_cache.ports.index.Ledger`."""
        try:
            await self._write()
        except IndexRefused:
            return False
        for step, number in kept.items():
            began = int(at // step * step)
            self.saved.steps.setdefault((step, began), Counter()).update(dict(enumerate(counts)))
            for length, start in [*self.saved.steps]:
                if length == step and not began - number * step < start <= began:
                    del self.saved.steps[length, start]
        return True

    async def history(self, step_seconds: int, since: float) -> list[tuple[int, ...]]:
        """See :class:`registry_cache.ports.index.Ledger`."""
        found = sorted((start, step) for step, start in self.saved.steps if step == step_seconds and start >= since)
        return [(start, *(self.saved.steps[step, start][place] for place in range(7))) for start, step in found]


def _tally(rows: Iterable[BlobEntry]) -> Tally:
    total = Tally()
    for row in rows:
        total = total.plus(Tally(row.size_bytes, row.media_type is None, row.media_type is not None))
    return total
