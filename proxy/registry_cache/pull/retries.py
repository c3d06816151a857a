"""When a broken transfer is taken up again, and what a refusal was about."""

import asyncio
from collections.abc import Callable
from typing import NamedTuple

from registry_cache.model import events
from registry_cache.model.bus import Events
from registry_cache.model.errors import (
    BlobUnknown,
    CredentialRefused,
    Denied,
    NameUnknown,
    OriginDown,
    PeerLost,
    RangeRefused,
    RateLimited,
    RegistryCacheError,
    Unauthorized,
    UpstreamError,
    UpstreamRefused,
)
from registry_cache.model.oci import Digest

# The longest pause before a broken transfer is taken up again; an origin that wants to be left alone for longer has
# failed it.
_PAUSE_MAX_SECONDS = 30.0
# As manifests: an origin that is known to be down is waited for so long, while a client waits for its first byte.
_PATIENCE_SECONDS = 5.0
# So many ranges in a row may bring nothing before the whole is asked for.
_FRUITLESS_MAX = 2


class Resuming:
    """Whether the next GET asks for the rest only.

    Not where ranges are refused. And for once not after two of them in a row that brought nothing: some upstreams, and
    what is in front of them, fail at ranges and at nothing else.
    """

    def __init__(self, *, refused: bool = False) -> None:
        self.refused = refused
        self._fruitless = 0

    @property
    def possible(self) -> bool:
        """Whether a range may be asked for now."""
        return not self.refused and self._fruitless < _FRUITLESS_MAX

    def failed(self, error: RegistryCacheError, *, asked: bool, brought: bool) -> None:
        """A GET failed.

        Args:
            asked: whether it asked for a range.
            brought: whether it brought something all the same.
        """
        if isinstance(error, OriginDown | RateLimited | PeerLost):  # nothing was asked, or nothing of this blob
            return
        self._fruitless = self._fruitless + 1 if asked and not brought else 0


def no_to_a_range(error: RegistryCacheError) -> bool:
    """Whether *error*, met when a part of the blob was asked for, may be about the part only: the whole tells."""
    no = RangeRefused | BlobUnknown | NameUnknown | Denied | Unauthorized
    return isinstance(error, no) and not isinstance(error, CredentialRefused)


class Retries(NamedTuple):
    """How often a broken transfer is taken up again, and after how long."""

    limit: int
    backoff: Callable[[int], float]  # seconds before attempt number n + 1
    events: Events
    rate_limit_wait_seconds: float  # how long a first byte waits for a rate limit to pass

    async def pause(
        self,
        digest: Digest,
        offset: int,
        attempt: int,
        error: UpstreamError,
        *,
        begun: bool,
        limited_for_seconds: float = 0.0,
    ) -> None:
        """Wait before the next try, or raise *error* when there is none to be made.

        Args:
            begun: a client has got bytes: no other host can help it.
            limited_for_seconds: how long a rate limit has been waited for already.
        """
        seconds = max(self.backoff(attempt), error.retry_in_seconds)
        if isinstance(error, RateLimited) and not begun:
            if limited_for_seconds + seconds > self.rate_limit_wait_seconds:
                raise error
            attempt = 1  # the time that it may take is the bound
        if isinstance(error, UpstreamRefused) and attempt > 1:
            raise error  # upstream has answered, twice
        if attempt > self.limit or seconds > _PAUSE_MAX_SECONDS:
            raise error
        named = 0.0 if isinstance(error, RateLimited) else error.retry_in_seconds
        if named > _PATIENCE_SECONDS and not begun:
            raise error
        if isinstance(error, OriginDown) and not begun and (attempt == 1 or seconds > _PATIENCE_SECONDS):
            raise error
        self.events.emit(events.FlightResumed(digest=digest, offset=offset, attempt=attempt, reason=str(error)))
        await asyncio.sleep(seconds)
