"""When what was purged was purged: what Redis knows of it from before that does not count any more."""

from typing import TypeVar

from registry_cache.model.contents import Pattern, Tag
from registry_cache.model.oci import Digest, Repository

# As many as Redis keeps (wish_scripts.PURGES_MAX), found by their names; those with wildcards are looked through.
_EXACT_MAX = 10_000
_WILD_MAX = 1_000
_KEPT_US = 30 * 86_400_000_000
_ALL = ""  # of a repository
_NO_DIGEST = Digest.of(b"")

_Key = TypeVar("_Key")


class Purges:
    """See the module. Times are the fleet's, in microseconds; 0 for never.

    One too many takes the place of the oldest; then nothing from before that one counts, whatever its name.
    """

    def __init__(self) -> None:
        self._exact: dict[Digest | Tag, int] = {}
        self._wild: dict[Pattern, int] = {}
        self._newest_us = 0
        self._all_us = 0  # what is from before that does not count

    def __repr__(self) -> str:
        return f"<Purges {len(self._exact)} exact, {len(self._wild)} wild>"

    def add(self, pattern: Pattern, at_us: int) -> None:
        """What *pattern* names has been purged."""
        self._newest_us = max(self._newest_us, at_us)
        if pattern.digest is not None:
            self._note(self._exact, pattern.digest, at_us, _EXACT_MAX)
        elif pattern.is_exact and not pattern.short:
            name = _tag(Repository(pattern.registry, pattern.repository), pattern.tag or _ALL)
            self._note(self._exact, name, at_us, _EXACT_MAX)
        elif not pattern.short:
            self._note(self._wild, pattern, at_us, _WILD_MAX)

    def _note(self, known: dict[_Key, int], key: _Key, at_us: int, most: int) -> None:
        known[key] = max(at_us, known.pop(key, 0))
        if len(known) > most:
            dropped_us = known.pop(next(iter(known)))
            if dropped_us > self._newest_us - _KEPT_US:
                self._all_us = max(self._all_us, dropped_us)

    def since_us(self, repository: Repository, *, tag: str = "", digest: Digest | None = None) -> int:
        """What was heard from upstream before that has been purged since."""
        asked = _tag(repository, tag) if digest is None else digest
        exact = (self._exact.get(name, 0) for name in (asked, _tag(repository, _ALL)))

        def is_meant(pattern: Pattern) -> bool:
            if isinstance(asked, Tag) and tag:
                return pattern.matches_tag(asked)
            return pattern.names_repositories and pattern.matches(repository)

        return max(self._all_us, *exact, *(at_us for pattern, at_us in self._wild.items() if is_meant(pattern)))


def _tag(repository: Repository, tag: str) -> Tag:
    return Tag(repository, tag, _NO_DIGEST, 0.0)
