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

import msgspec

from registry_cache.access.client_login import ClientLogin, Vault
from registry_cache.access.rules import Vouched
from registry_cache.model.errors import LoginNeeded

TOKEN_SECONDS = 300
_USER, _VOUCHED, _CLIENT = "rc1", "rc2", "rc3"
_KEY_BYTES = 32
_TOKEN_MAX = 30_000  # a header of a request holds it (web/connection.py); some in front of a cache hold less
Holder = str | Vouched | ClientLogin


class Tokens:
    """Makes tokens and reads them.

    Args:
        key: 32 secret bytes.
        kept: what a user's password hashes to, or what is believed of an issuer; None for nobody's name. It goes into
            the signature: with another password, or without the user, a token is none any more.
        now: Unix seconds.
        vault: of the logins in tokens, if there are any.
    """

    def __init__(
        self,
        key: bytes,
        kept: Callable[[Holder], bytes | None],
        now: Callable[[], float],
        vault: Vault | None = None,
    ) -> None:
        self.key = key
        self._vault = vault
        self._kept = kept
        self._now = now

    def make(self, holder: Holder, *, until: float = float("inf")) -> tuple[str, int]:
        """A token, and for how many seconds it is good.

        Args:
            holder: a user, what an issuer vouches for, or a sealed login at a registry; nobody, where it is empty.
            until: the longest that it may be good (Unix seconds).

        Raises:
            LoginNeeded: it would be too long to be sent.
        """
        now = int(self._now())
        end = max(now, int(min(until, now + TOKEN_SECONDS)))
        said = f"{_written(holder)}.{end}"
        token = f"{said}.{self._signature(said, holder)}"
        if len(token) > _TOKEN_MAX:
            raise LoginNeeded("rules ask for more of this token than fits into one of ours: log in with each request")
        return token, end - now

    def holder(self, token: str) -> tuple[Holder, float] | None:
        """Whose it is (empty: nobody's), and until when (Unix seconds); None if it is none, or over."""
        said, _, signature = token.rpartition(".")
        written, _, end = said.rpartition(".")
        if len(token) > _TOKEN_MAX or not token.isascii() or not end.isdecimal():
            return None
        holder = self._read(written)
        if holder is None or not hmac.compare_digest(self._signature(said, holder), signature):
            return None
        if int(end) <= self._now() or (holder and self._kept(holder) is None):
            return None
        return holder, float(end)

    def _signature(self, said: str, holder: Holder) -> str:
        kept = (self._kept(holder) if holder else None) or b""
        digest = hmac.digest(self.key, said.encode() + b"\0" + kept, "sha256")
        return base64.urlsafe_b64encode(digest).decode().rstrip("=")

    def _read(self, written: str) -> Holder | None:
        version, _, name = written.partition(".")
        try:
            content = base64.urlsafe_b64decode(name + "=" * (-len(name) % 4))
            if version == _VOUCHED:
                return msgspec.json.decode(content, type=Vouched)
            if version == _CLIENT:
                return None if self._vault is None else self._vault.opened(content)
            return content.decode("utf-8", "surrogatepass") if version == _USER else None
        except (binascii.Error, UnicodeDecodeError, msgspec.MsgspecError):
            return None


def _written(holder: Holder) -> str:
    if isinstance(holder, Vouched):
        version, content = _VOUCHED, msgspec.json.encode(holder)
    elif isinstance(holder, ClientLogin):
        version, content = _CLIENT, holder.sealed
    else:
        version, content = _USER, holder.encode("utf-8", "surrogatepass")
    return f"{version}.{base64.urlsafe_b64encode(content).decode().rstrip('=')}"


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
