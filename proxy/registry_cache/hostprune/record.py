"""The record of last use: when each image was first seen here, and last seen in use.

The engine keeps no such time: ``Created`` is when the image was built, anywhere. The record is one small JSON file,
replaced as a whole. Lost, unreadable or from another engine it starts anew, and every image counts as seen just now:
lost means young, never old.

When the clock is set back, nobody knows which was right: the clock of before or that of now. So the record keeps what
it knows, and its own time goes on from where it was. By the clock of now, what was later than that is as long ago as
the set-back; once the clock has caught up, it is as long ago as it was known to be. No image grows older by either.
"""

import errno
import fcntl
import json
import math
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from registry_cache.hostprune.lineage import with_bases
from registry_cache.hostprune.snapshot import Snapshot
from registry_cache.hostprune.uses import FUTURE_SECONDS, ImageIndex, uses_of
from registry_cache.model.errors import RecordError

_VERSION = 1
_MAX_FILE_BYTES = 64 * 1024 * 1024  # 500 000 images; more is not ours
_LOCK_TIMEOUT_SECONDS = 5.0
_LOCK_POLL_SECONDS = 0.05
# Clocks are corrected by seconds, and written times are rounded up.
_SET_BACK_SECONDS = 60.0


@dataclass(frozen=True)
class Record:
    """By image ID: the latest time at which it was first seen, pulled, built or in use.

    Args:
        observed_at: when the engine was last looked at, by the clock; ``None`` for a new record.
        last_used_at: in the record's own time.
        ahead_seconds: how far that is ahead of the clock, since the clock was set back.
        set_back_at: when that was found, by the clock.
    """

    engine_id: str = ""
    observed_at: float | None = None
    last_used_at: Mapping[str, float] = field(default_factory=dict)
    ahead_seconds: float = 0.0
    set_back_at: float = 0.0

    def at(self, now: float) -> "Record":
        """The same record, its time in step with a clock that says *now*."""
        latest = max(self.last_used_at.values(), default=-math.inf)
        if self.observed_at is not None:
            latest = max(latest, self.observed_at + self.ahead_seconds)
        if now >= latest - _SET_BACK_SECONDS:
            return replace(self, ahead_seconds=0.0, set_back_at=0.0)
        if now + self.ahead_seconds >= latest - _SET_BACK_SECONDS:
            return self
        return replace(self, ahead_seconds=latest - now, set_back_at=now)

    def of_clock(self, moment: float) -> float:
        """The clock's time in the record's; what was before the set-back is in the record's already."""
        return moment + self.ahead_seconds if moment >= self.set_back_at else moment

    def by_clock(self, moment: float) -> float:
        """The record's time by the clock of now."""
        return max(min(moment, self.set_back_at), moment - self.ahead_seconds) if self.ahead_seconds else moment


def observe(record: Record, snapshot: Snapshot) -> Record:
    """*record* with what *snapshot* shows; images that are gone are forgotten, so that they come back as new."""
    now = snapshot.now
    record = (record if record.engine_id == snapshot.engine_id else Record(snapshot.engine_id)).at(now)
    record_now = record.of_clock(now)
    used_at: dict[str, float] = {}
    for image in snapshot.images:
        used_at[image.image_id] = record.last_used_at.get(image.image_id, record_now)
        arrived_at = image.arrived_at
        # Further ahead it would keep its image until the clock is there; a clock just set back makes it so for once.
        if arrived_at is not None and (arrived_at < now + FUTURE_SECONDS or record.set_back_at == now):
            used_at[image.image_id] = max(used_at[image.image_id], record.of_clock(min(arrived_at, now)))
    index = ImageIndex(snapshot.images)
    for reference, used in snapshot.recent_uses:
        for image_id in index.find(reference):
            used_at[image_id] = max(used_at[image_id], record.of_clock(min(used, now)))
    used_at.update(dict.fromkeys(uses_of(snapshot), record_now))
    return replace(record, observed_at=now, last_used_at=with_bases(snapshot.images, used_at))


def dated(snapshot: Snapshot, record: Record) -> Snapshot:
    """*snapshot* whose images know when they were last used, by its clock."""
    known = {image_id: min(record.by_clock(used), snapshot.now) for image_id, used in record.last_used_at.items()}
    images = (replace(image, last_used_at=known.get(image.image_id)) for image in snapshot.images)
    return replace(snapshot, images=tuple(images))


class RecordFile:
    """The record on disk."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def load(self) -> Record:
        """The record, or a new one when there is none that can be read."""
        try:
            with self._path.open("rb") as file:
                return _parse(json.loads(file.read(_MAX_FILE_BYTES)))
        except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError, OverflowError):
            return Record()

    def update(self, snapshot: Snapshot) -> Record:
        """Observe *snapshot* and write the result; another run that does the same waits its turn.

        Raises:
            RecordError: the file cannot be written.
        """
        try:
            self._path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            with _alone(self._path.with_name(f".{self._path.name}.lock")):
                record = observe(self.load(), snapshot)
                _replace(self._path, _text(record))
        except OSError as error:
            raise RecordError(f"the record of last use {str(self._path)!r}: {error.strerror or error}") from error
        return record


def _parse(data: Any) -> Record:
    if not isinstance(data, dict) or data.get("version") != _VERSION:
        return Record()
    times = {str(image_id): float(used_at) for image_id, used_at in data["last_used_at"].items()}
    observed_at, ahead_seconds = float(data["observed_at"]), float(data.get("ahead_seconds", 0))
    set_back_at = float(data.get("set_back_at", 0))
    # json reads NaN and Infinity, and neither compares as a time should.
    if not all(map(math.isfinite, (*times.values(), observed_at, ahead_seconds, set_back_at))) or ahead_seconds < 0:
        return Record()
    return Record(str(data["engine_id"]), observed_at, times, ahead_seconds, set_back_at)


def _text(record: Record) -> str:
    # Up, not to the nearest: never older than it is.
    times = {image_id: math.ceil(used_at) for image_id, used_at in sorted(record.last_used_at.items())}
    content = {"version": _VERSION, "engine_id": record.engine_id, "observed_at": record.observed_at}
    if record.ahead_seconds:
        content |= {"ahead_seconds": record.ahead_seconds, "set_back_at": record.set_back_at}
    return json.dumps({**content, "last_used_at": times}, indent=1) + "\n"


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Lock a file beside the record: the record itself is replaced, so a lock on it would guard nothing.

    Nobody else may open it. The directory, which others may read, could be locked by any of them.
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        deadline = time.monotonic() + _LOCK_TIMEOUT_SECONDS
        while not _locked(handle):
            if time.monotonic() > deadline:
                raise OSError(errno.EAGAIN, f"{str(path)!r} stays locked by another process")
            time.sleep(_LOCK_POLL_SECONDS)
        yield
    finally:
        os.close(handle)


def _locked(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _replace(path: Path, text: str) -> None:
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fchmod(file.fileno(), 0o644)  # a plan made without root may read it
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        with suppress(OSError):
            Path(name).unlink()
        raise
