"""The answer of a token service: the token counts, the rest is forgiven.

Source: distribution docs, "Token Authentication Specification".
"""

import math
from typing import Any

import msgspec

from registry_cache.model.errors import ContentError, UpstreamError
from registry_cache.model.foreign import read_json

DEFAULT_SECONDS = 60.0
# A token is left this long before it expires: the request it is for has to arrive in time.
_EXPIRY_MARGIN_SECONDS = 10.0
_MAX_SECONDS = 24 * 3600.0
_TOKEN_MAX_CHARACTERS = 64 * 1024


class _Raw(msgspec.Struct):
    token: Any = None
    access_token: Any = None
    expires_in: msgspec.Raw = msgspec.Raw(b"")  # whose number may be of any length


class Token(msgspec.Struct, frozen=True):
    """What came, and for how long it may be used, counted from its receipt: the two clocks need not agree."""

    value: str
    seconds: float


def parse_token(body: bytes) -> Token:
    """The token in *body*.

    Raises:
        UpstreamError: there is none.
    """
    try:
        raw = read_json(body, _Raw)
    except ContentError as error:
        raise UpstreamError("the token service sent no token") from error
    for value in (raw.token, raw.access_token):
        if isinstance(value, str) and value.isascii() and value.isprintable() and " " not in value.strip():
            text = value.strip()
            if 0 < len(text) <= _TOKEN_MAX_CHARACTERS:
                return Token(text, _seconds(bytes(raw.expires_in)))
    raise UpstreamError("the token service sent no token")


def _seconds(raw: bytes) -> float:
    """For how long the token is used, from ``expires_in`` as a number or a text; the default where it is neither."""
    try:
        said = float(raw.strip().strip(b'"').decode("ascii")[:32])
    except (ValueError, UnicodeDecodeError):
        said = 0.0
    if not math.isfinite(said) or said <= 0:
        said = DEFAULT_SECONDS
    said = min(said, _MAX_SECONDS)
    # A token that would not outlive the margin is used all the same, for half of its time.
    return max(said - _EXPIRY_MARGIN_SECONDS, said / 2, 1.0)
