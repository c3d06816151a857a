"""What an answer that is no success means: a registry's own no, a refusal of the question, or trouble.

Only a no in a registry's own words counts as one. A firewall's page, a proxy's 403 and a load balancer's 404 say
nothing of an image: they are trouble, in which what is cached is served.
"""

import re

from registry_cache.model.errors import (
    BlobUnknown,
    CredentialRefused,
    Denied,
    ManifestUnknown,
    NameUnknown,
    RegistryCacheError,
    UpstreamError,
    UpstreamRefused,
)
from registry_cache.model.events import UpstreamKind
from registry_cache.upstream.headers import Headers, is_json
from registry_cache.upstream.ratelimit import refusal_message
from registry_cache.upstream.redact import Redactor
from registry_cache.upstream.shapes import OciError, oci_error

_MESSAGE_MAX_CHARACTERS = 500
_EXPIRED = re.compile(r"expired|reauthenticate|re-authenticate", re.IGNORECASE)
_CODE = re.compile(r"[A-Z][A-Z0-9_]{1,63}")
NOES = frozenset({401, 403, 404})
# Codes of trouble, which some registries send with a 404.
_TROUBLE = frozenset({"UNKNOWN", "UNAVAILABLE", "UNSUPPORTED"})
_CODES = {401: "UNAUTHORIZED", 403: "DENIED", 405: "UNSUPPORTED", 429: "TOOMANYREQUESTS"}


# The whole of what was asked for; with 203 somebody in between has changed it (RFC 9110, section 15.3.4).
WHOLE = frozenset({200, 203})


def refuses_range(status: int) -> bool:
    """Whether *status*, no success, may be meant for the range only: anything but a limit and trouble, even a 404."""
    return status != 429 and (status < 500 or status in (501, 505))  # noqa: PLR2004 -- HTTP


def refuses_head(status: int, headers: Headers) -> bool:
    """Whether a GET has to find out. A HEAD's 404 is believed if a registry's JSON would have come with it."""
    if status == 404:  # noqa: PLR2004 -- HTTP
        return not is_json(headers)
    return (status // 100 in (2, 4) and status != 429) or status == 501  # noqa: PLR2004 -- HTTP


def own_words(status: int, body: bytes) -> OciError | None:
    """A registry's own no; None where *body* is another's, or tells of trouble."""
    said = oci_error(body)
    is_trouble = said is not None and status == 404 and said.code in _TROUBLE  # noqa: PLR2004 -- HTTP
    return None if is_trouble else said


def message_of(body: bytes, redactor: Redactor) -> str:
    """What an error's body says, fit to be shown."""
    return redactor.clean(" ".join(refusal_message(body).split()))[:_MESSAGE_MAX_CHARACTERS]


def meaning(
    kind: UpstreamKind, status: int, body: bytes, *, repository: str, with_account: bool, redactor: Redactor
) -> RegistryCacheError:
    """The error that stands for an answer which is neither a success nor a limit."""
    message, oci, own = message_of(body, redactor), oci_error(body), own_words(status, body)
    if status in NOES and own is not None:
        return own_no(kind, status, own, message, repository=repository, with_account=with_account)
    if status == 404 and kind.endswith("head"):  # noqa: PLR2004 -- HTTP
        return unknown(kind, "")
    text = f"upstream answered {status}" + (f": {message}" if message else "")
    if status // 100 == 4 and status not in (401, 407, 408):  # noqa: PLR2004 -- HTTP
        said = redactor.clean(oci.code) if oci is not None else ""
        named = _unknown_code(kind) if status == 404 else _CODES.get(status, "UNSUPPORTED")  # noqa: PLR2004 -- HTTP
        return UpstreamRefused(text, status=status, code=said if _CODE.fullmatch(said) else named)
    return UpstreamError(text)


def own_no(
    kind: UpstreamKind, status: int, oci: OciError, message: str, *, repository: str, with_account: bool
) -> RegistryCacheError:
    """What a registry's own no means."""
    if status == 404:  # noqa: PLR2004 -- HTTP
        return NameUnknown(message) if oci.code == "NAME_UNKNOWN" else unknown(kind, message)
    if with_account and _EXPIRED.search(message):
        return CredentialRefused(f"upstream says that the account's token has expired: {message}")
    if status == 403:  # noqa: PLR2004 -- HTTP
        return Denied(message or "upstream refuses access")
    # Hub says "authentication required" of a name that does not exist, too.
    return NameUnknown(_no_such_name(repository, message, with_account=with_account))


def _no_such_name(repository: str, message: str, *, with_account: bool) -> str:
    text = "no such image, or a private one that " + (
        "this account may not read" if with_account else "only an account may read (USERNAME, PASSWORD_FILE)"
    )
    if repository and "/" not in repository:
        text += f"; Docker Hub's official images are called library/{repository}"
    return text + (f" ({message})" if message else "")


def unknown(kind: UpstreamKind, message: str) -> RegistryCacheError:
    """What was asked for does not exist."""
    return (BlobUnknown if kind.startswith("blob") else ManifestUnknown)(message or "upstream does not know it")


def _unknown_code(kind: UpstreamKind) -> str:
    return {"b": "BLOB_UNKNOWN", "m": "MANIFEST_UNKNOWN"}.get(kind[0], "NAME_UNKNOWN")
