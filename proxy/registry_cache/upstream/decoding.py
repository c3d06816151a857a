"""``Content-Encoding`` of small answers, which nobody asked for and some servers in between apply all the same."""

import zlib

from registry_cache.model.errors import UpstreamError
from registry_cache.upstream.headers import Headers, content_length

# S3 calls so how it was sent a file, not how it sends it.
_PLAIN = frozenset({"", "identity", "none", "aws-chunked"})
_MAX_LAYERS = 3
# Members of a gzip file; one is usual. What is behind each is copied, so a hundred thousand empty ones take minutes.
_MAX_MEMBERS = 64


def decoded(body: bytes, encoding: str, limit: int) -> bytes:
    """*body* without its encodings; a body that is not what its label says is taken as it is.

    What is compressed without a label is decompressed, too: nothing that is asked for so begins as gzip does.

    Args:
        limit: the most bytes that come out.

    Raises:
        UpstreamError: more come out, or the encoding is not known here.
    """
    names = _names(encoding)
    if len(names) > _MAX_LAYERS:
        raise UpstreamError("upstream encoded its answer more often than makes sense")
    if not names and is_gzip(body):
        names = ["gzip"]
    for name in reversed(names):
        if name in ("gzip", "x-gzip"):
            body = _inflated(body, limit, 31) if is_gzip(body) else body
        elif name == "deflate":
            body = _inflated(body, limit, 15 if _is_zlib(body) else -15) if not _is_json(body) else body
        elif not _is_json(body):
            raise UpstreamError(f"upstream encoded its answer with {name[:40]!r}, which nobody asked for")
    return body


def plain_length(headers: Headers) -> int | None:
    """The length of what was meant, without its encodings; None where ``Content-Length`` does not tell that."""
    return None if _names(headers.get("content-encoding", "")) else content_length(headers)


def is_gzip(body: bytes) -> bool:
    """Whether *body* begins as gzip does, whatever it is called."""
    return body.startswith(b"\x1f\x8b")


def _names(encoding: str) -> list[str]:
    return [name for part in encoding.lower().split(",") if (name := part.strip()) not in _PLAIN]


def _inflated(body: bytes, limit: int, window_bits: int) -> bytes:
    """All members of a gzip file, or one zlib stream."""
    out = b""
    for _ in range(_MAX_MEMBERS):
        inflate = zlib.decompressobj(window_bits)
        try:
            out += inflate.decompress(body, limit + 1 - len(out))
        except zlib.error as error:
            raise UpstreamError(f"upstream's compressed answer is broken: {error}") from error
        if len(out) > limit:
            raise UpstreamError(f"upstream sent more than {limit} bytes where a small answer was due")
        if not inflate.eof:
            raise UpstreamError("upstream's compressed answer ends early")
        body = inflate.unused_data
        if not body.startswith(b"\x1f\x8b"):
            return out
    raise UpstreamError("upstream's compressed answer has more parts than makes sense")


def _is_zlib(body: bytes) -> bool:
    return len(body) > 1 and body[0] & 0x0F == 8 and int.from_bytes(body[:2]) % 31 == 0  # noqa: PLR2004 -- RFC 1950


def _is_json(body: bytes) -> bool:
    return body[:64].lstrip(b"\xef\xbb\xbf \t\r\n")[:1] in (b"{", b"[")
