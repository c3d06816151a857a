"""A disk and an index in memory, slow and failing as the weather has it; what a crash leaves of them."""

import asyncio
import contextlib
import copy
import errno
import functools
import hashlib
import random
from collections.abc import Callable, Sequence
from typing import Any

from registry_cache.model.contents import PinSummary, Stored
from registry_cache.model.errors import IndexRefused
from registry_cache.model.oci import Digest
from registry_cache.ports.rows import BlobEntry, Entry, Tally
from registry_cache.store.entries import Opened, Seen
from registry_cache.store.files import DiskSpace
from registry_cache.store.index.doubt import Doubt


class Crashed(BaseException):
    """The process that wanted this is no more."""


class Weather:
    """How slow things are (seconds) and how often they fail (0 to 1); changed while a run goes on."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.slow_files = 0.01
        self.slow_rows = 0.01
        self.failing_files = 0.0
        self.rows_refused = False
        self.failing_reads = 0.0  # of the index
        self.free_bytes = 1 << 40

    def file_seconds(self) -> float:
        return self.chance.random() * self.slow_files

    def row_seconds(self) -> float:
        return self.chance.random() * self.slow_rows

    def fails(self) -> bool:
        return self.failing_files > 0 and self.chance.random() < self.failing_files

    def fails_to_read(self) -> bool:
        return self.failing_reads > 0 and self.chance.random() < self.failing_reads


class Inode:
    """A file; ``rotten`` once the simulator has damaged it."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.data = bytearray()
        self.synced = b""
        self.rotten = False


class Disk:
    """What outlives the process: names, what survives a crash of the machine, rows, doubt."""

    def __init__(self) -> None:
        self.names: dict[str, Inode] = {}
        self.durable: dict[str, Inode] = {}
        self.rows: dict[Digest, BlobEntry] = {}
        self.undo: list[tuple[Digest, BlobEntry | None]] = []  # transactions that a power cut may take back
        self.ended = False  # properly, as the index says
        self.machine_crashed = False
        self.doubt = ""  # the file beside the index
        self._numbers = 0

    def new_inode(self) -> Inode:
        self._numbers += 1
        return Inode(self._numbers)

    def files(self, folder: str) -> dict[str, Inode]:
        """Below *folder*, by path."""
        return {path: inode for path, inode in self.names.items() if path.startswith(folder + "/")}

    @property
    def is_trusted(self) -> bool:
        """Whether the next run will take it that rows and files agree."""
        return self.ended and not self.doubt

    def end(self, *, ended: bool) -> None:
        """A run says that it has begun, or that it ends. Both are synced, and what was removed before with them."""
        self.ended = ended
        self.durable = dict(self.names)
        self.undo.clear()

    def set_row(self, digest: Digest, entry: BlobEntry | None) -> None:
        self.undo.append((digest, self.rows.get(digest)))
        if entry is None:
            self.rows.pop(digest, None)
        else:
            self.rows[digest] = entry

    def cut_power(self, chance: random.Random) -> None:
        """What was not synced is there or not, each by chance."""
        for path in sorted(self.names.keys() | self.durable.keys()):
            if self.names.get(path) is not self.durable.get(path) and chance.random() < 0.5:
                if path in self.durable:
                    self.names[path] = self.durable[path]
                else:
                    del self.names[path]
        for inode in self.names.values():
            if bytes(inode.data) != inode.synced and chance.random() < 0.5:
                inode.data = bytearray(inode.synced)
        self.durable = dict(self.names)
        for _ in range(chance.randrange(len(self.undo) + 1)):
            digest, before = self.undo.pop()
            if before is None:
                self.rows.pop(digest, None)
            else:
                self.rows[digest] = before


class Process:
    """Whether the run that uses disk and index is still alive."""

    def __init__(self) -> None:
        self.is_dead = False

    def check(self) -> None:
        if self.is_dead:
            raise Crashed


async def happen(process: Process, before: float, effect: Callable[[], Any], after: float) -> Any:
    """*effect* in a while, and a while later its result; as with a thread, a cancelled caller waits for it."""
    process.check()
    loop = asyncio.get_running_loop()
    done = loop.create_future()

    def begin() -> None:
        if process.is_dead:
            return
        try:
            result, error = effect(), None
        except OSError as raised:
            result, error = None, raised
        except IndexRefused as raised:
            result, error = None, raised
        loop.call_later(after, end, result, error)

    def end(result: Any, error: Exception | None) -> None:
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(result)

    loop.call_later(before, begin)
    try:
        return await asyncio.shield(done)
    except asyncio.CancelledError:
        while not done.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([done])
        done.exception()
        raise


class MemoryFiles:
    """See :class:`registry_cache.store.files.Files`."""

    def __init__(self, disk: Disk, weather: Weather, process: Process, told: Callable[[str, str, Inode], None]) -> None:
        self._disk = disk
        self._weather = weather
        self._process = process
        self._told = told  # what happened to which file: "removed", "moved", "placed"
        self._open: dict[int, Inode] = {}
        self._fds = 10

    async def _later(self, effect: Callable[[], Any], *, may_fail: bool = True) -> Any:
        fails = may_fail and self._weather.fails()

        def attempt() -> Any:
            if fails:
                raise OSError(errno.EIO, "Input/output error")
            return effect()

        return await happen(self._process, self._weather.file_seconds(), attempt, self._weather.file_seconds())

    def _fd(self, inode: Inode) -> int:
        self._fds += 1
        self._open[self._fds] = inode
        return self._fds

    def _at(self, path: str) -> Inode:
        try:
            return self._disk.names[path]
        except KeyError:
            raise FileNotFoundError(errno.ENOENT, "No such file", path) from None

    def open_now(self, path: str) -> Opened:
        self._process.check()
        inode = self._at(path)
        return Opened(self._fd(inode), len(inode.data), (1, inode.number))

    def read_now(self, fd: int, size_bytes: int, offset: int = 0) -> bytes:
        self._process.check()
        return bytes(self._open[fd].data[offset : offset + size_bytes])

    def close_now(self, fd: int) -> None:
        if not self._process.is_dead:
            del self._open[fd]

    def inode(self, fd: int) -> Inode:
        return self._open[fd]

    @property
    def open_count(self) -> int:
        return len(self._open)

    def space(self) -> DiskSpace | None:
        used = sum(len(inode.data) for inode in self._disk.names.values())
        return DiskSpace(1 << 41, self._weather.free_bytes - used, 0)

    def write(self, fd: int, data: Any, offset: int) -> None:
        self._process.check()
        if self._weather.fails():
            raise OSError(errno.ENOSPC, "No space left on device")
        self._open[fd].data[offset : offset + len(data)] = data

    def cut(self, fd: int, size_bytes: int) -> None:
        del self._open[fd].data[size_bytes:]

    def read(self, path: str, limit: int) -> bytes:
        return bytes(self._at(path).data[:limit])

    async def blocking(self, work: Callable[[], Any]) -> Any:
        failed: list[Exception] = []

        def attempt() -> Any:
            try:
                return work()
            except Exception as error:
                failed.append(error)
                return None

        result = await self._later(attempt, may_fail=False)
        if failed:
            raise failed[0]
        return result

    async def make_folders(self, folders: Sequence[str]) -> None:
        """There are none."""

    async def create(self, path: str) -> int:
        def effect() -> int:
            inode = self._disk.names[path] = self._disk.new_inode()
            return self._fd(inode)

        return await self._later(effect)

    async def reopen(self, path: str, hasher: Any) -> tuple[int, int]:
        def effect() -> tuple[int, int]:
            inode = self._at(path)
            hasher.update(inode.data)
            return self._fd(inode), len(inode.data)

        return await self._later(effect)

    async def sync(self, fd: int) -> None:
        def effect() -> None:
            self._open[fd].synced = bytes(self._open[fd].data)

        await self._later(effect)

    async def place(self, source: str, target: str) -> None:
        def effect() -> None:
            inode = self._at(source)
            del self._disk.names[source]
            self._disk.names[target] = self._disk.durable[target] = inode
            self._told("placed", target, inode)

        await self._later(effect)

    async def put(self, target: str, place: Callable[[], None]) -> None:
        await self._later(place)

    async def move(self, source: str, target: str) -> None:
        def effect() -> None:
            inode = self._at(source)
            del self._disk.names[source]
            self._disk.names[target] = inode
            self._told("moved", source, inode)

        await self._later(effect)

    async def remove(self, paths: Sequence[str]) -> None:
        for path in paths:

            def effect(path: str = path) -> None:
                inode = self._disk.names.pop(path, None)
                if inode is not None:
                    self._told("removed", path, inode)

            await self._later(effect)

    async def folders(self, folder: str) -> set[str]:
        return {path[len(folder) + 1 :].partition("/")[0] for path in self._disk.files(folder)}

    async def sizes(self, folder: str) -> list[tuple[str, int]]:
        return await self._later(
            lambda: [(path.rpartition("/")[2], len(inode.data)) for path, inode in self._disk.files(folder).items()]
        )

    async def look(self, path: str) -> Seen | None:
        def effect() -> Seen | None:
            inode = self._disk.names.get(path)
            return None if inode is None else Seen(len(inode.data), None, 0.0)

        return await self._later(effect)

    async def identify(self, path: str) -> tuple[int, int] | None:
        def effect() -> tuple[int, int] | None:
            inode = self._disk.names.get(path)
            return None if inode is None else (1, inode.number)

        return await self._later(effect)

    def close(self) -> None:
        """Nothing to close."""


class VirtualClock:
    def now(self) -> float:
        return asyncio.get_running_loop().time()


class MemoryIndex:
    """As much of :class:`ports.index.Index` as the store uses; rows change one after the other, as in one thread."""

    def __init__(self, disk: Disk, weather: Weather, process: Process) -> None:
        self._disk = disk
        self._weather = weather
        self._process = process
        self._free_at = 0.0  # the thread that writes
        self._files_free_at = 0.0  # the one that writes beside it
        self._known: dict[Digest, BlobEntry] = {}
        self._used: dict[Digest, float] = {}
        self.writable = not weather.rows_refused
        self.machine_crashed = disk.machine_crashed
        self._doubt = Doubt(self._write_doubt, self._remove_doubt)
        self._doubt.reason = disk.doubt or ("" if disk.ended else "the last run was killed")
        self._doubt.is_written = bool(disk.doubt)
        disk.machine_crashed = False
        if self.writable:
            disk.end(ended=False)
        self.tag_count = 0
        self.answers_bytes = 0
        self.refusal = "the weather"
        self.clock = VirtualClock()
        self.wanted: frozenset[Digest] = frozenset()

    async def aclose(self) -> None:
        await self.flush()
        if self.writable and (not self.doubt or self._doubt.is_written):
            with contextlib.suppress(IndexRefused):
                await self._write(lambda: self._end(ended=True))

    def _end(self, *, ended: bool) -> bool:
        self._disk.end(ended=ended)
        return True

    async def _write(self, effect: Callable[[], Any]) -> Any:
        now = asyncio.get_running_loop().time()
        begins = max(now, self._free_at)
        took, back = self._weather.row_seconds(), self._weather.row_seconds() / 4
        self._free_at = begins + took

        def attempt() -> Any:
            if self._weather.rows_refused:
                self.writable = False
                raise IndexRefused("the weather")
            return effect()

        return await happen(self._process, begins + took - now, attempt, back)

    async def _read(self, effect: Callable[[], Any], default: Any) -> Any:
        if self._weather.fails_to_read():
            effect = functools.partial(copy.copy, default)
        before, after = (self._weather.chance.random() * 0.01 for _ in range(2))
        return await happen(self._process, before, effect, after)

    async def _read_surely(self, effect: Callable[[], Any]) -> Any:
        if (found := await self._read(effect, None)) is None:
            raise IndexRefused("the index cannot be read")
        return found

    async def probe(self) -> bool:
        with contextlib.suppress(IndexRefused):
            await self._write(lambda: self._end(ended=False))
            self.writable = True
        return self.writable

    # --- doubt, as the real index has it; the file is written and removed by one thread -----------------------------

    @property
    def doubt(self) -> str:
        return self._doubt.reason

    @property
    def doubts_raised(self) -> int:
        return self._doubt.raised

    async def raise_doubt(self, reason: str) -> None:
        await self._doubt.raise_(reason)

    async def settle_doubt(self, raised: int | None = None) -> None:
        await self._doubt.settle(raised, self._note)

    async def _note(self) -> bool:
        with contextlib.suppress(IndexRefused):
            if self.writable:
                return await self._write(lambda: True)
        return False

    async def _write_doubt(self, reason: str) -> bool:
        return await self._change_doubt(reason)

    async def _remove_doubt(self) -> None:
        await self._change_doubt("")

    async def _change_doubt(self, reason: str) -> bool:
        now = asyncio.get_running_loop().time()
        begins = max(now, self._files_free_at)
        self._files_free_at = begins + self._weather.file_seconds()
        fails = self._weather.fails()

        def effect() -> bool:
            if not fails:
                self._disk.doubt = reason
            return not fails

        return await happen(self._process, self._files_free_at - now, effect, self._weather.file_seconds())

    async def blob(self, digest: Digest) -> BlobEntry | None:
        entry = await self._read(lambda: self._disk.rows.get(digest), None)
        if entry is not None:
            self._known[digest] = entry
        return entry

    def blob_at_hand(self, digest: Digest) -> BlobEntry | None:
        return self._known.get(digest)

    async def stored(self, digests: Any) -> dict[Digest, Stored]:
        def effect() -> dict[Digest, Stored]:
            rows = {digest: self._disk.rows[digest] for digest in digests if digest in self._disk.rows}
            return {digest: Stored(row.size_bytes, row.media_type, row.last_use) for digest, row in rows.items()}

        return await self._read_surely(effect)

    async def add_blob(self, entry: BlobEntry) -> Tally:
        if not self.writable:
            raise IndexRefused("the index refuses writes")

        def effect() -> Tally:
            old = self._disk.rows.get(entry.digest)
            self._disk.set_row(entry.digest, entry._replace(pinned=entry.digest in self.wanted))
            return Tally(entry.size_bytes, 1, 0).minus(Tally(old.size_bytes, 1, 0) if old else Tally())

        came = await self._write(effect)
        self._known[entry.digest] = entry
        return came

    def placed(self, entry: BlobEntry) -> None:
        """Nothing follows from it here."""

    async def forget_blobs(self, digests: Sequence[Digest]) -> Tally:
        if not self.writable:
            raise IndexRefused("the index refuses writes")

        def effect() -> Tally:
            gone = Tally()
            for digest in digests:
                if digest in self._disk.rows:
                    gone = gone.plus(Tally(self._disk.rows[digest].size_bytes, 1, 0))
                    self._disk.set_row(digest, None)
            return gone

        gone = await self._write(effect)
        for digest in digests:
            self._known.pop(digest, None)
            self._used.pop(digest, None)
        return gone

    def touch(self, digest: Digest) -> None:
        self._used[digest] = self.clock.now()

    def used_at(self, digest: Digest) -> float | None:
        return self._used.get(digest)

    async def oldest(self, limit: int, after: Entry | None = None) -> list[Entry]:
        def effect() -> list[Entry]:
            rows = sorted(
                (row.last_use, row.digest, row.size_bytes) for row in self._disk.rows.values() if not row.pinned
            )
            behind = (after.last_use, after.digest) if after else (-1.0, "")
            return [Entry(digest, size, used) for used, digest, size in rows if (used, digest) > behind][
                : min(limit, 5)
            ]

        return await self._read(effect, [])

    async def entries_between(self, first: str, last: str) -> dict[Digest, BlobEntry]:
        return await self._read_surely(
            lambda: {digest: row for digest, row in self._disk.rows.items() if first <= digest < last}
        )

    def media_type_kept(self, _digest: Digest) -> str | None:
        return None

    async def totals(self) -> Tally:
        return await self._read_surely(
            lambda: Tally(sum(row.size_bytes for row in self._disk.rows.values()), len(self._disk.rows), 0)
        )

    async def pin_summary(self, _limit: int) -> PinSummary:
        return await self._read(
            lambda: PinSummary(0, sum(row.size_bytes for row in self._disk.rows.values() if row.pinned), []),
            PinSummary(0, 0, []),
        )

    async def keep(self, wanted: Any) -> None:
        self.wanted = frozenset(wanted)
        with contextlib.suppress(IndexRefused):
            await self._write(self._pin)

    def _pin(self) -> None:
        for digest, row in self._disk.rows.items():
            self._disk.rows[digest] = row._replace(pinned=digest in self.wanted)

    async def flush(self) -> None:
        if not self.writable and not await self.probe():
            return
        used = dict(self._used)

        def effect() -> None:
            for digest, at in used.items():
                if digest in self._disk.rows:
                    self._disk.rows[digest] = self._disk.rows[digest]._replace(last_use=at)

        with contextlib.suppress(IndexRefused):
            if used:
                await self._write(effect)
                for digest, at in used.items():
                    if self._used.get(digest) == at:
                        del self._used[digest]


def digest_of(content: bytes) -> Digest:
    return Digest(f"sha256:{hashlib.sha256(content).hexdigest()}")
