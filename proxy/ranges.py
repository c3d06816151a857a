"""Byte ranges: :class:`Range` as a client asked for it, :class:`ContentRange` resolved against a size.

Source: RFC 9110, section 14.
"""

import re
from typing import NamedTuple, Self

from proxy.errors import RangeNotSatisfiable

# 18 digits is an exabyte; int() of an unbounded string of digits is a denial of service.
_RANGE = re.compile(r"bytes=\s*(\d{0,18})-(\d{0,18})\s*", re.IGNORECASE)
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
    def parse(cls, header: str | None) -> Self | None:
        """One range, or None for what a server may ignore: no header, another unit, several ranges, nonsense."""
        match = _RANGE.fullmatch(header) if header else None
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
