"""Wrong logins, by the address that they come from: after some, others from there are not looked at for a while."""

from collections import OrderedDict
from collections.abc import Callable

from registry_cache.model.errors import TooManyLogins

_FAILURES_MAX = 20
_FAILURES_SECONDS = 60.0
_ADDRESSES_MAX = 4096


class Failures:
    """See the module.

    Args:
        now: monotonic seconds.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._failures: OrderedDict[str, tuple[float, int]] = OrderedDict()  # since when, how many

    def check(self, address: str) -> None:
        """Let a login from *address* be looked at.

        Raises:
            TooManyLogins: too many were wrong.
        """
        since, count = self._failures.get(address, (0.0, 0))
        if count >= _FAILURES_MAX and self._now() < since + _FAILURES_SECONDS:
            raise TooManyLogins("too many wrong logins from this address: wait a minute")

    def count(self, address: str) -> None:
        """One was wrong."""
        since, count = self._failures.pop(address, (self._now(), 0))
        if self._now() >= since + _FAILURES_SECONDS:
            since, count = self._now(), 0
        self._failures[address] = (since, count + 1)
        while len(self._failures) > _ADDRESSES_MAX:
            self._failures.popitem(last=False)
