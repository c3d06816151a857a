"""Tokens of our own: who has logged in, signed, for some minutes. They say nothing of what may be pulled: rules do.

Source: distribution docs, "Token authentication". The realm is here, so that nobody else has to read them.
"""

import base64
import binascii
import contextlib
import hmac
import os
import secrets
from collections.abc import Callable
from pathlib import Path

TOKEN_SECONDS = 300
_VERSION = "rc1"
_KEY_BYTES = 32
_TOKEN_MAX = 700


class Tokens:
    """Makes tokens and reads them.

    Args:
        key: 32 secret bytes.
        kept: what a user's password hashes to, None for nobody's name. It goes into the signature: with another
            password, or without the user, a token is none any more.
        now: Unix seconds.
    """

    def __init__(self, key: bytes, kept: Callable[[str], bytes | None], now: Callable[[], float]) -> None:
        self.key = key
        self._kept = kept
        self._now = now

    def make(self, user: str) -> str:
        """A token of *user*; of nobody, where that is empty."""
        name = base64.urlsafe_b64encode(user.encode("utf-8", "surrogatepass")).decode().rstrip("=")
        said = f"{_VERSION}.{name}.{int(self._now()) + TOKEN_SECONDS}"
        return f"{said}.{self._signature(said, user)}"

    def user(self, token: str) -> tuple[str, float] | None:
        """Whose it is (empty: nobody's), and until when (Unix seconds); None if it is none, or over."""
        said, _, signature = token.rpartition(".")
        version, _, rest = said.partition(".")
        name, _, end = rest.partition(".")
        if len(token) > _TOKEN_MAX or not token.isascii() or version != _VERSION or not end.isdecimal():
            return None
        try:
            user = base64.urlsafe_b64decode(name + "=" * (-len(name) % 4)).decode("utf-8", "surrogatepass")
        except (binascii.Error, UnicodeDecodeError):
            return None
        if not hmac.compare_digest(self._signature(said, user), signature) or int(end) <= self._now():
            return None
        return (user, float(end)) if not user or self._kept(user) is not None else None

    def _signature(self, said: str, user: str) -> str:
        kept = (self._kept(user) if user else None) or b""
        digest = hmac.digest(self.key, said.encode() + b"\0" + kept, "sha256")
        return base64.urlsafe_b64encode(digest).decode().rstrip("=")


def kept_key(path: Path) -> bytes:
    """The key in the file *path*, which is made if need be: tokens outlive a restart.

    Where it can be neither read nor written, one for this process.
    """
    with contextlib.suppress(OSError):
        key = path.read_bytes()
        if len(key) == _KEY_BYTES:
            return key
    key = secrets.token_bytes(_KEY_BYTES)
    with contextlib.suppress(OSError):
        new = path.with_name(f".{path.name}.new")
        new.unlink(missing_ok=True)
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "wb") as file:
            file.write(key)
        new.replace(path)
    return key
