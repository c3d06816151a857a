"""What the two HTTP clients' answers have in common."""

from typing import Protocol

from registry_cache.upstream.headers import Headers

# What is worth reading to its end, so that the connection can be used again: a challenge, a redirect, an error.
SHORT_MAX_BYTES = 64 * 1024


class Reply(Protocol):
    """An answer whose body has not been read. Whoever got it closes it."""

    @property
    def status(self) -> int:
        """HTTP status."""

    @property
    def headers(self) -> Headers:
        """By name, whatever its case."""

    async def read_small(self, limit: int) -> bytes:
        """The whole body.

        Raises:
            UpstreamError: it is longer than *limit*, or broke off.
        """

    async def aclose(self) -> None:
        """Done with it."""
