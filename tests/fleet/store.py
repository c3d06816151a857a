"""A look-alike of an S3-compatible store: honest about signatures and hashes, and bad at will. In the test's own loop.

Written from AWS's description of the signature, not from the code under test. What real radosgw does is in
``test_radosgw.py``; here each kind of trouble is made, of which a real store makes few to order.
"""

import asyncio
import contextlib
import hashlib
import hmac
import re
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qsl, quote

from aiohttp import web

ACCESS, SECRET = "AKIDFLEETTESTS", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"
BUCKET = "shared"
_AUTHORIZATION = re.compile(
    r"AWS4-HMAC-SHA256 Credential=([^/]+)/(\d{8})/([^/]+)/s3/aws4_request, SignedHeaders=([a-z0-9;-]+), Signature=(\w+)"
)


@dataclass
class Store:
    """Its objects, what it was asked, and what is wrong with it.

    Attributes:
        hangs: methods that are never answered, as a full Ceph's PUT and DELETE.
        refuses: a status and code for a method.
        locked: keys of objects that are not deleted.
        truncates: bodies break off after so many bytes.
        stalls: bodies stand still after so many bytes, until they are let go on.
        ahead_seconds: its clock, before ours.
        hides_missing: as to a key that may not list: what is missing is forbidden.
        keeps_versions: what is deleted, too.
    """

    port: int = 0
    objects: dict[str, bytes] = field(default_factory=dict)
    modified: dict[str, float] = field(default_factory=dict)
    beside: dict[str, dict[str, str]] = field(default_factory=dict)
    secret: str = SECRET
    region: str = "us-east-1"
    is_there: bool = True
    hangs: set[str] = field(default_factory=set)
    refuses: dict[str, tuple[int, str]] = field(default_factory=dict)
    locked: set[str] = field(default_factory=set)
    truncates: int | None = None
    stalls: int | None = None
    ahead_seconds: float = 0.0
    hides_missing: bool = False
    keeps_versions: bool = False
    page_size: int = 1000
    asked: list[tuple[str, str]] = field(default_factory=list)
    heads: list[str] = field(default_factory=list)
    uploads: dict[str, dict[int, bytes]] = field(default_factory=dict)
    goes_on: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/{BUCKET}"

    def count(self, method: str, key: str = "") -> int:
        return sum(one == method and key in path for one, path in self.asked)

    # --- requests -----------------------------------------------------------------------------------------------

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        path = request.rel_url.raw_path
        self.asked.append((request.method, path + (f"?{request.query_string}" if request.query_string else "")))
        self.heads += [f"{name}: {value}" for name, value in request.headers.items()]
        if request.method in self.hangs:
            await self.goes_on.wait()
        if request.method in self.refuses:
            return self._error(*self.refuses[request.method])
        if refusal := self._unsigned(request):
            return refusal
        bucket, _, key = path.strip("/").partition("/")
        if not self.is_there or bucket != BUCKET:
            return self._error(404, "NoSuchBucket")
        return await getattr(self, f"_{request.method.lower()}")(request, key)

    def _error(self, status: int, code: str) -> web.Response:
        # As real ones do: the key and what was signed are in it.
        text = f"<?xml version='1.0'?><Error><Code>{code}</Code><AWSAccessKeyId>{ACCESS}</AWSAccessKeyId></Error>"
        return web.Response(status=status, text=text, headers={"Date": self._date()})

    def _date(self) -> str:
        return datetime.fromtimestamp(time.time() + self.ahead_seconds, UTC).strftime("%a, %d %b %Y %H:%M:%S GMT")

    def _unsigned(self, request: web.BaseRequest) -> web.Response | None:
        if "X-Amz-Signature" in request.rel_url.query:
            return self._not_lent(request)
        match = _AUTHORIZATION.fullmatch(request.headers.get("Authorization", ""))
        stamp = request.headers.get("x-amz-date", "")
        if match is None or match[1] != ACCESS or match[2] != stamp[:8]:
            return self._error(403, "InvalidAccessKeyId")
        then = datetime.strptime(stamp, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC).timestamp()
        if abs(time.time() + self.ahead_seconds - then) > 900:
            return self._error(403, "RequestTimeTooSkewed")
        names = match[4].split(";")
        assert {"host", "x-amz-date", "x-amz-content-sha256"} <= set(names)
        query = sorted(parse_qsl(request.rel_url.raw_query_string, keep_blank_values=True))
        lines = [request.method, quote(request.rel_url.raw_path, safe="/%")]
        lines += ["&".join(f"{quote(name, safe='')}={quote(value, safe='')}" for name, value in query)]
        lines += [f"{name}:{request.headers[name].strip()}" for name in names]
        lines += ["", match[4], request.headers["x-amz-content-sha256"]]
        right = self._signature(lines, stamp)
        return None if hmac.compare_digest(right, match[5]) else self._error(403, "SignatureDoesNotMatch")

    def _signature(self, lines: list[str], stamp: str) -> str:
        digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
        text = f"AWS4-HMAC-SHA256\n{stamp}\n{stamp[:8]}/{self.region}/s3/aws4_request\n{digest}"
        key = f"AWS4{self.secret}".encode()
        for part in (stamp[:8], self.region, "s3", "aws4_request", text):
            key = hmac.digest(key, part.encode(), "sha256")
        return key.hex()

    def _not_lent(self, request: web.BaseRequest) -> web.Response | None:
        """As AWS, "Authenticating Requests: Using Query Parameters"."""
        if "Authorization" in request.headers:
            return self._error(400, "InvalidArgument")
        query = parse_qsl(request.rel_url.raw_query_string, keep_blank_values=True)
        said = dict(query)
        stamp = said["X-Amz-Date"]
        then = datetime.strptime(stamp, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC).timestamp()
        if not 0 <= time.time() + self.ahead_seconds - then + 5 <= int(said["X-Amz-Expires"]) + 5:
            return self._error(403, "AccessDenied")
        signed = sorted((name, value) for name, value in query if name != "X-Amz-Signature")
        lines = [request.method, quote(request.rel_url.raw_path, safe="/%")]
        lines += ["&".join(f"{quote(name, safe='')}={quote(value, safe='')}" for name, value in signed)]
        lines += [f"host:{request.headers['Host']}", "", "host", "UNSIGNED-PAYLOAD"]
        right = self._signature(lines, stamp)
        return (
            None if hmac.compare_digest(right, said["X-Amz-Signature"]) else self._error(403, "SignatureDoesNotMatch")
        )

    async def _put(self, request: web.BaseRequest, key: str) -> web.Response:
        if "Expect" in request.headers and request.transport is not None:
            request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = await request.content.read()
        if hashlib.sha256(body).hexdigest() != request.headers["x-amz-content-sha256"]:
            return self._error(400, "XAmzContentSHA256Mismatch")
        if upload := request.rel_url.query.get("uploadId"):
            self.uploads[upload][int(request.rel_url.query["partNumber"])] = body
        else:
            self.keep(key, body)
            said = ("content-type", "x-amz-meta-seal")
            self.beside[key] = {name: request.headers[name] for name in said if name in request.headers}
        return web.Response(headers={"ETag": f'"{hashlib.md5(body).hexdigest()}"'})

    def keep(self, key: str, body: bytes, modified: float | None = None) -> None:
        self.objects[key], self.modified[key] = body, modified or time.time()

    async def _post(self, request: web.BaseRequest, key: str) -> web.Response:
        body = await request.read()
        upload = request.rel_url.query.get("uploadId")
        if upload is None:
            self.uploads[f"upload+{len(self.uploads)}"] = {}
            name = f"upload+{len(self.uploads) - 1}"
            return web.Response(text=f"<Result><UploadId>{name}</UploadId></Result>")
        parts = self.uploads.pop(upload)
        etags = [f"&quot;{hashlib.md5(part).hexdigest()}&quot;" for _, part in sorted(parts.items())]
        assert re.findall(r"<ETag>(.*?)</ETag>", body.decode()) == etags
        self.keep(key, b"".join(part for _, part in sorted(parts.items())))
        return web.Response(text="<CompleteMultipartUploadResult/>")

    async def _delete(self, request: web.BaseRequest, key: str) -> web.Response:
        if upload := request.rel_url.query.get("uploadId"):
            self.uploads.pop(upload, None)
        elif key in self.locked:
            return self._error(403, "AccessDenied")
        else:
            self.objects.pop(key, None)
        return web.Response(status=204)

    async def _get(self, request: web.BaseRequest, key: str) -> web.StreamResponse:
        if not key:
            if "versioning" in request.rel_url.query:
                status = "<Status>Enabled</Status>" if self.keeps_versions else ""
                return web.Response(text=f"<VersioningConfiguration>{status}</VersioningConfiguration>")
            return self._list(request)
        if key not in self.objects:
            return self._error(403, "AccessDenied") if self.hides_missing else self._error(404, "NoSuchKey")
        body = self.objects[key]
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range", ""))
        start = int(asked[1]) if asked else 0
        if asked and start >= len(body):
            return self._error(416, "InvalidRange")
        response = web.StreamResponse(
            status=206 if asked else 200, headers={"Date": self._date()} | self.beside.get(key, {})
        )
        if asked:
            stop = min(int(asked[2]) + 1, len(body)) if asked[2] else len(body)
            response.headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(body)}"
            body = body[:stop]
        response.content_length = len(body) - start
        await response.prepare(request)
        truncates, stalls = self.truncates, self.stalls  # they may change while this one waits
        await response.write(body[start : truncates if truncates is not None else stalls])
        if truncates is not None:
            request.protocol.force_close()
            raise asyncio.CancelledError
        if stalls is not None:
            await self.goes_on.wait()
            await response.write(body[max(start, stalls) :])
        return response

    def _list(self, request: web.BaseRequest) -> web.Response:
        query = request.rel_url.query
        keys = sorted(k for k in self.objects if k.startswith(query["prefix"]) and k > query.get("start-after", ""))
        page = keys[: min(self.page_size, int(query["max-keys"]))]
        rows = "".join(
            f"<Contents><Key>{key}</Key><LastModified>{self._stamp(key)}</LastModified><ETag>&quot;x&quot;</ETag>"
            f"<Size>{len(self.objects[key])}</Size></Contents>"
            for key in page
        )
        more = str(len(keys) > len(page)).lower()
        return web.Response(text=f"<ListBucketResult>{rows}<IsTruncated>{more}</IsTruncated></ListBucketResult>")

    def _stamp(self, key: str) -> str:
        return datetime.fromtimestamp(self.modified[key], UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")


@contextlib.asynccontextmanager
async def store() -> AsyncIterator[Store]:
    made = Store()
    runner: Any = web.ServerRunner(
        web.Server(made.handle, handler_cancellation=True, access_log=None), shutdown_timeout=0.01
    )
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        made.port = runner.addresses[0][1]
        yield made
    finally:
        made.goes_on.set()
        await runner.cleanup()
