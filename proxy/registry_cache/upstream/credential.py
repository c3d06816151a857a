"""The account for upstream, and who may see it."""

import base64
import functools
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple, Protocol
from urllib.parse import urlsplit

import aiofiles
from publicsuffixlist import PublicSuffixList

from registry_cache.model.errors import CredentialRefused
from registry_cache.runtime.threads import finish

_SECRET_MAX_BYTES = 64 * 1024


# In place of a name. Source: docker/docker-credential-helpers, "Development".
IDENTITY_TOKEN = "<token>"  # noqa: S105 -- a name, not a secret


class Login(NamedTuple):
    """Name and secret, as they are now."""

    username: str
    secret: bytes

    @property
    def is_identity_token(self) -> bool:
        """Whether the secret is an identity token (a refresh token of OAuth 2), as docker login keeps one."""
        return self.username == IDENTITY_TOKEN

    @property
    def basic(self) -> str:
        """The value of an ``Authorization: Basic`` header."""
        return "Basic " + base64.b64encode(self.username.encode() + b":" + self.secret).decode()


class Credential(Protocol):
    """Where an account's login comes from."""

    @property
    def name(self) -> str:
        """Whose it is, for messages."""

    async def login(self) -> Login:
        """The login; raises CredentialRefused where there is none."""

    def refused(self) -> None:
        """The registry does not accept the login."""


class FileCredential(NamedTuple):
    """An account whose secret is in a file; it is read when it is needed, so that a rotated one is picked up."""

    name: str
    password_file: Path

    def refused(self) -> None:
        """The file is read again anyway."""

    async def _secret(self) -> bytes:
        async with aiofiles.open(self.password_file, "rb") as file:
            return (await file.read(_SECRET_MAX_BYTES)).strip()

    async def login(self) -> Login:
        """What is in the file, without the blanks around it.

        Raises:
            CredentialRefused: there is no readable secret in it.
        """
        try:
            secret = await finish(self._secret())  # a file that is opened for nobody is closed by nobody
        except OSError as error:
            raise CredentialRefused(f"PASSWORD_FILE {self.password_file}: {error.strerror}") from error
        if not secret:
            raise CredentialRefused(f"PASSWORD_FILE {self.password_file} is empty")
        return Login(self.name, secret)


class RealmTrust:
    """Which hosts may see the credential.

    Upstream's own host on any port, hosts that share its registrable domain, and hosts that are named.
    """

    def __init__(self, upstream: str, trusted_hosts: Collection[str] = ()) -> None:
        parts = urlsplit(upstream)
        self._host = (parts.hostname or "").lower()
        self._scheme = parts.scheme
        self._trusted = {host.lower() for host in trusted_hosts}

    def allows(self, realm: str) -> bool:
        """Whether *realm* (a URL) may be sent the credential. Not on the event loop: the first call takes a while."""
        try:
            parts = urlsplit(realm)
            host = (parts.hostname or "").lower()
        except ValueError:
            return False
        if not host or parts.scheme not in ("https", "http") or (parts.scheme == "http" and self._scheme != "http"):
            return False
        if host == self._host or host in self._trusted or parts.netloc.lower() in self._trusted:
            return True
        ours, theirs = _domain(self._host), _domain(host)
        return ours is not None and ours == theirs


@functools.cache
def _suffixes() -> PublicSuffixList:
    return PublicSuffixList()  # reads ten thousand rules, 36 ms: not while the cache starts


def _domain(host: str) -> str | None:
    if host.replace(".", "").isdecimal() or ":" in host:
        return None  # an address has no domain
    domain: str | None = _suffixes().privatesuffix(host, accept_unknown=False)
    return domain
