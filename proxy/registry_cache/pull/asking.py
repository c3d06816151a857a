"""How long upstream is waited for: as long as a client waits, or only shortly where there is an older answer."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Hashable, Iterator
from typing import NamedTuple, TypeVar

from registry_cache.model.errors import RateLimited, UpstreamError
from registry_cache.pull.negatives import Negatives

T = TypeVar("T")

# After an upstream that was too slow, older answers are served at once for this long; it is asked in the background.
_SUSPECT_SECONDS = 10.0


class _TooSlow(UpstreamError):
    """It did not answer in the time that it was given."""


class Policy(NamedTuple):
    """The times and choices of the settings; seconds."""

    tag_ttl_seconds: float
    stale_timeout_seconds: float
    request_timeout_seconds: float
    rate_limit_wait_seconds: float
    negative_ttl_seconds: float
    keep_deleted_tags: bool


class Timer:
    """Adds up the time a request waits for upstream."""

    def __init__(self) -> None:
        self.seconds = 0.0

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Count while it is entered."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.seconds += time.monotonic() - began


class Asking:
    """Puts questions to upstream; which no was the answer before is known to *negatives*."""

    def __init__(self, policy: Policy, negatives: Negatives) -> None:
        self._policy = policy
        self._negatives = negatives
        self._suspect_until = 0.0  # monotonic seconds

    @property
    def suspicious(self) -> bool:
        """Whether upstream was too slow a short while ago and has not answered since."""
        return time.monotonic() < self._suspect_until

    def answered(self) -> None:
        """Upstream has answered something: it is no longer held to be slow."""
        self._suspect_until = 0.0

    async def ask(self, timer: Timer, key: Hashable, question: Callable[[], Awaitable[T]], *, kept: bool = False) -> T:
        """The answer to *question*, within the time that its client waits.

        Args:
            key: what is asked, for the no that it may have been answered with before.
            kept: there is an older answer: upstream is waited for only shortly. *question* has to go on by itself.

        Raises:
            RegistryCacheError: what upstream said, or said last; or that it could not be asked.
        """
        self._negatives.check(key)
        said = self._negatives.last(key)
        shortly = kept or said is not None
        suspicious = shortly and self.suspicious
        seconds = self._policy.stale_timeout_seconds if shortly else self._policy.request_timeout_seconds
        try:
            return await self._within(0 if suspicious else seconds, timer, question)
        except UpstreamError as error:
            if isinstance(error, _TooSlow) and shortly and not suspicious:
                # Of those only that were given time: suspicion must not renew itself.
                self._suspect_until = time.monotonic() + _SUSPECT_SECONDS
            if said is not None:
                raise said from error
            raise

    @staticmethod
    async def _within(seconds: float, timer: Timer, question: Callable[[], Awaitable[T]]) -> T:
        try:
            with timer.running():
                async with asyncio.timeout(seconds):
                    return await question()
        except TimeoutError as error:
            raise _TooSlow(f"upstream did not answer within {seconds:g} s") from error

    async def patiently(self, question: Callable[[], Awaitable[T]]) -> T:
        """Ask again when a rate limit passes soon: an error would send dockerd to Hub with the host's own address."""
        until = time.monotonic() + self._policy.rate_limit_wait_seconds
        while True:
            try:
                return await question()
            except RateLimited as error:
                if time.monotonic() + error.retry_in_seconds > until:
                    raise
                await asyncio.sleep(error.retry_in_seconds)
