"""What upstream has said no to: kept like an answer, fresh for a while, and the stale one while upstream is away.

By name and account, in memory, bounded in number. A success forgets the no.
"""

import time
from collections.abc import Awaitable, Callable, Hashable
from typing import NamedTuple, TypeVar

from registry_cache.model.errors import (
    BlobUnknown,
    CredentialRefused,
    Denied,
    ManifestUnknown,
    NameUnknown,
    RegistryCacheError,
    Unauthorized,
)

T = TypeVar("T")

NO = (ManifestUnknown, BlobUnknown, NameUnknown, Unauthorized, Denied)
_MOST = 4096


class _Entry(NamedTuple):
    kind: type[RegistryCacheError]
    message: str
    said_at: float  # monotonic seconds


class Negatives:
    """See the module.

    Args:
        ttl_seconds: how long nothing is asked again; 0 remembers nothing.
        account: whom upstream has said it to.
    """

    def __init__(self, *, ttl_seconds: float, account: Callable[[], Hashable]) -> None:
        self._ttl_seconds = ttl_seconds
        self._account = account
        self._entries: dict[Hashable, _Entry] = {}  # the oldest first

    def __repr__(self) -> str:
        return f"<Negatives {len(self._entries)}>"

    def check(self, key: Hashable) -> None:
        """Raise the no that *key* was answered with a short while ago."""
        entry = self._entries.get((self._account(), key))
        if entry is not None and time.monotonic() - entry.said_at < self._ttl_seconds:
            raise entry.kind(entry.message)

    def last(self, key: Hashable) -> RegistryCacheError | None:
        """The no that *key* was last answered with, however long ago; None if it was a yes, or nothing."""
        entry = self._entries.get((self._account(), key))
        return None if entry is None else entry.kind(entry.message)

    async def heed(self, key: Hashable, question: Callable[[], Awaitable[T]]) -> T:
        """The answer to *question*; what upstream says is remembered or forgotten by it.

        Raises:
            RegistryCacheError: what *question* raises.
        """
        try:
            answer = await question()
        except NO as error:
            if not isinstance(error, CredentialRefused):  # our own fault, and no answer to the question
                self._remember(key, error)
            raise
        self._entries.pop((self._account(), key), None)
        return answer

    def _remember(self, key: Hashable, error: RegistryCacheError) -> None:
        if not self._ttl_seconds:
            return
        whose = (self._account(), key)
        self._entries.pop(whose, None)
        while len(self._entries) >= _MOST:
            del self._entries[next(iter(self._entries))]
        self._entries[whose] = _Entry(type(error), str(error), time.monotonic())
