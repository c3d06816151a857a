"""One table: which HTTP status and which OCI error code an exception is.

Source: OCI distribution spec, "Error codes". Where none of them is true, the codes that registry:2 has for it:
``UNAVAILABLE`` while upstream cannot be asked, ``UNKNOWN`` for a fault of ours; and ``BAD_REQUEST``.
"""

import math

import msgspec

from registry_cache.model.errors import (
    BadRequest,
    BlobUnknown,
    ContentError,
    CrossSite,
    Denied,
    DigestInvalid,
    LimitReached,
    LoginNeeded,
    ManifestUnknown,
    Misdirected,
    NameInvalid,
    NameUnknown,
    NotCached,
    OperatorsOnly,
    OriginDown,
    RangeNotSatisfiable,
    RateLimited,
    RegistryCacheError,
    TagInvalid,
    TooManyLogins,
    Unauthorized,
    Unsupported,
    UpstreamBusy,
    UpstreamError,
    UpstreamRefused,
)
from registry_cache.model.events import Kind
from registry_cache.model.units import well_formed

# None: the code that says of the kind of thing asked for that it is not known.
_TABLE: dict[type[RegistryCacheError], tuple[int, str | None]] = {
    BadRequest: (400, "BAD_REQUEST"),
    CrossSite: (403, "DENIED"),
    Misdirected: (421, "DENIED"),
    OperatorsOnly: (403, "DENIED"),
    LoginNeeded: (401, "UNAUTHORIZED"),
    TooManyLogins: (429, "TOOMANYREQUESTS"),
    LimitReached: (429, "TOOMANYREQUESTS"),
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
    OriginDown: (503, "UNAVAILABLE"),
    UpstreamBusy: (503, "UNAVAILABLE"),
    UpstreamError: (502, "UNAVAILABLE"),
    ContentError: (502, "UNAVAILABLE"),
    RegistryCacheError: (500, "UNKNOWN"),
}
_CODE_OF_KIND: dict[Kind, str] = {"blob": "BLOB_UNKNOWN", "manifest": "MANIFEST_UNKNOWN"}


def rendered(error: RegistryCacheError, kind: Kind, hint: str = "") -> tuple[int, bytes, dict[str, str]]:
    """Status, JSON body and headers for *error*; *hint* goes behind its text.

    No challenge goes with a 401 here: dockerd would answer it with the user's own Hub credential. Where the cache has
    users of its own, ``web/identity.py`` adds one.
    """
    status, code = next(_TABLE[cls] for cls in type(error).__mro__ if cls in _TABLE)
    headers = {}
    if isinstance(error, UpstreamRefused):
        status, code = error.status, error.code
    if isinstance(error, RangeNotSatisfiable):
        headers["Content-Range"] = f"bytes */{error.size_bytes}"
    if isinstance(error, Unsupported):
        headers["Allow"] = "GET, HEAD"
    if isinstance(error, TooManyLogins):
        headers["Retry-After"] = "5"
    if isinstance(error, LimitReached):
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_in_seconds)))
    if isinstance(error, UpstreamError) and error.told_seconds > 0:
        headers["Retry-After"] = str(math.ceil(error.told_seconds))
    return status, error_body(code or _CODE_OF_KIND.get(kind, "NAME_UNKNOWN"), f"{error}{hint}"), headers


def error_body(code: str, message: str) -> bytes:
    """The OCI error form."""
    return msgspec.json.encode({"errors": [{"code": code, "message": well_formed(message), "detail": None}]})
