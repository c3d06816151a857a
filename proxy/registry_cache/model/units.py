"""Sizes, durations and parts of a filesystem as people write them, and back."""

import math
import re
from collections.abc import Mapping

from pydantic import BaseModel, ByteSize, ConfigDict

from registry_cache.model.clock import age_seconds

_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d|w)?", re.IGNORECASE | re.ASCII)
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_SIZE = re.compile(r"\d+(?:\.\d+)?\s*([kmgtpe]i?)?b?", re.IGNORECASE | re.ASCII)
# Ten years: what waits for longer waits for ever, and clocks of libraries overflow.
_LONGEST_SECONDS = 10 * 366 * 86400.0


def parse_duration(value: object) -> float:
    """Seconds from ``90``, ``"90s"``, ``"15m"``, ``"1h30m"`` or ``"7d"``; ten years at most."""
    seconds = -1.0
    if isinstance(value, int | float) and not isinstance(value, bool):
        seconds = value
    elif isinstance(value, str):
        text = value.strip()
        parts = _DURATION.findall(text)
        # Nobody can tell what the last number of "1h30" is.
        is_clear = len(parts) == 1 or all(unit for _, unit in parts)
        if parts and is_clear and _DURATION.sub("", text).strip() == "":
            seconds = sum(float(number) * _SECONDS[(unit or "s").lower()] for number, unit in parts)
    if not 0 <= seconds <= _LONGEST_SECONDS:
        raise ValueError("allowed is a duration such as 500ms, 30s, 15m, 12h or 7d, up to ten years")
    return float(seconds)


def parse_size(value: object) -> object:
    if isinstance(value, str) and not _SIZE.fullmatch(value.strip()):
        raise ValueError("allowed is a size such as 500MB, 20GB or 1.5TiB")
    if isinstance(value, bool) or (isinstance(value, int | float) and not 0 <= value < math.inf):
        raise ValueError("allowed is a size of zero or more, such as 20GB")
    return value.strip() if isinstance(value, str) else value


def well_formed(text: str) -> str:
    """*text* with lone surrogates written out: bytes that are no UTF-8 come in as such, and nothing takes them."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def format_size(size_bytes: float) -> str:
    """``1.5 GB``: decimal units, as Docker prints them."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(size_bytes) < 1000:  # noqa: PLR2004 -- the base of the decimal units
            return f"{size_bytes:.0f} {unit}" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:.1f} TB"


def format_duration(seconds: float) -> str:
    """``15m``, ``2.5s``, ``7d``: the largest unit that needs no more digits."""
    for unit in ("w", "d", "h", "m"):
        if seconds >= _SECONDS[unit] and seconds % _SECONDS[unit] == 0:
            return f"{seconds / _SECONDS[unit]:g}{unit}"
    return f"{seconds:g}s"


def format_ago(seconds: float) -> str:
    """``3 h``, ``5 d``: how long ago, for people."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"


def format_since(at: float | None, now: float) -> str | None:
    """``3 h``: how long ago *at* was (Unix seconds); None where that is not known (:func:`.clock.age_seconds`)."""
    age = None if at is None else age_seconds(at, now)
    return None if age is None else format_ago(age)


def counted(number: int, thing: str) -> str:
    """``1 tag``, ``2 tags``."""
    return f"{number} {thing}" + "s" * (number != 1)


class Threshold(BaseModel):
    """A part of a filesystem: percent of it, or bytes. Exactly one of the two is set."""

    model_config = ConfigDict(frozen=True)

    percent: float | None = None
    size_bytes: int | None = None

    def bytes_of(self, total_bytes: int) -> int:
        """The threshold in bytes on a filesystem of *total_bytes*."""
        if self.percent is not None:
            return int(total_bytes * self.percent / 100)
        return self.size_bytes or 0

    def __str__(self) -> str:
        return f"{self.percent:g}%" if self.percent is not None else format_size(self.size_bytes or 0)


_ByteSizeModel = type("_ByteSizeModel", (BaseModel,), {"__annotations__": {"value": ByteSize}})


def parse_threshold(value: object) -> object:
    """A :class:`Threshold` from ``"15%"`` or ``"10GB"``."""
    if isinstance(value, Threshold | Mapping):
        return value
    allowed = "allowed is a percentage such as 15% or a size such as 10GB"
    text = str(value).strip()
    if text.endswith("%"):
        try:
            percent = float(text[:-1])
        except ValueError as error:
            raise ValueError(allowed) from error
        if not 0 <= percent <= 100:  # noqa: PLR2004 -- percent
            raise ValueError(allowed)
        return Threshold(percent=percent)
    if not _SIZE.fullmatch(text):
        raise ValueError(allowed)
    return Threshold(size_bytes=int(_ByteSizeModel(value=text).value))
