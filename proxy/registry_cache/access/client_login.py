"""A client's own login at a registry, for as long as it is remembered: sealed, and known by a keyed hash.

Nothing holds it in clear but the request that it came with and the one that it is sent with. The keys are this
process's: after a restart nobody can open what an earlier one has sealed.
"""

import base64
import hmac
import secrets
from typing import Any

import msgspec

_NONCE_BYTES = 12
_ID_BYTES = 16
_SEALED_MAX = 4500  # what is in a token of ours; the longest passwords are signed tokens of some kilobytes


class ClientLogin:
    """See the module. Two of them are equal when user, password and registry are.

    Attributes:
        id: a keyed hash of all three; empty for nobody's.
        user_id: one of user and registry.
        registry: what it is for. It goes nowhere else.
        sealed: encrypted; nothing but :attr:`basic` opens it.
    """

    __slots__ = ("_vault", "id", "registry", "sealed", "user_id")

    def __init__(self, vault: "Vault", registry: str, ids: tuple[bytes, bytes], sealed: bytes) -> None:
        self._vault = vault
        self.registry = registry
        self.id, self.user_id = ids
        self.sealed = sealed

    def __repr__(self) -> str:
        return f"<ClientLogin {self.name} at {self.registry}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ClientLogin) and (self.id, self.registry) == (other.id, other.registry)

    def __hash__(self) -> int:
        return hash((self.id, self.registry))

    def __reduce__(self) -> Any:
        raise TypeError("a login is not written down")

    @property
    def is_nobody(self) -> bool:
        """Whether it is what those have who have none."""
        return not self.id

    @property
    def nobody(self) -> "ClientLogin":
        """What those have at the same registry who have none."""
        return self._vault.nobody(self.registry)

    @property
    def name(self) -> str:
        """For the log: it tells one from another, and nothing of what is in it."""
        return f"login {self.id[:6].hex()}" if self.id else "nobody"

    @property
    def login(self) -> tuple[str, str]:
        """User and password, in clear: for the moment in which they are sent."""
        return self._vault.unsealed(self)

    @property
    def basic(self) -> str | None:
        """The ``Authorization`` that it is sent as; None for nobody's."""
        if self.is_nobody:
            return None
        return "Basic " + base64.b64encode(":".join(self.login).encode("utf-8", "surrogatepass")).decode()


class Vault:
    """Seals logins and opens them. One a process."""

    def __init__(self) -> None:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # noqa: PLC0415 -- 30 ms, where it is used

        self._cipher = AESGCM(secrets.token_bytes(32))
        self._key = secrets.token_bytes(32)
        self._nobody: dict[str, ClientLogin] = {}  # by registry

    def sealed(self, registry: str, user: str, password: str) -> ClientLogin | None:
        """A login at *registry*; None if it is longer than any."""
        nonce = secrets.token_bytes(_NONCE_BYTES)
        content = msgspec.json.encode([registry, *(_bytes(text) for text in (user, password))])
        sealed = nonce + self._cipher.encrypt(nonce, content, None)
        return self._made(registry, user, password, sealed) if len(sealed) <= _SEALED_MAX else None

    def nobody(self, registry: str) -> ClientLogin:
        """What those have at *registry* who have no login there."""
        found = self._nobody.get(registry)
        if found is None:
            found = self._nobody[registry] = ClientLogin(self, registry, (b"", b""), b"")
        return found

    def opened(self, sealed: bytes) -> ClientLogin | None:
        """What this process has sealed; None if it has not."""
        content = self._content(sealed)
        return None if content is None else self._made(*content, sealed)

    def unsealed(self, login: ClientLogin) -> tuple[str, str]:
        """User and password."""
        content = self._content(login.sealed)
        return ("", "") if content is None else content[1:]

    def _content(self, sealed: bytes) -> tuple[str, str, str] | None:
        from cryptography.exceptions import InvalidTag  # noqa: PLC0415 -- as above

        try:
            content = self._cipher.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], None)
        except (InvalidTag, ValueError):
            return None
        registry, user, password = msgspec.json.decode(content, type=tuple[str, bytes, bytes])
        return registry, _text(user), _text(password)

    def _made(self, registry: str, user: str, password: str, sealed: bytes) -> ClientLogin:
        return ClientLogin(self, registry, (self._hash(registry, user, password), self._hash(registry, user)), sealed)

    def _hash(self, *texts: str) -> bytes:
        whole = b"".join(len(each).to_bytes(4, "big") + each for each in map(_bytes, texts))
        return hmac.digest(self._key, whole, "sha256")[:_ID_BYTES]


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _text(content: bytes) -> str:
    return content.decode("utf-8", "surrogatepass")
