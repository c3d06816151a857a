"""Facts that content does not tell, kept beside it: what tags were, media types of manifests, pins, links.

The index has them too; this is for when it is lost. A line is a checksum and a JSON array that begins with the kind of
fact; later lines win. Facts are appended a few seconds after they arose, so a crash may lose that much. A line that is
torn or rotten is skipped. What no longer holds is dropped when the file is written anew: when it has become twice as
large, and a megabyte. All that reads or writes files blocks.
"""

import contextlib
import os
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from registry_cache.model.contents import Pin
from registry_cache.model.errors import RegistryCacheError
from registry_cache.model.oci import Digest, Repository
from registry_cache.ports.names import TagEntry
from registry_cache.store.index.files import open_file, sync_folder

Name = tuple[Repository, str]

_SLACK_BYTES = 1024 * 1024
_BUFFER_BYTES = 8 * 1024 * 1024  # what waits for a disk that refuses it
_LINE_MAX_BYTES = 64 * 1024
_WHOLE = "whole"  # the first line of a file that has everything


@dataclass
class Facts:
    """What a journal says in the end."""

    whole: bool = False
    tags: dict[Name, TagEntry] = field(default_factory=dict)
    media_types: dict[Digest, str] = field(default_factory=dict)
    pins: set[Pin] = field(default_factory=set)
    links: dict[Digest, set[Repository]] = field(default_factory=dict)

    def learn(self, kind: str, *of: Any) -> None:
        """Take in one fact; one of another kind was written by a newer version."""
        match kind, of:
            case "tag", (registry, name, tag, digest, media_type, size_bytes, asked_at):
                entry = TagEntry(Digest.parse(digest), str(media_type), int(size_bytes), float(asked_at))
                self.tags[Repository(registry, name), tag] = entry
            case "untag", (registry, name, tag):
                self.tags.pop((Repository(registry, name), tag), None)
            case "type", (digest, media_type):
                self.media_types[Digest.parse(digest)] = str(media_type)
            case "pin", (registry, name, target):
                self.pins.add(Pin(Repository(registry, name), target))
            case "unpin", (registry, name, target):
                self.pins.discard(Pin(Repository(registry, name), target))
            case "gone", digests:
                for digest in digests:
                    self.media_types.pop(digest, None)
                    self.links.pop(digest, None)
            case "whole", _:
                self.whole = True
            case _:
                self._learn_links(kind, *of)

    def _learn_links(self, kind: str, *of: Any) -> None:
        match kind, of:
            case "link", (registry, name, digest):
                self.links.setdefault(Digest.parse(digest), set()).add(Repository(registry, name))
            case "unlink", (registry, name):
                for repositories in self.links.values():
                    repositories.discard(Repository(registry, name))


class Journal:
    """The file, and what is to be appended to it. One caller at a time reads or writes.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._buffer: list[bytes] = []
        self._buffered_bytes = 0
        self._is_whole = False
        self._rewritten_bytes = 0
        self.size_bytes = 0

    # --- facts; these do not block --------------------------------------------------------------------------------

    def note(self, kind: str, *of: Any) -> None:
        """A fact that holds from now on."""
        line = _line(kind, *of)
        self._buffer.append(line)
        self._buffered_bytes += len(line)
        self._bound()

    def take(self) -> list[bytes]:
        """What was noted: to be appended, or to be left out since a new file has it."""
        lines, self._buffer, self._buffered_bytes = self._buffer, [], 0
        return lines

    def give_back(self, lines: list[bytes]) -> None:
        """What was taken could not be written."""
        self._buffer = lines + self._buffer
        self._buffered_bytes += sum(map(len, lines))
        self._bound()

    def _bound(self) -> None:
        if self._buffered_bytes > _BUFFER_BYTES:  # the whole file has to be written then
            self._buffer, self._buffered_bytes, self._is_whole = [], 0, False

    @property
    def is_due(self) -> bool:
        """Whether it has to be written anew."""
        return not self._is_whole or self.size_bytes > 2 * self._rewritten_bytes + _SLACK_BYTES

    # --- the file -------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Look whether it is whole, and how large."""
        with contextlib.suppress(OSError), self._path.open("rb") as file:
            facts = Facts()
            _learn(facts, file.readline(_LINE_MAX_BYTES))
            self._is_whole = facts.whole
            self.size_bytes = self._rewritten_bytes = self._path.stat().st_size

    def distrust(self) -> None:
        """The index knows better: a version that writes no journal has had it meanwhile."""
        self._is_whole = False

    def read(self) -> Facts:
        """Everything that it says, what is yet to be appended too."""
        facts = Facts()
        with contextlib.suppress(OSError), self._path.open("rb") as file:
            while line := file.readline(_LINE_MAX_BYTES):
                _learn(facts, line)
        for line in [*self._buffer]:
            _learn(facts, line)
        return facts

    def append(self, lines: list[bytes]) -> None:
        """Write what was taken.

        Raises:
            OSError: nothing of it is there.
        """
        data = b"".join(lines)
        fd = open_file(self._path, os.O_RDWR | os.O_APPEND)
        try:
            size_bytes = os.fstat(fd).st_size
            if size_bytes and os.pread(fd, 1, size_bytes - 1) != b"\n":
                data = b"\n" + data  # behind a line that a crash has torn
            try:
                _write_all(fd, data)
                os.fdatasync(fd)
            except OSError:
                os.ftruncate(fd, size_bytes)
                raise
            self.size_bytes = size_bytes + len(data)
        finally:
            os.close(fd)

    def rewrite(self, facts: Iterable[tuple[Any, ...]]) -> None:
        """Put a file in its place that has these facts alone.

        Raises:
            OSError: it stays what it was.
        """
        new = self._path.with_name(self._path.name + ".new")
        fd = open_file(new, os.O_WRONLY | os.O_TRUNC)
        try:
            for piece in _pieces([(_WHOLE,)], facts):
                _write_all(fd, piece)
            os.fsync(fd)
            size_bytes = os.fstat(fd).st_size
        finally:
            os.close(fd)
        new.replace(self._path)
        sync_folder(self._path.parent)
        self.size_bytes = self._rewritten_bytes = size_bytes
        self._is_whole = True


def _line(*fact: Any) -> bytes:
    body = msgspec.json.encode(fact, enc_hook=str)
    return b"%08x %s\n" % (zlib.crc32(body), body)


def _learn(facts: Facts, line: bytes) -> None:
    checksum, _, body = line.rstrip(b"\n").partition(b" ")
    with contextlib.suppress(ValueError, TypeError, RegistryCacheError, msgspec.DecodeError):
        if int(checksum, 16) == zlib.crc32(body):
            facts.learn(*msgspec.json.decode(body))


def _pieces(*facts: Iterable[tuple[Any, ...]]) -> Iterator[bytes]:
    lines: list[bytes] = []
    for some in facts:
        for fact in some:
            lines.append(_line(*fact))
            if len(lines) == 1000:  # noqa: PLR2004 -- a write for each line would take long
                yield b"".join(lines)
                lines.clear()
    yield b"".join(lines)


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
