"""What the flights from one registry share: where their bytes come from, their slots, how often it is tried again."""

from collections.abc import Callable, Mapping
from typing import NamedTuple, Self

from registry_cache.model.bus import Events
from registry_cache.pull.boarding import Boarding
from registry_cache.pull.direct import DirectStreams
from registry_cache.pull.flight import BlobSource
from registry_cache.pull.retries import Retries

# How long a flight that nobody reads keeps its slot while others wait.
_GRACE_SECONDS = 2.0


class Runway(NamedTuple):
    """See the module. A registry that hangs keeps its own slots taken, and nobody else's."""

    source: BlobSource
    retries: Retries
    boarding: Boarding
    direct: DirectStreams

    @classmethod
    def of(
        cls,
        source: BlobSource,
        *,
        limit: int,
        retries: int,
        backoff: Callable[[int], float],
        rate_limit_wait_seconds: float,
        events: Events,
        grace_seconds: float | None = None,
        direct: BlobSource | None = None,
    ) -> Self:
        """One with *limit* slots.

        Args:
            retries: how often a broken transfer is taken up again before the flight fails.
            backoff: seconds before attempt number n + 1.
            rate_limit_wait_seconds: how long a flight without a byte waits for a rate limit to pass.
            grace_seconds: how long a slot stays with what nobody reads, while others wait.
            direct: where what no flight can serve comes from, if from elsewhere.
        """
        tries = Retries(retries, backoff, events, rate_limit_wait_seconds)
        boarding = Boarding(limit, grace_seconds=_GRACE_SECONDS if grace_seconds is None else grace_seconds)
        return cls(source, tries, boarding, DirectStreams(direct or source, tries, limit=limit))


# By the registry's name.
Runways = Mapping[str, Runway]
