"""Byte ranges: :class:`Ranges` as a client asked for them, :class:`ContentRange` resolved against a size.

Source: RFC 9110, section 14.
"""

import contextlib
import re
from typing import NamedTuple, Self

from registry_cache.model.errors import RangeNotSatisfiable

# int() of an unbounded string of digits is a denial of service. 64 bits have 20: who wants everything may say so.
_RANGE = re.compile(r"[ \t]*(\d{0,32})-(\d{0,32})[ \t]*", re.ASCII)
# podman's partial pulls of zstd:chunked ask for up to 1 024 chunks at once.
RANGES_MAX = 1024
_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)", re.IGNORECASE)


class ContentRange(NamedTuple):
    """``start`` (inclusive) to ``stop`` (exclusive) of ``total`` bytes; ``total`` is None where it was not said."""

    start: int
    stop: int
    total: int | None

    @classmethod
    def parse(cls, header: str) -> Self | None:
        """The value of a ``Content-Range`` header, or None where it makes no sense."""
        match = _CONTENT_RANGE.fullmatch(header.strip())
        if match is None:
            return None
        start, stop = int(match[1]), int(match[2]) + 1
        total = None if match[3] == "*" else int(match[3])
        if stop <= start or (total is not None and stop > total):
            return None
        return cls(start, stop, total)

    def __str__(self) -> str:
        return f"bytes {self.start}-{self.stop - 1}/{'*' if self.total is None else self.total}"


class Range(NamedTuple):
    """``bytes=first-last``, ``bytes=first-`` or, with ``first`` None, ``bytes=-last``: the last *last* bytes."""

    first: int | None
    last: int | None

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """One range without its unit, or None for nonsense."""
        match = _RANGE.fullmatch(text)
        if match is None:
            return None
        first, last = (int(text) if text else None for text in match.groups())
        if first is None and last is None:
            return None
        if first is not None and last is not None and last < first:
            return None
        return cls(first, last)

    def resolve(self, size_bytes: int) -> ContentRange:
        """The part of a blob of *size_bytes* that this range names.

        Raises:
            RangeNotSatisfiable: it names none.
        """
        if self.first is None:
            start, stop = max(0, size_bytes - (self.last or 0)), size_bytes
        else:
            start, stop = self.first, size_bytes if self.last is None else min(self.last + 1, size_bytes)
        if start >= stop:
            raise RangeNotSatisfiable(size_bytes)
        return ContentRange(start, stop, size_bytes)

    @property
    def is_open(self) -> bool:
        """From somewhere to the end, wherever that is."""
        return self.last is None


class Ranges(NamedTuple):
    """One ``Range`` header; at least one range."""

    asked: tuple[Range, ...]

    @classmethod
    def parse(cls, header: str | None) -> Self | None:
        """The ranges, or None for what a server may ignore: no header, another unit, nonsense, too many."""
        unit, _, listed = (header or "").partition("=")
        if unit.strip().lower() != "bytes":
            return None
        # An empty element is no element (RFC 9110, section 5.6.1).
        texts = [text for text in listed.split(",", RANGES_MAX) if text.strip()]
        ranges = [Range.parse(text) for text in texts]
        if not ranges or len(ranges) > RANGES_MAX or None in ranges:
            return None
        return cls(tuple(one for one in ranges if one is not None))

    def resolve(self, size_bytes: int) -> tuple[ContentRange, ...]:
        """The parts of a blob of *size_bytes* to send, in the order they were asked for; no byte is in two of them.

        What overlaps is one part, at the place of the first: nobody gets more than the blob for asking. What only
        touches is not joined, podman counts the parts.

        Raises:
            RangeNotSatisfiable: none of them names a byte.
        """
        parts: list[ContentRange] = []
        for asked in self.asked:
            with contextlib.suppress(RangeNotSatisfiable):
                parts.append(asked.resolve(size_bytes))
        if not parts:
            raise RangeNotSatisfiable(size_bytes)
        return _without_overlap(parts)


def _without_overlap(parts: list[ContentRange]) -> tuple[ContentRange, ...]:
    """*parts*, those that overlap joined where the first of them stands."""
    joined: list[tuple[int, ContentRange]] = []  # by offset, with the place
    for place, part in sorted(enumerate(parts), key=lambda item: item[1].start):
        if joined and part.start < joined[-1][1].stop:
            before, whole = joined[-1]
            joined[-1] = (min(before, place), whole._replace(stop=max(whole.stop, part.stop)))
        else:
            joined.append((place, part))
    return tuple(part for _, part in sorted(joined))
