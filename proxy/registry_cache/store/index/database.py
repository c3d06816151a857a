"""The one owner of the connections to SQLite: who reads, who writes, and what happens when that fails.

One thread writes, through one connection. Two others read, through connections of their own: with a write-ahead log no
read waits for a write, however long another process holds the lock or the disk takes.
"""

import contextlib
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

from registry_cache.model import events
from registry_cache.model.bus import Events
from registry_cache.model.clock import Clock
from registry_cache.model.errors import IndexRefused, StoreTooNew
from registry_cache.runtime.threads import Threads
from registry_cache.store.index import endings, schema
from registry_cache.store.index.files import open_file

T = TypeVar("T")

# How long a write waits for another process before it is refused, and a read for one that mends the log.
BUSY_SECONDS = 2.0
_BUSY_READ_SECONDS = 0.2
_READERS = 2
_LOG_KEPT_BYTES = 16 * 1024 * 1024


class Figures(NamedTuple):
    """What is counted when a file is opened. ``latest``: the latest time that is written down, Unix seconds."""

    latest: float = 0.0
    tags: int = 0
    answers_bytes: int = 0


class Database:
    """See the module. Open it with :meth:`open`; whoever opens it calls :meth:`aclose`.

    Args:
        path: of the file.
        busy_seconds: how long a write waits for a lock that another process holds.
        fill: what is done to an index that nobody has filled, before anything reads it: one that was just made, or
            (False) one of a version that did not know of this; runs in the thread that writes.
        lost: called when another index has taken the place of one that broke: what was read before is void.
    """

    def __init__(
        self,
        path: Path,
        *,
        events: Events,
        busy_seconds: float = BUSY_SECONDS,
        fill: Callable[[sqlite3.Connection, bool], None] = lambda _, __: None,
        lost: Callable[[], None] = lambda: None,
    ) -> None:
        self.path = path
        self._events = events
        self._busy_seconds = busy_seconds
        self._fill = fill
        self._lost = lost
        self._writer = Threads("index", 1)
        self._reader = Threads("index read", _READERS)
        self._whole = Threads("inventory", 1)
        self._db: sqlite3.Connection | None = None
        self._opened = 0  # counts the files: connections to an older one are not used again
        self._idle: list[tuple[int, sqlite3.Connection]] = []  # of the readers; append and pop need no lock
        self._in_memory = False
        self._read_as = "mode=ro"
        self._file: tuple[int, int] | None = None  # device and inode of what is open for writing
        self._replaced = False
        self._failing: set[str] = set()
        self.writable = False
        self.refusal = "it is not open"
        self.clock = Clock()
        self.ending = endings.Ending("", machine_crashed=False)
        self.figures = Figures()

    # --- opening and closing ------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Open the file, or make it.

        Raises:
            StoreTooNew: a newer version of this program wrote it.
        """
        await self._writer.run(self._open)
        self.clock.go_on_from(self.figures.latest)

    async def aclose(self, *, properly: bool) -> None:
        """Close it; *properly* if rows and files agree, or their doubt is written down elsewhere."""
        if properly and self.writable:
            await self.try_write(endings.end, None)
        await self._writer.run(self._close)
        for threads in (self._writer, self._reader, self._whole):
            threads.close()

    def _open(self) -> None:
        """Runs in the thread that writes."""
        try:
            self._open_file()
        except (sqlite3.Error, OSError) as error:
            if _is_broken(error):
                self._start_over(str(error))
            else:
                self._open_somehow(str(error))

    def _open_file(self, *, only_to_write: bool = False) -> None:
        """Open the file; readers go on with what there was until all of it is known.

        Args:
            only_to_write: fail where it can only be read.
        """
        with contextlib.suppress(OSError):  # SQLite's own error says it better
            os.close(open_file(self.path, os.O_RDWR))
        db = self._connect(str(self.path), self._busy_seconds)
        try:
            stat = self.path.stat()
            file: tuple[int, int] | None = (stat.st_dev, stat.st_ino)
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = NORMAL")
            db.execute(f"PRAGMA journal_size_limit = {_LOG_KEPT_BYTES}")
            was_new = self._bring_up_to_date(db)
            ending, figures = endings.last_ending(db, is_new=was_new), _count(db)
            refusal = None
            try:
                endings.begin(db)
            except sqlite3.OperationalError as error:
                if only_to_write:
                    raise
                refusal = error
                if _is_read_only(error):
                    file = None  # SQLite has opened it only to read: it has to be opened again to be written
        except BaseException:
            db.close()
            raise
        self._db, self._file, self.ending, self.figures = db, file, ending, figures
        self._in_memory, self._read_as = False, "mode=ro"
        self._opened += 1
        if refusal is not None:
            self._refused(refusal)
        else:
            self.writable, self.refusal = True, ""

    def _connect(self, name: str, busy_seconds: float) -> sqlite3.Connection:
        return sqlite3.connect(
            name, timeout=busy_seconds, isolation_level=None, uri=name.startswith("file:"), check_same_thread=False
        )

    def _bring_up_to_date(self, db: sqlite3.Connection) -> bool:
        """Make the tables that are missing; whether all were."""
        version = int(db.execute("PRAGMA user_version").fetchone()[0])
        if version > schema.SCHEMA_VERSION:
            db.close()
            raise StoreTooNew(
                f"{self.path} was written by a newer version (schema {version}, this one knows "
                f"{schema.SCHEMA_VERSION}): run the newer version, or delete the file to have it rebuilt from blobs/"
            )
        if version < schema.SCHEMA_VERSION:
            steps = " ".join(schema.SCHEMAS[version:])
            db.executescript(f"BEGIN IMMEDIATE; {steps} PRAGMA user_version = {schema.SCHEMA_VERSION}; COMMIT;")
        if not schema.get_meta(db, "filled"):
            with schema.transaction(db):
                is_empty = not db.execute("SELECT 1 FROM blobs UNION ALL SELECT 1 FROM tags LIMIT 1").fetchone()
                self._fill(db, is_empty)
                schema.set_meta(db, "filled", "names" if is_empty else "rows")
        return version == 0

    def _start_over(self, reason: str) -> None:
        """Runs in the thread that writes: throw a broken file away and begin an empty one."""
        self._close()
        for suffix in ("", "-wal", "-shm"):
            with contextlib.suppress(OSError):
                self.path.with_name(self.path.name + suffix).unlink()
        try:
            self._open_file()
        except (sqlite3.Error, OSError) as error:
            self._open_somehow(str(error))
        self.ending = endings.Ending(f"the index was broken: {reason}", machine_crashed=self.ending.machine_crashed)

    def _open_somehow(self, reason: str) -> None:
        """Runs in the thread that writes: nothing can be written; read what there is, at worst nothing."""
        self._close()
        self._file = None
        self.writable, self.refusal = False, reason
        # A log cannot be shared on a read-only filesystem: there the file is read as one that nobody changes.
        if self._opens_to_read("mode=ro") or self._opens_to_read("mode=ro&immutable=1"):
            return
        self._in_memory = True
        self._db = self._connect(":memory:", 0.0)
        self._db.executescript(" ".join(schema.SCHEMAS))
        self._fill(self._db, True)
        self.ending = endings.Ending(f"the index cannot be opened: {reason}", machine_crashed=False)
        self.figures = _count(self._db)

    def _opens_to_read(self, options: str) -> bool:
        self._in_memory, self._read_as = False, options
        try:
            self._db = db = self._connect_to_read()
            if db.execute("PRAGMA user_version").fetchone()[0] == schema.SCHEMA_VERSION:
                self.ending = endings.last_ending(db, is_new=False)
                self.figures = _count(db)
                return True
        except sqlite3.Error:
            pass
        self._close()
        return False

    def _connect_to_read(self) -> sqlite3.Connection:
        return self._connect(f"{self.path.absolute().as_uri()}?{self._read_as}", _BUSY_READ_SECONDS)

    def _close(self) -> None:
        """Runs in the thread that writes. Readers that are at work close their own connections."""
        self._opened += 1
        with contextlib.suppress(IndexError):
            while True:
                self._idle.pop()[1].close()
        if self._db is not None:
            with contextlib.suppress(sqlite3.Error):
                self._db.close()
            self._db = None

    # --- reading ------------------------------------------------------------------------------------------------

    async def read(self, work: Callable[..., T], default: T, *args: object) -> T:
        """*work* with a connection that reads; *default* when SQLite cannot do it: the pull goes on."""
        return await self._read(self._reader, work, default, args)

    async def read_surely(self, work: Callable[..., T], *args: object) -> T:
        """As :meth:`read`, for what "nothing" would be a wrong answer to: rows, when files go.

        Raises:
            IndexRefused: it cannot be read.
        """
        return surely(await self._read(self._reader, work, None, args))

    async def read_whole(self, work: Callable[..., T], default: T, *args: object) -> T:
        """As :meth:`read`, for what takes long: in a thread of its own, of one moment for all tables."""

        def at_one_moment(db: sqlite3.Connection, *args: object) -> T:
            db.execute("BEGIN")
            try:
                return work(db, *args)
            finally:
                db.execute("ROLLBACK")

        return await self._read(self._whole, at_one_moment, default, args)

    async def _read(self, threads: Threads, work: Callable[..., T], default: T, args: tuple[object, ...]) -> T:
        opened = self._opened
        if self._in_memory:  # which has one connection
            threads = self._writer
        try:
            result = await threads.run(self._with_reader, work, args)
        except sqlite3.Error as error:
            await self._failed("index read", error, opened)
            return default
        self._failing.discard("index read")
        return result

    def _with_reader(self, work: Callable[..., T], args: tuple[object, ...]) -> T:
        """Runs in a thread that reads."""
        if self._in_memory:
            return self._with_writer(work, args)
        opened, db = self._idle_reader()
        try:
            return work(db, *args)
        finally:
            self._idle.append((opened, db))

    def _idle_reader(self) -> tuple[int, sqlite3.Connection]:
        with contextlib.suppress(IndexError):
            while True:
                opened, db = self._idle.pop()
                if opened == self._opened:
                    return opened, db
                db.close()  # of a file that is no more
        return self._opened, self._connect_to_read()

    # --- writing ------------------------------------------------------------------------------------------------

    async def write(self, work: Callable[..., T], *args: object) -> T:
        """*work* with the connection that writes.

        Raises:
            IndexRefused: it was not done.
        """
        for _ in range(2):  # the second time in the one that was begun in place of a broken one
            if not self.writable:
                break
            opened = self._opened
            try:
                return await self._writer.run(self._with_writer, work, args)
            except (UnicodeError, OverflowError) as error:  # what upstream sent is no text, or no such number
                raise IndexRefused(f"the index cannot have it: {error}") from error
            except sqlite3.Error as error:
                if not await self._failed("index", error, opened):
                    self._refused(error)
        raise IndexRefused(f"the index refuses writes: {self.refusal}")

    async def try_write(self, work: Callable[..., T], default: T, *args: object) -> T:
        """As :meth:`write`; *default* when it was not done."""
        try:
            return await self.write(work, *args)
        except IndexRefused:
            return default

    async def probe(self) -> bool:
        """Try to write; whether that went. An index that could not be opened is tried again."""
        opened = self._opened
        try:
            await self._writer.run(self._probe)
        except sqlite3.Error as error:
            if not await self._failed("index", error, opened):
                self._refused(error)
        else:
            self.writable, self.refusal = True, ""
            self._failing.discard("index")
        if self._replaced:
            self._replaced = False
            self._lost()
        return self.writable

    def _probe(self) -> None:
        """Runs in the thread that writes."""
        if self._is_file():
            self._with_writer(endings.begin, ())
            return
        before = self._db
        try:
            self._open_file(only_to_write=True)
        except OSError as error:
            raise sqlite3.OperationalError(str(error)) from error
        if before is not None:
            before.close()
        self._replaced = True

    async def is_there(self) -> bool:
        """Whether it can be written, and is the file that has the name."""
        return self.writable and await self._writer.run(self._is_file)

    def _is_file(self) -> bool:
        """Whether what is open for writing is the file that has the name: not one that was removed meanwhile."""
        try:
            stat = self.path.stat()
        except OSError:
            return False
        return self._file == (stat.st_dev, stat.st_ino)

    def _with_writer(self, work: Callable[..., T], args: tuple[object, ...]) -> T:
        """Runs in the thread that writes."""
        if self._db is None:
            raise sqlite3.OperationalError("the index is closed")
        if self._db.in_transaction:  # neither its end nor its taking back went through: nothing of it is there
            self._db.execute("ROLLBACK")
        return work(self._db, *args)

    # --- trouble ------------------------------------------------------------------------------------------------

    def _refused(self, error: sqlite3.Error) -> None:
        self.writable, self.refusal = False, str(error)

    async def _failed(self, operation: str, error: sqlite3.Error, opened: int) -> bool:
        """Say so, once; whether the index was broken, and another one is there in its place.

        Args:
            opened: which file it was: two that meet the same broken one begin one new one.
        """
        if operation not in self._failing:  # one line when it begins, not one for each request
            self._failing.add(operation)
            self._events.emit(events.StorageFailed(operation=operation, reason=str(error)))
        if not _is_broken(error):
            return False
        if opened == self._opened:
            await self._writer.run(self._start_over_once, str(error), opened)
            self._lost()
        return True

    def _start_over_once(self, reason: str, opened: int) -> None:
        if opened == self._opened:
            self._start_over(reason)


def surely(found: T | None) -> T:
    """*found*, unless it could not be read."""
    if found is None:
        raise IndexRefused("the index cannot be read")
    return found


def _count(db: sqlite3.Connection) -> Figures:
    times = "SELECT MAX(t) FROM (SELECT MAX(last_use) AS t FROM blobs UNION SELECT MAX(fetched_at) FROM tags)"
    answers = f"SELECT SUM({schema.ANSWER_BYTES}) FROM answers"  # noqa: S608 -- a constant
    row = db.execute(f"SELECT ({times}), (SELECT COUNT(*) FROM tags), ({answers})").fetchone()  # noqa: S608
    latest, tags, answers_bytes = row
    return Figures(latest or 0.0, tags, answers_bytes or 0)


def _is_read_only(error: sqlite3.Error) -> bool:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_READONLY


def _is_broken(error: Exception) -> bool:
    """Whether the file is no database, or a malformed one; the subclasses are full, locked, read-only."""
    return type(error) is sqlite3.DatabaseError
