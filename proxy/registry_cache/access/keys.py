"""The public keys of an issuer: fetched when they are needed, kept for an hour, and for a day while it is away."""

import time
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from registry_cache.model.errors import RegistryCacheError
from registry_cache.runtime.singleflight import SingleFlight

_FRESH_SECONDS = 3600.0
_KNOWN_SECONDS = 24 * 3600.0
# A token with a key that is not known may be made up: it causes no more questions than this.
_AGAIN_SECONDS = 60.0
_KEYS_MAX = 64


class Key(msgspec.Struct, frozen=True):
    """A public key, of the forms that are understood here. Source: RFC 7517, RFC 7518, RFC 8037."""

    kty: str
    kid: str = ""
    use: str = "sig"
    crv: str = ""
    n: str = ""
    e: str = ""
    x: str = ""
    y: str = ""


class Keys:
    """See the module. Whoever makes it closes it.

    Args:
        fetch: asks the issuer for its key set, and gives it as it came (JSON); it may raise RegistryCacheError.
        failed: told why the issuer could not be asked.
        now: monotonic seconds.
    """

    def __init__(
        self,
        fetch: Callable[[], Awaitable[bytes]],
        *,
        failed: Callable[[str], None],
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._fetch = fetch
        self._failed = failed
        self._now = now
        self._keys: tuple[Key, ...] = ()
        self._fetched_at: float | None = None
        self._asked_at: float | None = None
        self._flights: SingleFlight[None] = SingleFlight()

    async def aclose(self) -> None:
        """Stop asking."""
        await self._flights.aclose()

    async def of(self, kid: str) -> list[Key]:
        """The keys that may have signed a token with that ``kid``; all where it is empty. None, if none is known."""
        if self._age() > _FRESH_SECONDS or not self._known(kid):
            await self._flights.do("", self._ask)
        return self._known(kid)

    def _known(self, kid: str) -> list[Key]:
        if self._age() > _KNOWN_SECONDS:
            return []
        return [key for key in self._keys if not kid or key.kid in ("", kid)]

    def _age(self) -> float:
        return float("inf") if self._fetched_at is None else self._now() - self._fetched_at

    async def _ask(self) -> None:
        now = self._now()
        if self._asked_at is not None and now - self._asked_at < _AGAIN_SECONDS:
            return
        self._asked_at = now
        try:
            found = read_keys(await self._fetch())
        except RegistryCacheError as error:
            self._failed(str(error))
            return
        self._keys, self._fetched_at = found, now


def read_keys(content: bytes) -> tuple[Key, ...]:
    """The keys in a key set; what is there of other kinds is left out.

    Raises:
        RegistryCacheError: it is none.
    """
    try:
        found = msgspec.json.decode(content, type=_KeySet)
    except msgspec.MsgspecError as error:
        raise RegistryCacheError(f"its keys cannot be read: {error}") from error
    keys = []
    for raw in found.keys[:_KEYS_MAX]:
        try:
            key = msgspec.convert(raw, Key)
        except msgspec.ValidationError:
            continue
        if key.kty in ("RSA", "EC", "OKP") and key.use == "sig":
            keys.append(key)
    return tuple(keys)


class _KeySet(msgspec.Struct):
    keys: list[dict[str, Any]]
