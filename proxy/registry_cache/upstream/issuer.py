"""Where an issuer of tokens says which keys are its own.

Source: OpenID Connect Discovery 1.0, section 4; Kubernetes, "Service account issuer discovery".
"""

import asyncio
import contextlib
from pathlib import Path
from urllib.parse import urlsplit

import aiofiles
import msgspec

from registry_cache.model.errors import UpstreamError
from registry_cache.upstream.addresses import AddressRules
from registry_cache.upstream.ask import Ask
from registry_cache.upstream.dialling import Dialling
from registry_cache.upstream.redact import Redactor
from registry_cache.upstream.tls import tls_context
from registry_cache.upstream.transport import SmallClient
from registry_cache.upstream.urls import origin_of

_ANSWER_MAX_BYTES = 256 * 1024
_STEP_SECONDS = 5.0
_ALL_SECONDS = 10.0
_SECRET_MAX_BYTES = 16 * 1024
_DISCOVERY = "/.well-known/openid-configuration"


class _Configuration(msgspec.Struct):
    issuer: str
    jwks_uri: str


class IssuerKeys:
    """Asks one issuer for its keys. Made on the event loop that uses it; whoever makes it closes it.

    Args:
        issuer: its URL, as its tokens have it.
        keys_url: where the keys are, if the issuer need not be asked for that.
        ca_file: see :func:`registry_cache.upstream.tls.tls_context`.
        token_file: what the issuer wants to see before it tells; goes nowhere else.
    """

    def __init__(
        self, issuer: str, *, keys_url: str | None = None, ca_file: Path | None = None, token_file: Path | None = None
    ) -> None:
        self._issuer = issuer
        self._keys_url = keys_url
        self._token_file = token_file
        self._home = origin_of(keys_url or issuer)
        dialling = Dialling(
            tls_context(ca_file),
            AddressRules(keys_url or issuer, []),
            Redactor(),
            connect_timeout_seconds=_STEP_SECONDS,
            read_timeout_seconds=_STEP_SECONDS,
        )
        self._client = SmallClient(dialling, connections=2)

    async def aclose(self) -> None:
        """Close its connections."""
        await self._client.aclose()

    async def fetch(self) -> bytes:
        """The key set, as it came.

        Raises:
            UpstreamError: the issuer did not give it.
        """
        try:
            async with asyncio.timeout(_ALL_SECONDS):
                return await self._get(self._keys_url or await self._discovered())
        except TimeoutError as error:
            raise UpstreamError(f"{self._issuer} took too long to say its keys") from error

    async def _discovered(self) -> str:
        content = await self._get(self._issuer.rstrip("/") + _DISCOVERY)
        try:
            found = msgspec.json.decode(content, type=_Configuration)
        except msgspec.MsgspecError as error:
            raise UpstreamError(f"{self._issuer}: {_DISCOVERY} cannot be read") from error
        if found.issuer != self._issuer:
            raise UpstreamError(f"{self._issuer}: {_DISCOVERY} is another issuer's")
        # From https nothing leads to what can be changed on the way.
        if urlsplit(found.jwks_uri).scheme not in {"https", urlsplit(self._issuer).scheme}:
            raise UpstreamError(f"{self._issuer}: its keys are not behind https")
        return found.jwks_uri

    async def _get(self, url: str) -> bytes:
        headers = {"Accept": "application/json"}
        if self._token_file is not None and origin_of(url) == self._home:
            headers["Authorization"] = f"Bearer {await _secret(self._token_file)}"
        reply = await self._client.send(Ask("GET", url, "", headers))
        async with contextlib.aclosing(reply):
            if reply.status != 200:  # noqa: PLR2004 -- HTTP
                raise UpstreamError(f"{origin_of(url)} answered {reply.status} instead of saying its keys")
            return await reply.read_small(_ANSWER_MAX_BYTES)


async def _secret(path: Path) -> str:
    try:
        async with aiofiles.open(path, encoding="ascii") as file:
            return (await file.read(_SECRET_MAX_BYTES)).strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UpstreamError(f"{path}: {error}") from error
