"""Patterns of registries' names: which of those that nobody has listed may be asked all the same."""

import ipaddress
import re
from collections.abc import Iterable

from registry_cache.model.registries import HUB_NAMES

_LABEL = r"(?!-)[a-z0-9_-]{1,63}(?<!-)"
_NAME = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(?:\.{_LABEL})+")
_PATTERN = re.compile(rf"[a-z0-9_*-]{{1,63}}(?:\.[a-z0-9_*-]{{1,63}})*\.{_LABEL}|{_LABEL}\.{_LABEL}")
# What is at the end of a name is its owner's: a pattern that left it open would let everybody in.
_WRITTEN_OUT = 2


def registry_pattern(text: str) -> str:
    """*text* as a pattern: ``*`` is any part of a label, the last two labels are written out.

    Raises:
        ValueError: it is none.
    """
    pattern = text.lower().removesuffix(".")
    labels = pattern.split(".")
    if not _PATTERN.fullmatch(pattern) or "*" in "".join(labels[-_WRITTEN_OUT:]) or _is_address(pattern):
        raise ValueError(
            "allowed are names of registries without a port, with * in any but the last two parts, such as *.gcr.io"
        )
    return pattern


class RegistryPatterns:
    """Names that fit one of *patterns*. No address does, nor a name of this host: they are no registries' names."""

    def __init__(self, patterns: Iterable[str]) -> None:
        self._fits = [re.compile("[^.]*".join(map(re.escape, pattern.split("*")))) for pattern in patterns]

    def __contains__(self, name: str) -> bool:
        if not self._fits or not _NAME.fullmatch(name) or _is_address(name) or name.endswith(".localhost"):
            return False
        return any(pattern.fullmatch(name) for pattern in self._fits)

    def __bool__(self) -> bool:
        return bool(self._fits)

    def named(self, name: str) -> str | None:
        """The registry that *name* is, if it fits; Docker Hub by its first name."""
        registry = HUB_NAMES[0] if name in HUB_NAMES else name
        return registry if registry in self else None


def _is_address(name: str) -> bool:
    """Whether a resolver might take *name* for an address: one that ends in a number is none's name."""
    last = name.rpartition(".")[2]
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return last.isdecimal() or re.fullmatch(r"0x[0-9a-f]*", last) is not None
    return True
