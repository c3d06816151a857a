"""Noes that do not look like a registry's: believed when they have stayed the same for a day.

A registry whose noes are bare text exists; so does a firewall that is corrected after an hour. For a day the cached tag
is served; if upstream answers other names meanwhile, the no is then taken for what it says.
"""

import time
from collections.abc import Callable, Hashable
from typing import NamedTuple

from cachetools import LRUCache

BELIEVED_AFTER_SECONDS = 24 * 3600.0
_KEPT = 4096


class _Odd(NamedTuple):
    status: int
    first_at: float
    others_answered: bool  # since then


class OddNoes:
    """See the module; in memory, so that a restart begins the day anew.

    Args:
        clock: seconds that only grow.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: LRUCache[Hashable, _Odd] = LRUCache(_KEPT)
        self._answered_at = float("-inf")

    def is_believed(self, key: Hashable, status: int) -> bool:
        """Take note of an odd no to *key*; whether it is to be believed by now."""
        now, odd = self._clock(), self._seen.get(key)
        if odd is None or odd.status != status:
            self._seen[key] = _Odd(status, now, others_answered=False)
            return False
        others = odd.others_answered or self._answered_at > odd.first_at
        self._seen[key] = odd._replace(others_answered=others)
        return others and now - odd.first_at >= BELIEVED_AFTER_SECONDS

    def answered(self, key: Hashable) -> None:
        """Upstream answered *key* as a registry does."""
        self._seen.pop(key, None)
        self._answered_at = self._clock()
