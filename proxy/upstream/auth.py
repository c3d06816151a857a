"""Tokens: from a 401's challenge to the ``Authorization`` header of the next try.

The credential goes to realms that the configuration trusts, over TLS unless upstream itself is plain http, and nowhere
else. Source: distribution docs, "Token Authentication Specification".
"""

import asyncio
import base64
import functools
import time
import urllib.request
from collections.abc import Awaitable, Callable, Collection
from datetime import datetime
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlencode, urlsplit

import aiofiles
import msgspec
from cachetools import LRUCache, TLRUCache
from publicsuffixlist import PublicSuffixList

from proxy import events
from proxy.errors import CredentialRefused, Unauthorized, UpstreamError
from proxy.singleflight import SingleFlight

_DEFAULT_TOKEN_SECONDS = 60.0
# A token is left this long before it expires: the request it is for has to arrive in time.
_EXPIRY_MARGIN_SECONDS = 10.0
# Hub locks an account for about ten minutes after repeated login failures (hub-feedback#2201).
REJECTED_SECONDS = 900.0
_SECRET_MAX_BYTES = 64 * 1024


class Credential(NamedTuple):
    """The account for upstream; the secret is read when it is needed, so that a rotated one is picked up."""

    username: str
    password_file: Path

    async def basic(self) -> str:
        """The value of an ``Authorization: Basic`` header.

        Raises:
            CredentialRefused: there is no readable secret in the file.
        """
        try:
            async with aiofiles.open(self.password_file, "rb") as file:
                secret = (await file.read(_SECRET_MAX_BYTES)).strip()
        except OSError as error:
            raise CredentialRefused(f"PASSWORD_FILE {self.password_file}: {error.strerror}") from error
        if not secret:
            raise CredentialRefused(f"PASSWORD_FILE {self.password_file} is empty")
        return "Basic " + base64.b64encode(self.username.encode() + b":" + secret).decode()


class Challenge(NamedTuple):
    """A parsed ``WWW-Authenticate`` header."""

    scheme: str  # lower case
    realm: str
    service: str
    scope: str
    error: str

    @classmethod
    def parse(cls, header: str) -> "Challenge | None":
        """The challenge, or None where it makes no sense."""
        scheme, _, rest = header.strip().partition(" ")
        try:
            fields = urllib.request.parse_keqv_list(urllib.request.parse_http_list(rest))
        except (ValueError, IndexError):
            return None
        values = [fields.get(name, "") for name in ("realm", "service", "scope", "error")]
        return cls(scheme.lower(), *values)


class _RawToken(msgspec.Struct):
    token: str = ""
    access_token: str = ""
    expires_in: float = _DEFAULT_TOKEN_SECONDS
    issued_at: str = ""


class _Token(NamedTuple):
    header: str
    expires_at: float  # monotonic seconds


class TokenReply(NamedTuple):
    """What came back from a token service; the body is capped by whoever fetched it."""

    status: int
    body: bytes


class RealmTrust:
    """Which hosts may see the credential.

    Upstream's own host on any port, hosts that share its registrable domain, and hosts that are named.
    """

    def __init__(self, upstream: str, trusted_hosts: Collection[str]) -> None:
        parts = urlsplit(upstream)
        self._host = (parts.hostname or "").lower()
        self._scheme = parts.scheme
        self._trusted = {host.lower() for host in trusted_hosts}

    @functools.cached_property
    def _suffixes(self) -> PublicSuffixList:
        return PublicSuffixList()  # reads ten thousand rules, 36 ms: not while the cache starts

    def allows(self, realm: str) -> bool:
        """Whether *realm* (a URL) may be sent the credential. Not on the event loop: the first call takes a while."""
        try:
            parts = urlsplit(realm)
        except ValueError:
            return False
        host = (parts.hostname or "").lower()
        if not host or parts.scheme not in ("https", "http") or (parts.scheme == "http" and self._scheme != "http"):
            return False
        if host == self._host or host in self._trusted or parts.netloc.lower() in self._trusted:
            return True
        ours, theirs = self._domain(self._host), self._domain(host)
        return ours is not None and ours == theirs

    def _domain(self, host: str) -> str | None:
        if host.replace(".", "").isdecimal() or ":" in host:
            return None  # an address has no domain
        domain: str | None = self._suffixes.privatesuffix(host, accept_unknown=False)
        return domain


class Authenticator:
    """Answers challenges, and remembers tokens until shortly before they expire.

    Args:
        fetch: GET of a token URL with the given ``Authorization`` header, or without one.
    """

    def __init__(
        self,
        *,
        credential: Credential | None,
        trust: RealmTrust,
        anonymous_fallback: bool,
        fetch: Callable[[str, str | None], Awaitable[TokenReply]],
        events: events.Events,
    ) -> None:
        self._credential = credential
        self._trust = trust
        self._anonymous_fallback = anonymous_fallback
        self._fetch = fetch
        self._events = events
        self._tokens: TLRUCache[Challenge, _Token] = TLRUCache(
            4096, ttu=lambda _key, token, _now: token.expires_at, timer=time.monotonic
        )
        self._challenges: LRUCache[str, Challenge] = LRUCache(4096)
        self._template: tuple[str, Challenge] | None = None
        self._fetching: SingleFlight[_Token] = SingleFlight()
        self._rejected: tuple[str, float] | None = None  # the Basic header that was rejected, until (monotonic)

    @property
    def credential_rejected(self) -> bool:
        """Whether the token service refused the configured account when it was last asked."""
        return self._rejected is not None

    async def aclose(self) -> None:
        """Stop token requests that nobody waits for any more."""
        await self._fetching.aclose()

    async def header(self, repository: str) -> str | None:
        """The ``Authorization`` that upstream is expected to want for *repository*; None when it has not said yet.

        Saves the round trip of a 401 for each new repository: what was learnt from one holds for the next.
        """
        challenge = self._challenges.get(repository)
        if challenge is None and self._template is not None:
            known, template = self._template
            challenge = template._replace(scope=template.scope.replace(f":{known}:", f":{repository}:"))
        return await self._answer(challenge) if challenge is not None else None

    async def answer(self, header: str, repository: str, *, refused: str | None) -> str | None:
        """The ``Authorization`` that answers the challenge *header*; None when there is none to give.

        Args:
            refused: the header that was sent, if any: its token is worth nothing any more.

        Raises:
            CredentialRefused: the token service does not accept the account.
            UpstreamError: the token service does not answer as it should.
        """
        challenge = Challenge.parse(header)
        if challenge is None or challenge.scheme not in ("bearer", "basic"):
            return None
        key = challenge._replace(error="")
        cached = self._tokens.get(key)
        if cached is not None and cached.header == refused:
            self._tokens.pop(key, None)
        authorization = await self._answer(key)
        if authorization == refused:
            return None
        self._challenges[repository] = key
        if f":{repository}:" in key.scope:
            self._template = (repository, key)
        return authorization

    async def _answer(self, challenge: Challenge) -> str | None:
        if challenge.scheme == "basic":
            # The registry itself asks: that is upstream's own host, which the credential is for.
            return await self._basic_unless_rejected()
        token = self._tokens.get(challenge)
        if token is None:
            token = (await self._fetching.do(challenge, lambda: self._token(challenge))).value
        return token.header

    async def _basic_unless_rejected(self) -> str | None:
        if self._credential is None:
            return None
        basic = await self._credential.basic()
        if self._rejected is not None:
            header, until = self._rejected
            if header == basic and time.monotonic() < until:
                if self._anonymous_fallback:
                    return None
                raise CredentialRefused(
                    f"upstream rejected the credential of {self._credential.username!r}: "
                    "check USERNAME and PASSWORD_FILE; it is tried again when the file changes or some minutes later"
                )
        return basic

    async def _token(self, challenge: Challenge) -> _Token:
        basic = await self._basic_unless_rejected()
        if basic is not None and not await asyncio.to_thread(self._trust.allows, challenge.realm):
            self._events.emit(events.CredentialWithheld(realm=challenge.realm[:300]))
            basic = None
        query = {name: value for name in ("service", "scope") if (value := getattr(challenge, name))}
        url = challenge.realm + ("&" if "?" in challenge.realm else "?") + urlencode(query)
        reply = await self._fetch(url, basic)
        if reply.status in (401, 403) and basic is not None and self._credential is not None:
            self._rejected = (basic, time.monotonic() + REJECTED_SECONDS)
            self._events.emit(
                events.CredentialRejected(
                    realm=challenge.realm,
                    username=self._credential.username,
                    message=reply.body[:200].decode(errors="replace"),
                    retry_in_seconds=REJECTED_SECONDS,
                )
            )
            await self._basic_unless_rejected()  # raises, unless anonymous access is to be tried
            reply = await self._fetch(url, None)
        elif reply.status == 200 and basic is not None:  # noqa: PLR2004 -- HTTP
            self._rejected = None
        token = self._tokens[challenge] = _parse_token(reply)
        return token


def _parse_token(reply: TokenReply) -> _Token:
    if reply.status in (401, 403):
        raise Unauthorized("the token service refuses anonymous access")
    if reply.status != 200:  # noqa: PLR2004 -- HTTP
        raise UpstreamError(f"the token service answered {reply.status}")
    try:
        raw = msgspec.json.decode(reply.body, type=_RawToken)
    except msgspec.MsgspecError as error:
        raise UpstreamError(f"the token service sent no token: {error}") from error
    token = raw.token or raw.access_token
    if not token or not token.isascii() or not token.isprintable():
        raise UpstreamError("the token service sent no token")
    seconds = raw.expires_in - _age_seconds(raw.issued_at)
    # Clocks differ: a token that seems to be expired on arrival is used once more for the request it was fetched for.
    seconds = max(seconds - _EXPIRY_MARGIN_SECONDS, seconds / 2, 1.0)
    return _Token(f"Bearer {token}", time.monotonic() + seconds)


def _age_seconds(issued_at: str) -> float:
    try:
        age = time.time() - datetime.fromisoformat(issued_at).timestamp()
    except ValueError:
        return 0.0
    return min(max(0.0, age), 3600.0)
