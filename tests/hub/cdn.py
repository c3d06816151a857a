"""The CDN behind blob redirects: signed URLs, ranges, and no patience for an Authorization header."""

import hashlib
import hmac
import re
import secrets
import time
from dataclasses import dataclass, field

from .http import Answer, FileBody, Request
from .origin import OriginRegistry

BLOB_PATH = re.compile(r"^/registry-v2/docker/registry/v2/blobs/sha256/[0-9a-f]{2}/(?P<encoded>[0-9a-f]{64})/data$")
BYTES_RANGE = re.compile(r"^bytes=(\d*)-(\d*)$")


@dataclass
class Cdn:
    """Serves blobs by signed URL from the storage directory of the registry."""

    origin: OriginRegistry
    _key: bytes = field(default_factory=lambda: secrets.token_bytes(16))

    def sign(self, digest: str, expires_at: float) -> str:
        """Return path and query under which *digest* can be read until *expires_at* (Unix seconds)."""
        encoded = digest.partition(":")[2]
        path = f"/registry-v2/docker/registry/v2/blobs/sha256/{encoded[:2]}/{encoded}/data"
        return f"{path}?expires={expires_at:.3f}&sig={self._signature(path, f'{expires_at:.3f}')}"

    def answer(self, request: Request) -> Answer:
        if request.authorization[0]:
            return _xml(400, "InvalidArgument", "Only one auth mechanism allowed")
        match = BLOB_PATH.match(request.path)
        if match is None:
            return _xml(404, "NoSuchKey", "The specified key does not exist.")
        expires = request.query.get("expires", [""])[0]
        signature = request.query.get("sig", [""])[0]
        if not hmac.compare_digest(signature, self._signature(request.path, expires)):
            return _xml(403, "SignatureDoesNotMatch", "The request signature does not match.")
        if float(expires) < time.time():
            return _xml(403, "AccessDenied", "Request has expired")
        return blob_answer(self.origin, f"sha256:{match['encoded']}", request)

    def digest(self, path: str) -> str:
        """Return the digest that *path* names, or nothing."""
        match = BLOB_PATH.match(path)
        return f"sha256:{match['encoded']}" if match else ""

    def _signature(self, path: str, expires: str) -> str:
        return hmac.new(self._key, f"{path}\n{expires}".encode(), hashlib.sha256).hexdigest()


def blob_answer(origin: OriginRegistry, digest: str, request: Request) -> Answer:
    """Return the blob, or the range of it that was asked for: 200, 206, 404 or 416."""
    path = origin.blob_path(digest)
    if not path.is_file():
        return _xml(404, "NoSuchKey", "The specified key does not exist.")
    total = path.stat().st_size
    headers = {
        "Content-Type": "application/octet-stream",
        "Accept-Ranges": "bytes",
        "ETag": f'"{digest.partition(":")[2][:32]}"',
    }
    window = _range(request.headers.get("range", ""), total)
    if window is None:
        return Answer(200, headers, FileBody(path, 0, total))
    start, end = window
    if start >= end:
        return Answer(416, {"Content-Range": f"bytes */{total}"})
    headers["Content-Range"] = f"bytes {start}-{end - 1}/{total}"
    return Answer(206, headers, FileBody(path, start, end - start))


def _range(header: str, total: int) -> tuple[int, int] | None:
    """Return [start, end) of a single byte range; None means the whole blob, as for several ranges."""
    match = BYTES_RANGE.match(header)
    if match is None or not any(match.groups()):
        return None
    first, last = match.groups()
    if not first:
        return max(0, total - int(last)), total
    return int(first), min(total, int(last) + 1) if last else total


def _xml(status: int, code: str, message: str) -> Answer:
    body = f'<?xml version="1.0" encoding="UTF-8"?><Error><Code>{code}</Code><Message>{message}</Message></Error>'
    return Answer(status, {"Content-Type": "application/xml"}, body.encode())
