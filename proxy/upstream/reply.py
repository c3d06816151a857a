"""Answers of upstream, whichever of the two HTTP clients they came by."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Protocol

import httpx

from proxy.errors import UpstreamError
from proxy.upstream.bulk import BulkReply

# What is worth reading to its end, so that the connection can be used again: a challenge, a redirect, an error.
SHORT_MAX_BYTES = 64 * 1024


class Reply(Protocol):
    """What the two HTTP clients have in common; header names are looked up in lower case."""

    @property
    def status(self) -> int:
        """HTTP status."""

    @property
    def headers(self) -> Mapping[str, str]:
        """By name, whatever its case."""

    async def read_small(self, limit: int) -> bytes:
        """The whole body.

        Raises:
            UpstreamError: it is longer than *limit*, or broke off.
        """

    async def aclose(self) -> None:
        """Done with it."""


class SmallReply:
    """An httpx response whose body has not been read."""

    def __init__(self, response: httpx.Response, *, is_head: bool) -> None:
        self._response = response
        self._is_head = is_head
        self.status = response.status_code
        self.headers: Mapping[str, str] = response.headers

    async def read_small(self, limit: int) -> bytes:
        body = bytearray()
        with translated():
            async for piece in self._response.aiter_raw():
                body += piece
                if len(body) > limit:
                    raise UpstreamError(f"upstream sent more than {limit} bytes where a small answer was due")
        return bytes(body)

    async def aclose(self) -> None:
        with contextlib.suppress(httpx.HTTPError, httpx.StreamError, OSError, UpstreamError):
            if not self._response.is_stream_consumed and (self._is_head or _is_short(self.headers)):
                await self.read_small(SHORT_MAX_BYTES)  # so that the connection can be used again
        with contextlib.suppress(httpx.HTTPError, OSError):
            await self._response.aclose()


class BulkAsReply:
    """A bulk reply: its body is small only when it is an error."""

    def __init__(self, bulk: BulkReply) -> None:
        self.bulk = bulk
        self.status = bulk.status
        self.headers = bulk.headers

    async def read_small(self, limit: int) -> bytes:
        body = bytearray()
        while len(body) < limit and (piece := await self.bulk.read()):
            body += piece
        return bytes(body)

    async def aclose(self) -> None:
        done = False
        with contextlib.suppress(UpstreamError):
            if _is_short(self.headers):
                await self.read_small(SHORT_MAX_BYTES)  # so that the connection can be used again
                done = True
        self.bulk.close(reuse=done)


@contextlib.contextmanager
def translated() -> Iterator[None]:
    """Turn what httpx raises into :class:`UpstreamError`, with a reason that an operator can use."""
    try:
        yield
    except httpx.TimeoutException as error:
        what = "connect" if isinstance(error, httpx.ConnectTimeout) else "answer"
        raise UpstreamError(f"upstream took too long to {what}") from error
    except httpx.TransportError as error:
        raise UpstreamError(str(error)[:300]) from error
    except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, OSError) as error:
        raise UpstreamError(f"{type(error).__name__}: {error}"[:300]) from error


def content_length(headers: Mapping[str, str]) -> int | None:
    """Bytes that upstream announced; None if it did not, or not in a way that can be believed."""
    value = headers.get("content-length", "")
    return int(value) if value.isdecimal() and len(value) <= 18 else None  # noqa: PLR2004 -- an exabyte


def _is_short(headers: Mapping[str, str]) -> bool:
    """Whether the body is worth reading to its end: that of a challenge or a redirect is."""
    length = content_length(headers)
    return length is not None and length <= SHORT_MAX_BYTES
