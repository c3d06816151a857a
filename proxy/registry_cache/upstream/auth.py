"""Tokens: from a 401's challenge to the ``Authorization`` header of the next try.

The credential goes to realms that the configuration trusts, over TLS unless upstream itself is plain http, and nowhere
else. Source: distribution docs, "Token Authentication Specification".
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol
from urllib.parse import urlencode

from cachetools import LRUCache, TLRUCache

from registry_cache.model import events
from registry_cache.model.bus import Events
from registry_cache.model.errors import (
    CredentialRefused,
    NameUnknown,
    RateLimited,
    RegistryCacheError,
    UpstreamError,
    UpstreamRefused,
)
from registry_cache.runtime.singleflight import SingleFlight
from registry_cache.upstream.account import Account
from registry_cache.upstream.ask import Ask
from registry_cache.upstream.challenges import Challenge
from registry_cache.upstream.credential import IDENTITY_TOKEN, RealmTrust
from registry_cache.upstream.ratelimit import is_limit
from registry_cache.upstream.redact import Redactor
from registry_cache.upstream.redirected import MAX_REDIRECTS, REDIRECTS, check_downgrade, check_host
from registry_cache.upstream.reply import Reply
from registry_cache.upstream.shapes import is_page, oci_error, parsed_json
from registry_cache.upstream.tokens import parse_token
from registry_cache.upstream.urls import joined, origin_of, shown

# A token that is younger and yet refused is not refused for its age.
_FRESH_SECONDS = 5.0
_MAX_CANDIDATES = 3
_SCHEMES = ("bearer", "basic")  # in the order of preference


class _Key(NamedTuple):
    """What a token is for, and whose it is."""

    challenge: Challenge
    with_account: bool


class _Token(NamedTuple):
    header: str
    received_at: float  # monotonic seconds
    expires_at: float


class Unconfirmed(CredentialRefused):
    """A token service refuses the account, and the registry may name another one by now."""

    def __init__(self, basic: str, realm: str, body: bytes) -> None:
        super().__init__("a token service that upstream named before rejects the credential")
        self.basic = basic
        self.realm = realm
        self.body = body


class TokenReply(NamedTuple):
    """What came back from a token service; the body is capped by whoever fetched it."""

    status: int
    body: bytes
    location: str = ""


class FetchToken(Protocol):
    """GET of a token URL with an ``Authorization`` header, or without one; POST of a form, where there is one.

    Raises RateLimited where the token service says so.
    """

    def __call__(self, url: str, authorization: str | None, form: bytes = b"", /) -> Awaitable[TokenReply]: ...


class Authenticator:
    """Answers challenges, and remembers tokens until shortly before they expire.

    Args:
        tries_again: with a second fresh token where the first one is refused.
    """

    def __init__(
        self,
        *,
        account: Account,
        trust: RealmTrust,
        fetch: FetchToken,
        ping: Callable[[str | None], Awaitable[tuple[int, list[Challenge]]]],
        redactor: Redactor,
        events: Events,
        tries_again: bool = True,
    ) -> None:
        self._tries_again = tries_again
        self._account = account
        self._trust = trust
        self._fetch = fetch
        self._ping = ping
        self._redactor = redactor
        self._events = events
        self._tokens: TLRUCache[_Key, _Token] = TLRUCache(
            4096, ttu=lambda _key, token, _now: token.expires_at, timer=time.monotonic
        )
        self._challenges: LRUCache[str, Challenge] = LRUCache(4096)  # that worked, by repository
        self.known_way: tuple[str, Challenge] | None = None  # a repository, and what was right for it
        self._elsewhere: LRUCache[tuple[str, str], _Key] = LRUCache(1024)  # by origin and repository
        self._fetching: SingleFlight[_Token] = SingleFlight()

    @property
    def credential_rejected(self) -> bool:
        """Whether the configured account was refused when it was last used."""
        return self._account.is_rejected

    def expired(self) -> None:
        """The registry says that the account's login has come of age: who can get another one does."""
        self._account.expired()

    async def aclose(self) -> None:
        """Stop token requests that nobody waits for any more."""
        await self._fetching.aclose()

    # --- upstream's own -----------------------------------------------------------------------------------------

    def assumed(self, repository: str) -> Challenge | None:
        """What upstream is expected to challenge with for *repository*; None when it has not said yet.

        Saves the round trip of a 401 for each new repository: what was learnt from one holds for the next.
        """
        challenge = self._challenges.get(repository)
        if challenge is None and self.known_way is not None:
            known, template = self.known_way
            challenge = template._replace(scope=template.scope.replace(f":{known}:", f":{repository}:"))
        return challenge

    def is_doubtful(self, error: RegistryCacheError) -> bool:
        """Whether *error*, of an assumed challenge, is no news if the registry has another one by now."""
        if isinstance(error, RateLimited):
            return False
        if isinstance(error, UpstreamError):
            return True
        # What the account itself says holds for every realm.
        return self._account.doubts_realms and (
            isinstance(error, Unconfirmed) or not isinstance(error, CredentialRefused)
        )

    def believes_nobody(self, reply: Reply) -> bool:
        """Whether *reply*, to nobody where a login was to be sent, is an answer: not a no, others may see more."""
        if reply.status // 100 == 5 or is_limit(reply.status, reply.headers):  # noqa: PLR2004 -- HTTP
            return True
        return self._account.doubts_realms and reply.status // 100 in (2, 3)

    def offered(self, challenges: Iterable[Challenge], ask: Ask) -> list[Challenge]:
        """What of *challenges* can be answered, in the order of preference."""
        found = [_keyed(challenge, ask.repository) for challenge in challenges if challenge.scheme in _SCHEMES]
        return sorted(dict.fromkeys(found), key=lambda challenge: _SCHEMES.index(challenge.scheme))

    def candidates(
        self, offered: Sequence[Challenge], ask: Ask, sent: str | None, *, with_known: bool
    ) -> list[Challenge]:
        """What may answer a 401, in the order to try; one that is there twice gets a second fresh token.

        The challenge that worked before (*with_known*) comes first: after its token has expired, some registries name
        a realm that refuses everybody (nvcr.io).
        """
        known = self._challenges.get(ask.repository) if with_known else None
        was_fresh = sent is not None and self._is_fresh(sent)
        found = list(dict.fromkeys([*([known] if known is not None else []), *offered]))[:_MAX_CANDIDATES]
        if (
            self._tries_again
            and len(found) == 1
            and ask.method != "HEAD"
            and not was_fresh
            and found[0].scheme == "bearer"
        ):
            found.append(found[0])
        return found

    async def answer(self, challenge: Challenge, tried: Sequence[str], *, is_named: bool) -> str | None:
        """The ``Authorization`` that answers *challenge* and is not among *tried*; None when there is none to give.

        Args:
            is_named: the registry has just made this challenge.

        Raises:
            Unconfirmed: the account is not accepted where the registry has not just named it.
            CredentialRefused: the account is not accepted.
            NameUnknown, Denied: the token service gives none for this name.
            UpstreamError: the token service does not answer as it should.
        """
        if challenge.scheme == "basic":
            # The registry itself asks: that is upstream's own host, which the credential is for.
            basic = await self._account.basic()
            return None if basic in tried else basic
        key = _Key(challenge, with_account=True)
        cached = self._tokens.get(key)
        if cached is not None and cached.header in tried:
            self._tokens.pop(key, None)
        header = await self._bearer(key, is_named=is_named)
        return None if header in tried else header

    def confirmed(self, error: Unconfirmed) -> None:
        """The registry names that token service still."""
        self._account.reject(error.basic, error.realm, error.body)

    def worked(self, repository: str, challenge: Challenge) -> None:
        """Upstream accepted what answered *challenge*."""
        self._challenges[repository] = challenge
        if f":{repository}:" in challenge.scope or challenge.scheme == "basic":
            self.known_way = (repository, challenge)

    def forget(self, repository: str) -> None:
        """What was known of challenges for *repository* is out of date; so may be what holds for new ones."""
        self._challenges.pop(repository, None)
        self.known_way = None

    async def refused(self, tried: Sequence[str]) -> None:
        """Upstream accepts none of *tried*: whether that is the account's fault is found out here.

        Raises:
            CredentialRefused: it is.
        """
        basic = next((header for header in tried if header.startswith("Basic ")), None)
        if basic is not None:
            await self._account.refused_by_registry(basic, lambda: self._login_works_by_basic(basic))

    async def login_works(self, basic: str) -> bool:
        """Whether *basic* is accepted, whichever way the registry asks for it."""
        status, challenges = await self._ping(None)
        bearer = next((challenge for challenge in challenges if challenge.scheme == "bearer"), None)
        if status != 401 or bearer is not None:  # noqa: PLR2004 -- HTTP
            return await self._login_works(basic, (status, challenges))
        return await self._login_works_by_basic(basic)

    async def _login_works_by_basic(self, basic: str) -> bool:
        status, challenges = await self._ping(basic)
        if status == 401 and not challenges:  # noqa: PLR2004 -- HTTP
            raise UpstreamError("something in front of upstream answered 401")  # a registry's has a challenge
        return status != 401  # noqa: PLR2004 -- HTTP

    def _is_fresh(self, header: str) -> bool:
        now = time.monotonic()
        return any(
            token.header == header and now - token.received_at < _FRESH_SECONDS for token in self._tokens.values()
        )

    # --- other hosts --------------------------------------------------------------------------------------------

    def known_elsewhere(self, ask: Ask) -> str | None:
        """The ``Authorization`` that the host of *ask* accepted before for this repository."""
        key = self._elsewhere.get((origin_of(ask.url), ask.repository))
        token = self._tokens.get(key) if key is not None else None
        return token.header if token is not None else None

    async def answer_elsewhere(self, challenges: Iterable[Challenge], ask: Ask) -> str | None:
        """The ``Authorization`` for a host that upstream redirects to; None when there is none to give.

        The account goes there only if that host is trusted with it. Else one anonymous token is asked for, of a token
        service that belongs to that host.
        """
        bearers = [_keyed(challenge, ask.repository) for challenge in challenges if challenge.scheme == "bearer"]
        if not bearers:
            return None
        trusted = await asyncio.to_thread(self._trust.allows, ask.url)
        if not trusted and not await asyncio.to_thread(RealmTrust(ask.url).allows, bearers[0].realm):
            return None
        key = _Key(bearers[0], with_account=trusted)
        self._tokens.pop(key, None)
        header = await self._bearer(key)
        self._elsewhere[origin_of(ask.url), ask.repository] = key
        return header

    # --- tokens -------------------------------------------------------------------------------------------------

    async def _bearer(self, key: _Key, *, is_named: bool = True) -> str:
        token = self._tokens.get(key)
        if token is None:
            try:
                token = (await self._fetching.do(key, lambda: self._token(key))).value
            except Unconfirmed as error:
                if not is_named:
                    raise
                self.confirmed(error)
                token = (await self._fetching.do(key, lambda: self._token(key))).value  # without the account, or not
        return token.header

    async def _token(self, key: _Key) -> _Token:
        basic = await self._account.proof() if key.with_account else None
        if basic is not None and key.challenge.scope:
            self._account.check_scope(key.challenge)
        reply, was_sent = await self._ask_realm(key.challenge, basic)
        if was_sent and basic is not None:
            if _is_rejected(reply, basic):
                if self._account.doubts_realms:
                    raise Unconfirmed(basic, key.challenge.realm, reply.body)
                self._account.reject(basic, key.challenge.realm, reply.body)
                reply, _ = await self._ask_realm(key.challenge, await self._account.proof())
            elif reply.status == 403:  # noqa: PLR2004 -- HTTP
                await self._account.refused_scope(key.challenge, basic, reply.body, self._login_works)
                reply, _ = await self._ask_realm(key.challenge, await self._account.proof())
            elif reply.status // 100 == 2:  # noqa: PLR2004 -- HTTP
                self._account.accepted()
        token = self._tokens[key] = self._parsed(reply)
        return token

    async def _login_works(self, basic: str, said: tuple[int, list[Challenge]] | None = None) -> bool:
        """Whether the account gets a token as ``docker login`` asks for one: for no name at all.

        Args:
            said: what the registry's challenge is, if that is known.
        """
        status, challenges = said or await self._ping(None)
        bearer = next((challenge for challenge in challenges if challenge.scheme == "bearer"), None)
        if bearer is None:
            return status != 401  # noqa: PLR2004 -- HTTP
        reply, _ = await self._ask_realm(bearer._replace(scope="", error=""), basic)
        if reply.status not in (200, 401, 403) or is_page(reply.body):
            raise UpstreamError(f"the token service answered {reply.status}")
        return reply.status == 200  # noqa: PLR2004 -- HTTP

    async def _ask_realm(self, challenge: Challenge, proof: str | None) -> tuple[TokenReply, bool]:
        """The token service's answer, and whether *proof* was sent to whoever gave it.

        An identity token goes in the body of a POST, a Basic login in the header of a GET.
        """
        query = {name: value for name in ("service", "scope") if (value := getattr(challenge, name))}
        url = joined(challenge.realm, challenge.realm) if challenge.realm else ""
        if not url:
            raise UpstreamError("upstream's challenge does not say where a token can be had")
        form = b""
        if proof is not None and proof.startswith(IDENTITY_TOKEN):
            form = _refresh_form(query, proof) if await self._may_see(url) else b""
            proof = None
        if query and not form:
            url += ("&" if "?" in url else "?") + urlencode(query)
        for hop in range(MAX_REDIRECTS + 1):
            check_host(url, self._redactor)
            sent = None
            if form and hop and not await self._may_see(url):
                raise UpstreamError("the token service redirects to a host that may not see the account")
            if proof is not None and (hop == 0 or self._account.follows_redirects) and await self._may_see(url):
                sent = proof
            # Whatever the redirect, a POST stays one: a GET would ask as nobody, or have the identity token in its URL.
            reply = await self._fetch(url, sent, form)
            if reply.status not in REDIRECTS or not reply.location:
                return reply, sent is not None or bool(form)
            after = joined(url, reply.location)
            check_downgrade(url, after)
            url = after
        raise UpstreamError(f"the token service redirects more than {MAX_REDIRECTS} times")

    async def _may_see(self, url: str) -> bool:
        if await asyncio.to_thread(self._trust.allows, url):
            return True
        self._events.emit(events.CredentialWithheld(realm=self._redactor.clean(shown(url))))
        return False

    def _parsed(self, reply: TokenReply) -> _Token:
        if reply.status in (401, 403):
            if oci_error(reply.body) is not None:
                raise NameUnknown("no such image, or one that nobody may read without an account: set USERNAME")
            # Passed on, but it forgets no tag: a firewall may stand in front of the token service.
            text = f"the token service answered {reply.status}, not in a registry's own words"
            raise UpstreamRefused(text, status=403, code="DENIED")
        if reply.status // 100 != 2:  # noqa: PLR2004 -- HTTP
            raise UpstreamError(f"the token service answered {reply.status}")
        token = parse_token(reply.body)
        self._redactor.learn(token.value)
        now = time.monotonic()
        return _Token(f"Bearer {token.value}", now, now + token.seconds)


def _refresh_form(query: Mapping[str, str], proof: str) -> bytes:
    """What an identity token is shown in. Source: distribution docs, "Authenticating using OAuth2"."""
    form = {"grant_type": "refresh_token", "client_id": "registry-cache", **query}
    return urlencode({**form, "refresh_token": proof.removeprefix(IDENTITY_TOKEN).strip()}).encode()


def _is_rejected(reply: TokenReply, proof: str) -> bool:
    """Whether the token service does not take the account; of a refresh token OAuth 2 says so by 400."""
    if reply.status == 401:  # noqa: PLR2004 -- HTTP
        return not is_page(reply.body)
    document = parsed_json(reply.body) if reply.status == 400 and proof.startswith(IDENTITY_TOKEN) else None  # noqa: PLR2004
    return isinstance(document, dict) and document.get("error") in ("invalid_grant", "invalid_token")


def _keyed(challenge: Challenge, repository: str) -> Challenge:
    """*challenge* as a key: without what is only said in passing, and with a scope where none is told."""
    scope = challenge.scope
    if challenge.scheme == "bearer" and not scope.strip() and repository:
        scope = f"repository:{repository}:pull"
    return challenge._replace(scope=scope, error="")
