"""What of a blob an answer carries: all of it, one range, or several in one body.

Source: RFC 9110, sections 14 and 15.3.7.
"""

import secrets
from typing import NamedTuple

from aiohttp import web

from registry_cache.model.oci import Digest
from registry_cache.model.ranges import ContentRange, Ranges


class Plan(NamedTuple):
    """An answer's status, its headers beside those of every blob, and its body: bytes of the blob, or what is between.

    Attributes:
        open_ended: the client asked for everything from somewhere on, and may leave when it has what it wanted.
    """

    status: int
    headers: dict[str, str]
    body: tuple[bytes | ContentRange, ...]
    open_ended: bool = False

    @property
    def length(self) -> int:
        """Of the body, in bytes."""
        return sum(len(piece) if isinstance(piece, bytes) else piece.stop - piece.start for piece in self.body)


def plan(request: web.BaseRequest, digest: Digest, size_bytes: int, *, parts_max: int) -> Plan:
    """What to answer *request* with.

    Args:
        parts_max: more ranges than this are answered with the whole blob.

    Raises:
        RangeNotSatisfiable: it names no byte of the blob.
    """
    asked = Ranges.parse(request.headers.get("Range")) if request.method == "GET" else None
    condition = request.headers.get("If-Range")
    if asked is None or (condition is not None and condition.strip('"') != digest):
        return _whole(size_bytes)
    parts = asked.resolve(size_bytes)
    if len(parts) > parts_max:
        return _whole(size_bytes)
    if len(parts) > 1:
        return _several(parts)
    is_open = len(asked.asked) == 1 and asked.asked[0].is_open
    return Plan(206, {"Content-Range": str(parts[0])}, parts, is_open)


def _whole(size_bytes: int) -> Plan:
    return Plan(200, {}, (ContentRange(0, size_bytes, size_bytes),))


def _several(parts: tuple[ContentRange, ...]) -> Plan:
    boundary = secrets.token_hex(16)  # nobody who makes a blob knows it
    body: list[bytes | ContentRange] = []
    for part in parts:
        head = f"--{boundary}\r\nContent-Type: application/octet-stream\r\nContent-Range: {part}\r\n\r\n"
        body += [(("\r\n" if body else "") + head).encode(), part]
    body.append(f"\r\n--{boundary}--\r\n".encode())
    return Plan(206, {"Content-Type": f"multipart/byteranges; boundary={boundary}"}, tuple(body))
