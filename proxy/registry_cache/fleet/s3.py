"""An S3-compatible store: one request each, over aiohttp, so that each can be given up at any moment.

The bytes of objects are read by threads, as those of upstream are.

Only what this cache needs, and of an answer only what it knows: the texts of errors repeat keys and signatures.
"""

import asyncio
import contextlib
import email.utils
import hashlib
import html
import re
import ssl
import time
from collections.abc import AsyncIterator, Callable, Mapping
from datetime import UTC, datetime
from types import TracebackType
from typing import NamedTuple, Self
from urllib.parse import urlsplit

import aiohttp
from yarl import URL

from registry_cache.fleet.s3_signing import EMPTY_SHA256, KeyFile, KeysUnreadable, S3Signer, query_of
from registry_cache.model.errors import RegistryCacheError, UpstreamError
from registry_cache.model.ranges import ContentRange
from registry_cache.upstream.addresses import AddressRules
from registry_cache.upstream.ask import Ask
from registry_cache.upstream.bulk import BulkClient, BulkReply
from registry_cache.upstream.dialling import Dialling
from registry_cache.upstream.headers import content_length
from registry_cache.upstream.redact import Redactor

# No pull waits longer for a connection and the head of an answer, nor for the next bytes.
CONNECT_SECONDS = 1.0
HEAD_SECONDS = 3.0
_CONNECTIONS = 128
_BODIES = 64  # objects on their way at the same time, each with a thread while it is waited for
_BUFFER_BYTES = 1024 * 1024
_ERROR_MAX_BYTES = 64 * 1024
_EMPTY_PAGES_MAX = 100  # of a listing, in a row
_ANSWER_MAX_BYTES = 4 * 1024 * 1024  # 1000 keys of the longest kind are 2 MB
_CODE = re.compile(rb"<Code>([A-Za-z0-9.]{1,64})</Code>")


class StoreTrouble(RegistryCacheError):
    """The store cannot be used.

    ``is_lasting``: it answers, but will not serve us before somebody has changed something.
    """

    def __init__(self, message: str, *, is_lasting: bool = False) -> None:
        super().__init__(message)
        self.is_lasting = is_lasting


class _WrongTime(StoreTrouble):
    """Our clock is not the store's, which is known now."""


class ObjectMissing(RegistryCacheError):
    """The bucket is there, and the object is not."""


class ObjectShort(RegistryCacheError):
    """The object ends before what was asked for."""


class ObjectRefused(RegistryCacheError):
    """The store has read other bytes than were signed; it shows none of them."""


class ObjectReply(NamedTuple):
    """The head of an object, or of its rest; whoever has it closes the reply."""

    reply: BulkReply
    start: int
    total_bytes: int


class Listed(NamedTuple):
    """One object of a page."""

    key: str
    size_bytes: int
    modified_at: float  # Unix seconds


class S3:
    """One bucket.

    Attributes:
        page_size: how many objects :meth:`page` asks for at a time.

    Args:
        url: ``https://endpoint/bucket``, and a prefix of all keys where there is one.
    """

    def __init__(self, url: str, *, region: str, key_file: KeyFile, tls: ssl.SSLContext | None) -> None:
        parts = urlsplit(url)
        self.page_size = 1000
        self._endpoint = f"{parts.scheme}://{parts.netloc}"
        bucket, _, prefix = parts.path.strip("/").partition("/")
        self._bucket = f"/{bucket}"
        self._prefix = f"{prefix}/" if prefix else ""
        self._tls = tls
        host = parts.hostname or ""
        own_port = {"http": 80, "https": 443}[parts.scheme]
        host = f"[{host}]" if ":" in host else host
        host = host if parts.port in (None, own_port) else f"{host}:{parts.port}"
        self._signer = S3Signer(key_file, region=region, host=host)
        self._session: aiohttp.ClientSession | None = None
        dialling = Dialling(
            tls or ssl.create_default_context(),
            AddressRules(url),
            Redactor(),
            connect_timeout_seconds=CONNECT_SECONDS,
            read_timeout_seconds=HEAD_SECONDS,
            proxy=lambda _url: None,
        )
        self._bulk = BulkClient(dialling, connections=_BODIES)

    def __repr__(self) -> str:
        return f"<S3 {self._endpoint}{self._bucket}/{self._prefix}>"

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=_CONNECTIONS, ssl=self._tls or True),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS),
            auto_decompress=False,
            read_bufsize=_BUFFER_BYTES,
            trust_env=False,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bulk.interrupt()
        self._bulk.close()
        if self._session is not None:
            await self._session.close()

    async def get(self, key: str, start: int) -> ObjectReply:
        """The object from *start* on.

        Raises:
            ObjectMissing, ObjectShort, StoreTrouble.
        """
        also = {"Range": f"bytes={start}-"} if start else {}  # of an empty object no range can be had
        try:
            reply = await self._receive(key, also)
        except _WrongTime:
            reply = await self._receive(key, also)
        span, length = ContentRange.parse(reply.headers.only("content-range")), content_length(reply.headers)
        if reply.status == 206 and span is not None and span.start == start and span.stop == span.total:  # noqa: PLR2004
            return ObjectReply(reply, start, span.stop)
        if reply.status == 200 and length is not None:  # noqa: PLR2004 -- as some answer all of it
            return ObjectReply(reply, 0, length)
        reply.close()
        raise StoreTrouble(f"the store answered a range with {reply.status}")

    async def size(self, key: str) -> int:
        """How large the object is, in bytes; it is at least one. A HEAD would not tell a missing bucket apart.

        Raises:
            ObjectMissing, ObjectShort, StoreTrouble.
        """
        response = await self._send("GET", key, also={"Range": "bytes=0-0"}, seconds=HEAD_SECONDS)
        span = ContentRange.parse(response.headers.get("Content-Range", ""))
        if response.status != 206 or span is None or span.total is None:  # noqa: PLR2004 -- HTTP
            response.close()
            raise StoreTrouble(f"the store answered a range with {response.status}")
        async with _bounded(HEAD_SECONDS):
            try:
                await _short(response)
            finally:
                response.release()
        return span.total

    def link(self, key: str, *, seconds: int) -> str:
        """An address of the object for whoever has it: it can be read there for so long, and nothing else.

        Raises:
            StoreTrouble: there is nothing to sign with.
        """
        path = f"{self._bucket}/{self._prefix}{key}"
        try:
            return f"{self._endpoint}{path}?{self._signer.query('GET', path, seconds=seconds)}"
        except KeysUnreadable as error:
            raise StoreTrouble(str(error), is_lasting=True) from None

    async def put(
        self,
        key: str,
        size_bytes: int,
        sha256: str,
        pieces: Callable[[], AsyncIterator[bytes]],
        *,
        seconds: float,
        headers: Mapping[str, str] | None = None,
    ) -> str:
        """Store an object, which the store shows only when all of it is there and is what was signed.

        Args:
            seconds: the longest that it may take.
            headers: what is kept of it beside its bytes, such as a Content-Type of its own.

        Returns:
            Its ETag.

        Raises:
            ObjectRefused, StoreTrouble; and whatever *pieces* raises.
        """
        return await self._put(key, {}, size_bytes, sha256, pieces, seconds=seconds, headers=headers or {})

    async def _put(
        self,
        key: str,
        query: Mapping[str, str],
        size_bytes: int,
        sha256: str,
        pieces: Callable[[], AsyncIterator[bytes]],
        *,
        seconds: float,
        headers: Mapping[str, str] | None = None,
    ) -> str:
        also = {"Content-Length": str(size_bytes), "Content-Type": "application/octet-stream", **(headers or {})}
        response = await self._send(
            "PUT", key, query, also=also, sha256=sha256, body=pieces if size_bytes else None, seconds=seconds
        )
        response.release()
        return response.headers.get("ETag", "")

    async def begin_parts(self, key: str, *, seconds: float) -> str:
        """Begin an object of several parts; the id of what was begun."""
        text = await self._ask("POST", key, {"uploads": ""}, seconds=seconds)
        found = re.search(r"<UploadId>([^<>]{1,1024})</UploadId>", text)
        if found is None:
            raise StoreTrouble("the store begins no object of several parts")
        return html.unescape(found[1])

    async def put_part(
        self,
        key: str,
        upload: str,
        number: int,
        size_bytes: int,
        sha256: str,
        pieces: Callable[[], AsyncIterator[bytes]],
        *,
        seconds: float,
    ) -> str:
        """As :meth:`put`, of part *number*, from 1."""
        query = {"partNumber": str(number), "uploadId": upload}
        return await self._put(key, query, size_bytes, sha256, pieces, seconds=seconds)

    async def end_parts(self, key: str, upload: str, etags: list[str], *, seconds: float) -> None:
        """Make one object of its parts."""
        rows = "".join(
            f"<Part><PartNumber>{number}</PartNumber><ETag>{html.escape(etag)}</ETag></Part>"
            for number, etag in enumerate(etags, 1)
        )
        body = f"<CompleteMultipartUpload>{rows}</CompleteMultipartUpload>".encode()
        text = await self._ask("POST", key, {"uploadId": upload}, body=body, seconds=seconds)
        if "<Error>" in text:  # its head goes out while it still works
            raise StoreTrouble("the store did not put the parts together")

    async def drop_parts(self, key: str, upload: str, *, seconds: float) -> None:
        """There will be no such object."""
        with contextlib.suppress(ObjectMissing):
            await self._ask("DELETE", key, {"uploadId": upload}, seconds=seconds)

    async def delete(self, key: str, *, seconds: float) -> None:
        """It is not there any more, or never was.

        Raises:
            StoreTrouble: nobody knows.
        """
        with contextlib.suppress(ObjectMissing):
            await self._ask("DELETE", key, seconds=seconds)

    async def page(self, prefix: str, after: str, *, seconds: float) -> tuple[list[Listed], str]:
        """Objects whose keys begin with *prefix*, in their order, behind the key *after*.

        Returns:
            They, and the last key of the page; empty where nothing follows.

        Raises:
            StoreTrouble: also where there is no telling what follows.
        """
        query = {"list-type": "2", "max-keys": str(self.page_size), "prefix": self._prefix + prefix}
        if after:
            query["start-after"] = self._prefix + after
        for _ in range(_EMPTY_PAGES_MAX):
            text = await self._ask("GET", "", query, seconds=seconds)
            listed, last = self._listed(text, after)
            if "<IsTruncated>true</IsTruncated>" not in text:
                return listed, ""
            if last != after:
                return listed, last
            token = re.search(r"<NextContinuationToken>([^<>]{1,4096})</", text)
            if token is None:
                break
            query.pop("start-after", None)
            query["continuation-token"] = html.unescape(token[1])
        raise StoreTrouble("the store lists nothing, and says that more follows", is_lasting=True)

    def _listed(self, text: str, after: str) -> tuple[list[Listed], str]:
        """The objects of a page, and the last key; *after* if there is none."""
        listed, last = [], after
        for found in re.finditer(r"<Contents>(.*?)</Contents>", text, re.DOTALL):
            fields = dict(re.findall(r"<(Key|Size|LastModified)>([^<>]*)</", found[1]))
            key = html.unescape(fields.get("Key", "")).removeprefix(self._prefix)
            if key <= last:  # what is not listed by its turn would be taken for gone, or listed without end
                raise StoreTrouble("the store lists its objects in no order", is_lasting=True)
            last = key
            with contextlib.suppress(KeyError, ValueError):
                modified = datetime.fromisoformat(fields["LastModified"]).astimezone(UTC).timestamp()
                listed.append(Listed(key, int(fields["Size"]), modified))
        return listed, last

    async def keeps_versions(self, *, seconds: float) -> bool:
        """Whether the bucket keeps what is deleted.

        Raises:
            StoreTrouble: nobody knows; most keys may not ask that.
        """
        return "<Status>Enabled</Status>" in await self._ask("GET", "", {"versioning": ""}, seconds=seconds)

    # --- one request --------------------------------------------------------------------------------------------

    async def _ask(
        self, method: str, key: str, query: Mapping[str, str] | None = None, *, body: bytes = b"", seconds: float
    ) -> str:
        """The text of an answer."""
        sha256 = hashlib.sha256(body).hexdigest()
        async with _bounded(seconds):
            response = await self._send(method, key, query, sha256=sha256, body=body or None, seconds=seconds)
            try:
                return (await _short(response)).decode(errors="replace")
            finally:
                response.release()

    async def _send(
        self,
        method: str,
        key: str,
        query: Mapping[str, str] | None = None,
        *,
        also: Mapping[str, str] | None = None,
        sha256: str = EMPTY_SHA256,
        body: Callable[[], AsyncIterator[bytes]] | bytes | None = None,
        seconds: float,
    ) -> aiohttp.ClientResponse:
        """A success, or an error that is known."""
        try:
            return await self._once(method, key, query or {}, also or {}, sha256, body, seconds=seconds)
        except _WrongTime:
            return await self._once(method, key, query or {}, also or {}, sha256, body, seconds=seconds)

    async def _receive(self, key: str, also: Mapping[str, str]) -> BulkReply:
        """As :meth:`_once`, for what threads read."""
        url, headers = self._signed("GET", key, "", EMPTY_SHA256, also)
        async with _bounded(HEAD_SECONDS):
            reply = await self._bulk.send(Ask("GET", url, "", headers))
            if reply.status < 300:  # noqa: PLR2004 -- HTTP
                return reply
            try:
                raise self._error(reply.status, reply.headers.first("date"), await reply.read_small(_ERROR_MAX_BYTES))
            finally:
                reply.close()

    def _signed(
        self, method: str, key: str, query: str, sha256: str, also: Mapping[str, str]
    ) -> tuple[str, dict[str, str]]:
        """A URL, and the headers of a request for it.

        Raises:
            StoreTrouble: there is nothing to sign with.
        """
        path = f"{self._bucket}/{self._prefix}{key}" if key else self._bucket
        try:
            headers = self._signer.headers(method, path, query, sha256, also)
        except KeysUnreadable as error:
            raise StoreTrouble(str(error), is_lasting=True) from None
        return f"{self._endpoint}{path}" + (f"?{query}" if query else ""), headers

    async def _once(
        self,
        method: str,
        key: str,
        query: Mapping[str, str],
        also: Mapping[str, str],
        sha256: str,
        body: Callable[[], AsyncIterator[bytes]] | bytes | None,
        *,
        seconds: float,
    ) -> aiohttp.ClientResponse:
        if self._session is None:
            raise StoreTrouble("it is too late")
        url, headers = self._signed(method, key, query_of(query), sha256, also)
        async with _bounded(seconds):
            response = await self._session.request(
                # Who is refused hears it before all of the body has gone out; else there would be a reset, and no word.
                method,
                URL(url, encoded=True),
                headers=headers,
                data=body() if callable(body) else body,
                allow_redirects=False,
                expect100=callable(body),
            )
            if response.status < 300:  # noqa: PLR2004 -- HTTP
                return response
            try:
                raise self._error(response.status, response.headers.get("Date", ""), await _short(response))
            finally:
                response.close()

    def _error(self, status: int, date: str, body: bytes) -> RegistryCacheError:
        found = _CODE.search(body)
        code = found[1].decode() if found else ""
        if status == 404 and code in ("NoSuchKey", "NoSuchUpload"):  # noqa: PLR2004 -- HTTP
            return ObjectMissing("the object is not there")
        if status == 416:  # noqa: PLR2004 -- HTTP
            return ObjectShort("the object ends before what was asked for")
        if code in ("XAmzContentSHA256Mismatch", "BadDigest", "InvalidDigest"):
            return ObjectRefused("the store got other bytes than were signed")
        what = f"the store answered {status}" + (f" {code}" if code else "")
        if code == "RequestTimeTooSkewed":
            self._learn_time(date)
            return _WrongTime(what, is_lasting=True)
        return StoreTrouble(what, is_lasting=status < 500 and status not in (408, 429))  # noqa: PLR2004

    def _learn_time(self, date: str) -> None:
        """A clock that is wrong here is no reason to do without the store: sign with its time from now on."""
        with contextlib.suppress(TypeError, ValueError):
            theirs = email.utils.parsedate_to_datetime(date).timestamp()
            self._signer.ahead_seconds = theirs - time.time()


@contextlib.asynccontextmanager
async def _bounded(seconds: float) -> AsyncIterator[None]:
    """What goes wrong below is the store's trouble."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as error:
        raise StoreTrouble(f"the store did not answer within {seconds:g} s") from error
    except aiohttp.ClientConnectorError as error:
        raise StoreTrouble(f"the store cannot be reached: {error.strerror}") from error
    except UpstreamError as error:
        raise StoreTrouble(f"the store cannot be reached: {error}") from error
    except (aiohttp.ClientError, OSError) as error:
        raise StoreTrouble(f"the store broke the connection ({type(error).__name__})") from error


async def _short(response: aiohttp.ClientResponse) -> bytes:
    body = bytearray()
    async for piece in response.content.iter_any():
        body += piece
        if len(body) > _ANSWER_MAX_BYTES:
            raise StoreTrouble("the store's answer is too long")
    return bytes(body)
