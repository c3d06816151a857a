"""One run: the real store over a disk and an index in memory, everything at once, in an order drawn by chance.

After every few steps of the loop: no file without row or doubt, no byte uncounted, the cap held, nothing served that
was purged, nothing good quarantined. At the end, in fair weather, accounts, rows and files agree to the byte.
"""

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Collection
from pathlib import Path
from typing import Any

from registry_cache.model import events
from registry_cache.model.bus import Events
from registry_cache.model.errors import DigestMismatch, NoSpace, ReadFailed
from registry_cache.model.oci import Digest
from registry_cache.store import reading
from registry_cache.store.disk import DiskStore
from registry_cache.store.eviction import Evictor

from .loop import Loop
from .memory import Crashed, Disk, Inode, MemoryFiles, MemoryIndex, Process, Weather, digest_of

ROOT = Path("/s")
CAP = 200
FULL = 150  # what there is room for on a full disk
STEP = 10
SMALL = 15
_PREFIXES = ("00", "80", "ff")
_CALM_SECONDS = 2.0  # of a step that does not wait for anybody


def _contents() -> list[bytes]:
    """Blobs of 10 to 90 bytes, and one that does not fit; in few folders, so that comparing them takes few steps."""
    found: list[bytes] = []
    sizes = [10, 15, 20, 25, 30, 40, 45, 60, 60, 70, 90, 210]
    number = 0
    while len(found) < len(sizes):
        number += 1
        body = f"{number:06d}".encode() * 40
        body = body[: sizes[len(found)]]
        if digest_of(body).encoded[:2] in _PREFIXES:
            found.append(body)
    return found


CONTENTS = _contents()
BODIES = {digest_of(body): body for body in CONTENTS}
DIGESTS = list(BODIES)


class Broken(AssertionError):
    """An invariant does not hold."""


class Sink:
    """A client's connection: takes what the file has."""

    def __init__(self, files: MemoryFiles) -> None:
        self._files = files
        self.body = b""
        self.is_rotten = False

    async def write(self, data: bytes) -> None:
        self.body += data

    async def send_file(self, fd: int, start: int, stop: int) -> None:
        piece = self._files.read_now(fd, stop - start, start)
        self.is_rotten = self._files.inode(fd).rotten
        self.body += piece
        if len(piece) < stop - start:
            raise ReadFailed("the file ends early", offset=start + len(piece))


class World:
    """See the module. Everything by chance comes from *seed*."""

    def __init__(self, seed: int, troubles: Collection[str] | None = None) -> None:
        self.chance = random.Random(seed)
        self.trace: list[str] = []
        self.disk = Disk()
        self.weather = Weather(self.chance)
        # What runs are like: most of them have one kind of trouble, some have every kind.
        self.troubles = {
            name: self.chance.random() < 0.25 if troubles is None else name in troubles
            for name in (
                "slow files",
                "failing files",
                "slow rows",
                "refusing rows",
                "failing reads",
                "crash",
                "full disk",
            )
        }
        # Of few blobs the same one is met again and again; of many the cap is met.
        self.digests = self.chance.sample(DIGESTS, self.chance.choice((3, 5, len(DIGESTS))))
        # Every run has acts of its own that come often: what crosses rarely crosses there.
        self.weights = [weight * self.chance.choice((1, 1, 1, 6)) for weight in self._weights]
        self.time = 0.0
        self.files_failed_at = 0.0  # until then some unlink may have been refused
        self.gone: set[Digest] = set()  # purged, and not asked for since
        self.purging: Counter[Digest] = Counter()
        self.asked: Counter[Digest] = Counter()  # how often content was fetched
        self.held_at: dict[Digest, float] = {}
        self.removed_for_room = 0
        self.operator_removes = 0
        self.by_hand: set[str] = set()  # files that somebody has removed, whom nobody tells

    # --- processes ----------------------------------------------------------------------------------------------

    def run(self) -> None:
        """All of it.

        Raises:
            Broken: with what does not hold, and what happened before.
        """
        ends = ["stop", "stop", "stop", "break off"] + (["kill", "power"] if self.troubles["crash"] else [])
        for life in range(self.chance.choice((1, 1, 2, 3))):
            is_last = life == 2
            self._live("stop" if is_last else self.chance.choice(ends))
            self._draw_weather()
        self.weather.rows_refused = False
        self.weather.slow_files = self.weather.slow_rows = 0.01
        self.weather.free_bytes = 1 << 40
        self._live("settle")

    def _live(self, ending: str) -> None:
        loop = Loop(self.chance, self.time)
        # What a crash of the machine brought back goes again: it was removed, and that had not reached the disk.
        self.removed_for_room = min(0, CAP - sum(len(inode.data) for inode in self.disk.names.values()))
        # Who cannot even read the directory, or the index, does not start.
        self.weather.failing_files = self.weather.failing_reads = 0.0
        self.process = Process()
        try:
            loop.run(self._life(ending), self.check)
        except Crashed:
            pass
        finally:
            self.process.is_dead = True
            loop.drop()
            self.purging.clear()
            self.operator_removes = 0
            self.time = loop.time()
        self._check_what_is_left()
        for context in loop.errors:
            error = context.get("exception")
            if error is not None and not isinstance(error, Crashed | OSError):
                raise Broken(f"lost: {error!r}")

    async def _life(self, ending: str) -> None:
        self.say(f"start, then {ending}")
        self.files = MemoryFiles(self.disk, self.weather, self.process, self._told)
        self.index = MemoryIndex(self.disk, self.weather, self.process)
        bus = Events()
        bus.subscribe(self._emitted)
        self.store = DiskStore(
            ROOT,
            cap_bytes=CAP,
            min_free_bytes=0,
            index=self.index,  # type: ignore[arg-type]
            events=bus,
            files=self.files,
            step_bytes=STEP,
            folders=[("sha256", prefix) for prefix in _PREFIXES],
        )
        await self.store.start()
        tasks = [
            asyncio.create_task(self._act(self.chance.random() * 3.0)) for _ in range(0 if ending == "settle" else 8)
        ]
        if ending in ("kill", "power"):
            await asyncio.sleep(self.chance.random() * 4.0)
            self.say(ending)
            self.process.is_dead = True
            if ending == "power":
                self.disk.cut_power(self.chance)
                self.disk.machine_crashed = True
                self.gone.clear()  # the last unlinks may not have reached the disk
            raise Crashed
        if ending == "break off":  # as when a stop does not wait for transfers
            await asyncio.sleep(self.chance.random() * 4.0)
            for task in tasks:
                task.cancel()
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(result, BaseException) and not isinstance(result, asyncio.CancelledError):
                raise result
        if ending == "settle":
            await self._settle()
            await self._close()
        else:
            changing = asyncio.create_task(self._change_weather_again())
            await self._close()
            changing.cancel()
        if ending == "settle":
            self._check_agreement()

    async def _close(self) -> None:
        await self.store.aclose()
        await self.index.aclose()

    async def _change_weather_again(self) -> None:
        """Also what a stop waits for may fail, and the next thing not."""
        while True:
            await asyncio.sleep(self.chance.random() * self.chance.choice((0.02, 1.0)))
            await self._change_weather(self.digests[0])

    async def _settle(self) -> None:
        await asyncio.sleep(12.0)
        await self.store.maintain()
        await self.store.settled()
        if self.index.doubt or self.store.read_only:
            raise Broken(f"in fair weather: doubt {self.index.doubt!r}, read-only {self.store.read_only!r}")
        for digest in list(self.disk.rows):  # what is there is what it is called, or found out
            if self.store._layout.blob(digest) not in self.disk.names:
                await self.store.missing(digest)  # removed by hand, and served from memory since
            await self._read(digest)
        await self.store.settled()

    # --- what happens -------------------------------------------------------------------------------------------

    async def _act(self, wait: float) -> None:
        await asyncio.sleep(wait)
        for _ in range(self.chance.choice((1, 2, 2, 3))):
            act = self.chance.choices(self._acts, self.weights)[0]
            await act(self, self.chance.choice(self.digests))

    async def _ingest(self, digest: Digest) -> None:
        """As a flight does: only what is not here, one at a time."""
        how = self.chance.choice(("whole", "whole", "whole", "cut", "wrong", "unknown size"))
        blob = await self._open(digest)
        if blob is not None:
            blob.close()
            return
        if self.store._intake.is_under_way(digest):
            return
        self.gone.discard(digest)
        self.asked[digest] += 1
        self.say(f"ingest {how}", digest)
        try:
            async with self.store.ingest(digest) as partial:
                try:
                    await self._transfer(digest, partial, how)
                finally:
                    partial.close()
                    self.held_at[digest] = self.now
        except NoSpace as error:
            self.say(f"unstored ({error})", digest)
            self._check_refusal(digest, str(error))
        except DigestMismatch:
            self.say("mismatch", digest)

    async def _transfer(self, digest: Digest, partial: Any, how: str) -> None:
        body = BODIES[digest]
        if how == "wrong":
            body = body[:-1] + b"x"
        began, is_known = self.now, self.store._condition.known.is_set()
        await partial.expect(None if how == "unknown size" else len(body))
        if is_known and self._is_calm_for_files and self.now - began > _CALM_SECONDS:
            raise Broken(f"a first byte waited for {self.now - began:.1f} s")
        stop = self.chance.randrange(len(body)) if how == "cut" else len(body)
        while partial.offset < stop:
            await asyncio.sleep(self.chance.random() * 0.05)
            await partial.append(body[partial.offset : min(stop, partial.offset + self.chance.choice((5, 20, 40)))])
        if how == "cut":
            return
        try:
            partial.verify()
        except DigestMismatch:
            await partial.discard()
            raise
        await partial.publish(None)
        self.say("stored", digest)

    async def _read(self, digest: Digest) -> None:
        blob = await self._open(digest)
        if blob is None:
            return
        try:
            sink = Sink(self.files)
            await asyncio.sleep(self.chance.random() * self.chance.choice((0.01, 0.5)))
            with contextlib.suppress(ReadFailed):
                await blob.send(sink, 0, blob.size_bytes)
                if sink.body != BODIES[digest] and not sink.is_rotten:
                    raise Broken(f"{digest[:15]} was served as something else")
        finally:
            blob.close()
            self.held_at[digest] = self.now

    async def _open(self, digest: Digest) -> Any:
        was_gone, asked = digest in self.gone, self.asked[digest]
        blob = self.store.at_hand(digest) if self.chance.random() < 0.5 else await self.store.open(digest)
        if blob is not None and was_gone and asked == self.asked[digest]:
            raise Broken(f"{digest[:15]} was purged, and is served")
        return blob

    async def _remember(self, digest: Digest) -> None:
        """A manifest's answer comes; it is in memory before it is stored."""
        asked_at = self.asked[digest] = self.asked[digest] + 1
        self.gone.discard(digest)
        await asyncio.sleep(self.chance.random() * 0.1)
        if asked_at == self.asked[digest] and digest not in self.gone:
            if digest not in self.store._reading._leaving:  # else it comes too late, and is not kept
                self.asked[digest] += 1
            self.store.remember(digest, BODIES[digest], "application/json")

    async def _purge(self, digest: Digest) -> None:
        self.say("purge", digest)
        asked, began = self.asked[digest], self.now
        self.purging[digest] += 1
        try:
            await self._operator(self.store.purge([digest]))
        finally:
            self.purging[digest] -= 1
        if asked == self.asked[digest] and self.weather.failing_files == 0 and began > self.files_failed_at:
            self.gone.add(digest)
            self.say("purged", digest)

    async def _operator(self, work: Awaitable[Any]) -> None:
        self.operator_removes += 1
        try:
            await work
        finally:
            self.operator_removes -= 1

    async def _pin(self, digest: Digest) -> None:
        self.say("pin", digest)
        before = [kept for kept, row in self.disk.rows.items() if row.pinned]
        await self.index.keep([digest] if self.chance.random() < 0.6 else [])
        self.held_at.update(dict.fromkeys(before, self.now))

    async def _rot(self, digest: Digest) -> None:
        inode = self.disk.names.get(self.store._layout.blob(digest))
        if inode is not None:
            self.say("rot", digest)
            inode.rotten = True
            if self.chance.random() < 0.5:
                del inode.data[-1:]
            else:
                inode.data[-1] ^= 1
            inode.synced = bytes(inode.data)  # the disk itself has it so: no crash brings back what was

    async def _scrub(self, digest: Digest) -> None:
        """As :class:`registry_cache.store.scrub.Scrubber` does."""
        try:
            opened = self.files.open_now(self.store._layout.blob(digest))
        except FileNotFoundError:
            await self.store.missing(digest)
            return
        try:
            await asyncio.sleep(self.chance.random() * self.chance.choice((0.3, 1.0)))
            if self.files.read_now(opened.fd, 1000) != BODIES[digest]:
                await self.store.quarantine(digest, "the scrub", opened.inode)
        finally:
            self.files.close_now(opened.fd)

    async def _rot_and_pull(self, digest: Digest) -> None:
        """The scrub has the rotten file open while it is found otherwise, and pulled anew."""
        await self._rot(digest)
        await asyncio.gather(self._scrub(digest), self._read(digest), self._ingest(digest), self._read(digest))
        await self._ingest(digest)

    async def _purge_and_read(self, digest: Digest) -> None:
        async def look(seconds: float) -> None:
            await asyncio.sleep(seconds)
            await self._read(digest)

        reads = [look(self.chance.random() * 0.03) for _ in range(4)]
        await asyncio.gather(self._purge(digest), *reads)
        await self._read(digest)

    async def _remove_by_hand(self, digest: Digest) -> None:
        self.say("removed by hand", digest)
        for path in list(self.disk.names):
            if self.chance.random() < 0.5:
                del self.disk.names[path]
                self.by_hand.add(path)

    async def _flush(self, _: Digest) -> None:
        await self.index.flush()

    async def _change_weather(self, _: Digest) -> None:
        if self.weather.failing_files:
            self.files_failed_at = self.now
        self._draw_weather()

    def _draw_weather(self) -> None:
        weather, has = self.weather, self.troubles
        weather.slow_files = self.chance.choice((0.01, 0.01, 1.0)) if has["slow files"] else 0.01
        weather.failing_files = self.chance.choice((0.0, 0.02, 0.3)) if has["failing files"] else 0.0
        weather.slow_rows = self.chance.choice((0.01, 40.0)) if has["slow rows"] else 0.01
        weather.free_bytes = self.chance.choice((1 << 40, FULL)) if has["full disk"] else 1 << 40
        weather.rows_refused = has["refusing rows"] and self.chance.random() < 0.6
        weather.failing_reads = self.chance.choice((0.0, 0.1, 1.0)) if has["failing reads"] else 0.0
        self.say(f"weather {weather.slow_files} {weather.failing_files} {weather.slow_rows} {weather.rows_refused}")

    _acts: tuple[Callable[..., Awaitable[None]], ...] = (
        _ingest, _read, _purge, _pin, _rot, _scrub, _flush, _change_weather, _remember, _remove_by_hand,
        _rot_and_pull, _purge_and_read,
    )  # fmt: skip
    _weights = (40, 20, 8, 4, 5, 6, 3, 8, 4, 1, 4, 4)

    # --- what is told -------------------------------------------------------------------------------------------

    @property
    def now(self) -> float:
        return asyncio.get_running_loop().time()

    def say(self, what: str, digest: str = "") -> None:
        with contextlib.suppress(RuntimeError):
            self.trace.append(f"{self.now:8.3f} {what} {digest[7:13]}")

    def _told(self, what: str, path: str, inode: Inode) -> None:
        is_blob = path.startswith(f"{ROOT}/blobs/")
        if what == "placed":
            self.by_hand.discard(path)
        if what == "moved" and is_blob and not inode.rotten:
            raise Broken(f"a good file was quarantined: {path[-64:][:6]}")
        if what == "removed" and is_blob and not self.operator_removes:
            self.removed_for_room += len(inode.data)
            # The step that is asked for, what a disk lacks that is smaller now than what is on it, and what the last of
            # the victims has too much of it.
            lacks = CAP - FULL if self.troubles["full disk"] else 0
            if self.removed_for_room > 70 + lacks + 90 and not self.troubles["failing files"]:
                raise Broken(f"{self.removed_for_room} bytes were evicted for a step of {STEP}")
        self.trace.append(f"         {what} {path[3:]}")

    def _emitted(self, event: events.Event) -> None:
        if isinstance(event, events.Crashed):
            raise Broken(event.traceback)
        if isinstance(event, events.Evicted):
            self.removed_for_room = 0

    @property
    def _is_calm_for_files(self) -> bool:
        trouble = self.troubles
        kinds = ("slow files", "failing files", "failing reads", "crash", "full disk")
        return not any(trouble[kind] for kind in kinds)

    # --- what has to hold ---------------------------------------------------------------------------------------

    def check(self) -> None:
        """Whatever is under way."""
        if self.process.is_dead or not hasattr(self, "store"):
            return
        room, doubt = self.store.room, self.index.doubt
        blobs = f"{ROOT}/blobs/"
        on_disk = 0
        for path, inode in self.disk.names.items():
            on_disk += len(inode.data)
            if not doubt and path.startswith(blobs) and Digest(f"sha256:{path[-64:]}") not in self.disk.rows:
                raise Broken(f"a file without row or doubt: {path[-64:][:6]}")
        if not self.store._condition.known.is_set():
            return  # what is there is still being counted
        if on_disk > room.total_bytes:
            raise Broken(f"{on_disk} bytes on the disk, {room.total_bytes} counted: {vars(room)}")
        if on_disk > CAP:
            raise Broken(f"{on_disk} bytes on the disk under a cap of {CAP}")
        # Where a disk does not say what became of a file, too much is counted rather than too little.
        if room.total_bytes > CAP and not self.troubles["failing files"]:
            raise Broken(f"{room.total_bytes} bytes under a cap of {CAP}: {vars(room)}")

    def _check_refusal(self, digest: Digest, reason: str) -> None:
        if "purged" in reason or not self._is_calm_for_files or self.troubles["refusing rows"]:
            return
        if reason.startswith(("ENOENT", "EIO", "ENOSPC")) and not any("by hand" in line for line in self.trace):
            raise Broken(f"{digest[:13]} was not stored although nothing is wrong: {reason}")

    def check_given_up(self, evictor: Evictor) -> None:
        """A transfer says that nothing is left that could go."""
        if not self._is_calm_for_files or self.troubles["refusing rows"]:
            return
        for digest, row in self.disk.rows.items():
            is_held = evictor._is_held(digest) or row.pinned or self.now - self.held_at.get(digest, -9.0) < 1.0
            if not is_held and self.store._layout.blob(digest) in self.disk.names:
                raise Broken(f"room was refused although {digest[7:13]} could have gone")

    def _check_what_is_left(self) -> None:
        """When a run is over, however it ended: what nobody doubts is true."""
        if not self.disk.is_trusted:
            return
        files = self.disk.files(f"{ROOT}/blobs").keys()
        rows = {f"{ROOT}/blobs/sha256/{digest.encoded[:2]}/{digest.encoded}" for digest in self.disk.rows}
        if wrong := (files ^ rows) - self.by_hand:
            raise Broken(f"nobody doubts that rows and files agree, but they do not: {wrong}")

    def _check_agreement(self) -> None:
        """In fair weather, when nothing is under way."""
        room = self.store.room
        blobs = self.disk.files(f"{ROOT}/blobs")
        rows = {self.store._layout.blob(digest): row.size_bytes for digest, row in self.disk.rows.items()}
        sizes = {path: len(inode.data) for path, inode in blobs.items()}
        if sizes.keys() != rows.keys():
            raise Broken(f"files and rows: {sizes.keys() ^ rows.keys()}")
        if room.stored.size_bytes != sum(rows.values()) or room.stored.objects != len(rows):
            raise Broken(f"counted {room.stored}, rows {sum(rows.values())} in {len(rows)}")
        on_disk = sum(len(inode.data) for inode in self.disk.names.values())
        rotten = sum(rows[path] - size for path, size in sizes.items())
        if room.total_bytes != on_disk + rotten:
            raise Broken(f"counted {room.total_bytes}, on the disk {on_disk}")
        if self.store.ingests or self.store._locks._locks or self.files.open_count or self.store.open_files:
            raise Broken("something is still held")


@contextlib.contextmanager
def simulated() -> Any:
    """Sizes are small, and giving up is looked at."""
    small, make_room = reading.SMALL_BYTES, Evictor._make_room

    async def looked_at(self: Evictor, share: Any, size_bytes: int) -> None:
        try:
            await make_room(self, share, size_bytes)
        except NoSpace as error:
            if "cap" in str(error):
                _worlds[-1].check_given_up(self)
            raise

    reading.SMALL_BYTES, Evictor._make_room = SMALL, looked_at  # type: ignore[method-assign]
    try:
        yield
    finally:
        reading.SMALL_BYTES, Evictor._make_room = small, make_room  # type: ignore[method-assign]


_worlds: list[World] = []


def run(seed: int, troubles: Collection[str] | None = None) -> World:
    """One run, inside :func:`simulated`.

    Args:
        troubles: these and no others; None for a choice by chance.

    Raises:
        Exception: what broke it; its notes have the seed and what happened.
    """
    world = World(seed, troubles)
    _worlds[:] = [world]
    try:
        world.run()
    except Exception as error:
        error.add_note("\n".join([*world.trace[-60:], f"python -m tests.simulator --seed {seed}"]))
        raise
    return world
