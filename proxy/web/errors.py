"""One table: which HTTP status and which OCI error code an exception is.

Source: OCI distribution spec, "Error codes"; no others are used.
"""

import math

import msgspec

from proxy.errors import (
    BlobUnknown,
    ContentError,
    Denied,
    DigestInvalid,
    ManifestUnknown,
    NameInvalid,
    NameUnknown,
    NotCached,
    OriginDown,
    RangeNotSatisfiable,
    RateLimited,
    RegistryCacheError,
    TagInvalid,
    Unauthorized,
    Unsupported,
    UpstreamBusy,
    UpstreamError,
)
from proxy.events import Kind

# None: the code that says of the kind of thing asked for that it could not be had.
_TABLE: dict[type[RegistryCacheError], tuple[int, str | None]] = {
    NameInvalid: (400, "NAME_INVALID"),
    NameUnknown: (404, "NAME_UNKNOWN"),
    TagInvalid: (404, "MANIFEST_UNKNOWN"),  # a tag outside the grammar cannot exist
    DigestInvalid: (400, "DIGEST_INVALID"),
    Unsupported: (405, "UNSUPPORTED"),
    RangeNotSatisfiable: (416, "SIZE_INVALID"),
    NotCached: (504, None),  # RFC 9111, section 5.2.1.7
    ManifestUnknown: (404, "MANIFEST_UNKNOWN"),
    BlobUnknown: (404, "BLOB_UNKNOWN"),
    Unauthorized: (401, "UNAUTHORIZED"),
    Denied: (403, "DENIED"),
    RateLimited: (429, "TOOMANYREQUESTS"),
    OriginDown: (503, None),
    UpstreamBusy: (503, None),
    UpstreamError: (502, None),
    ContentError: (502, None),
    RegistryCacheError: (500, None),
}
_CODE_OF_KIND: dict[Kind, str] = {"blob": "BLOB_UNKNOWN", "manifest": "MANIFEST_UNKNOWN"}


def rendered(error: RegistryCacheError, kind: Kind) -> tuple[int, bytes, dict[str, str]]:
    """Status, JSON body and headers for *error*.

    No challenge goes with a 401: dockerd would answer it with the user's own Hub credential.
    """
    status, code = next(_TABLE[cls] for cls in type(error).__mro__ if cls in _TABLE)
    headers = {}
    if isinstance(error, RangeNotSatisfiable):
        headers["Content-Range"] = f"bytes */{error.size_bytes}"
    if isinstance(error, Unsupported):
        headers["Allow"] = "GET, HEAD"
    if isinstance(error, UpstreamError) and error.retry_in_seconds > 0:
        headers["Retry-After"] = str(math.ceil(error.retry_in_seconds))
    return status, error_body(code or _CODE_OF_KIND.get(kind, "NAME_UNKNOWN"), str(error)), headers


def error_body(code: str, message: str) -> bytes:
    """The OCI error form."""
    return msgspec.json.encode({"errors": [{"code": code, "message": message, "detail": None}]})
