"""What went wrong too often: by the address that wrong logins come from, or by another key."""

from collections import OrderedDict
from collections.abc import Callable, Hashable

from registry_cache.model.errors import Barred

_FAILURES_MAX = 20
_FAILURES_SECONDS = 60.0
_KEYS_MAX = 4096


class Failures:
    """See the module: after some, others of the same key are not looked at for a while.

    Args:
        now: monotonic seconds.
        most: so many may be wrong in *seconds*.
        whose: what the key is of, for the text.
    """

    def __init__(
        self,
        now: Callable[[], float],
        *,
        most: int = _FAILURES_MAX,
        seconds: float = _FAILURES_SECONDS,
        whose: str = "from this address",
    ) -> None:
        self._now = now
        self._most = most
        self._seconds = seconds
        self._whose = whose
        self._failures: OrderedDict[Hashable, tuple[float, int]] = OrderedDict()  # since when, how many

    def bars(self, key: Hashable) -> bool:
        """Whether too many were wrong."""
        since, count = self._failures.get(key, (0.0, 0))
        return count >= self._most and self._now() < since + self._seconds

    def check(self, key: Hashable) -> None:
        """Let a login be looked at.

        Raises:
            Barred: too many were wrong.
        """
        if self.bars(key):
            minutes = f"{self._seconds / 60:g} minutes" if self._seconds > 60 else "a minute"  # noqa: PLR2004 -- words
            raise Barred(f"too many wrong logins {self._whose}: wait {minutes}")

    def count(self, key: Hashable) -> None:
        """One was wrong."""
        since, count = self._failures.pop(key, (self._now(), 0))
        if self._now() >= since + self._seconds:
            since, count = self._now(), 0
        self._failures[key] = (since, count + 1)
        while len(self._failures) > _KEYS_MAX:
            self._failures.popitem(last=False)
