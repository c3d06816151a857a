"""What the two HTTP clients' answers have in common."""

import asyncio
import contextlib
from typing import Protocol

from registry_cache.model.errors import UpstreamError
from registry_cache.upstream.decoding import decoded
from registry_cache.upstream.headers import Headers

# What is worth reading to its end, so that the connection can be used again: a challenge, a redirect, an error.
SHORT_MAX_BYTES = 64 * 1024
# How long that is waited for: what such an answer means is in its head.
SHORT_MAX_SECONDS = 2.0


class Reply(Protocol):
    """An answer whose body has not been read. Whoever got it closes it."""

    @property
    def url(self) -> str:
        """What was asked, which redirects may have led to."""

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


async def error_body(reply: Reply) -> bytes:
    """What an error says, as far as it can be had soon: what a status means does not depend on it."""
    body = b""
    with contextlib.suppress(UpstreamError, TimeoutError):
        async with asyncio.timeout(SHORT_MAX_SECONDS):
            body = await reply.read_small(SHORT_MAX_BYTES)
        body = decoded(body, reply.headers.get("content-encoding", ""), SHORT_MAX_BYTES)
    return body


async def drained(reply: Reply) -> bool:
    """Read the rest of a short body, so that the connection can be used again; whether it can."""
    with contextlib.suppress(UpstreamError, TimeoutError):
        async with asyncio.timeout(SHORT_MAX_SECONDS):
            await reply.read_small(SHORT_MAX_BYTES + 1)
        return True
    return False
