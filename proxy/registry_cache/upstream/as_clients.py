"""A registry that decides itself who may pull: it is asked with the logins of clients, never with one of the cache's.

What is fetched for a repository is fetched as a client whom the registry has let into it, the one who asked last first.
A login is sent to the registry and to the token service that it names, if that one may see it. It follows no redirect.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol
from urllib.parse import quote

from cachetools import LRUCache

from registry_cache.access.budget import Attempt
from registry_cache.access.client_login import ClientLogin
from registry_cache.access.forward import Wanted
from registry_cache.model import events
from registry_cache.model.bus import Events
from registry_cache.model.errors import CredentialRefused, Denied, LoginLapsed, NameUnknown, UpstreamError
from registry_cache.model.oci import MANIFEST_ACCEPT, Repository
from registry_cache.settings.registries import RegistrySettings
from registry_cache.upstream.account import Account
from registry_cache.upstream.ask import Ask, Send
from registry_cache.upstream.auth import Authenticator, TokenReply
from registry_cache.upstream.authorized import Authorized
from registry_cache.upstream.challenges import Challenge
from registry_cache.upstream.client import Upstream
from registry_cache.upstream.headers import content_digest, is_json, is_page
from registry_cache.upstream.judged import own_words
from registry_cache.upstream.ratelimit import is_limit
from registry_cache.upstream.redact import Redactor
from registry_cache.upstream.redirected import REDIRECTS
from registry_cache.upstream.reply import Reply, error_body
from registry_cache.upstream.shapes import oci_error, parsed_json

# Whose tokens are kept; who asks again later brings the login along.
_CLIENTS_MAX = 256
# Of those who may pull, so many are tried when the registry refuses.
_TRIED_MAX = 3
# Logins that were sent last: what a registry echoes of them is told nobody.
_RECENT_MAX = 16
_REFUSED = (NameUnknown, Denied, CredentialRefused)


class LetIn(Protocol):
    """Who may pull: :class:`registry_cache.access.forward.Forwarding`."""

    def of(self, repository: Repository) -> Iterator[ClientLogin]:
        """Those who may, who has asked last first."""

    def refused(self, login: ClientLogin, repository: Repository) -> None:
        """The registry does not let *login* in any more."""


class ClientAccount(Account):
    """A client's login in place of an account: a refusal is its own affair, and no fault of the cache's."""

    follows_redirects = False
    doubts_realms = False

    def __init__(self, client: "_Client", *, registry: str, redactor: Redactor, events: Events) -> None:
        super().__init__(None, anonymous_fallback=False, registry=registry, redactor=redactor, events=events)
        self._client = client

    async def proof(self) -> str | None:
        """See :class:`Account`: it is about to be sent."""
        self._client.is_sent()
        return self._client.login.basic

    def accepted(self) -> None:
        """See :class:`Account`."""
        self._client.is_right()

    def reject(self, basic: str, realm: str, body: bytes) -> None:  # noqa: ARG002 -- told nobody
        """See :class:`Account`.

        Raises:
            CredentialRefused: always.
        """
        raise CredentialRefused("the token service refuses the login")

    async def refused_scope(self, challenge: Challenge, basic: str, body: bytes, _works: object) -> None:  # noqa: ARG002
        """See :class:`Account`.

        Raises:
            Denied: the token service says no.
            UpstreamError: it is not the token service that says so.
        """
        if not isinstance(parsed_json(body), dict):
            raise UpstreamError("something in front of the token service answered 403")
        raise Denied("the token service refuses this name")

    async def refused_by_registry(self, basic: str, login_works: object) -> None:
        """See :class:`Account`: the answer stands."""


class _Client:
    """One login, and the tokens that it has got."""

    def __init__(self, login: ClientLogin, auth: Callable[["_Client"], Authenticator]) -> None:
        self.login = login
        self.attempt: Attempt | None = None  # while it is not known whether it may pull
        self.auth = auth(self)

    def is_sent(self) -> None:
        """The registry, or its token service, gets to see the login."""
        if self.attempt is not None:
            self.attempt.was_sent = True

    def is_right(self) -> None:
        """The registry accepts the login, if it has seen it."""
        if self.attempt is not None and self.attempt.was_sent:
            self.attempt.is_right = True

    def count(self) -> None:
        """One request is sent for it."""
        if self.attempt is not None:
            self.attempt.count()


class _ClientsRedactor(Redactor):
    """One that knows the logins that were sent last, without keeping them."""

    def __init__(self, recent: Callable[[], Iterable[ClientLogin]]) -> None:
        super().__init__()
        self._recent = recent

    def _logins(self) -> Redactor:
        redactor = Redactor()
        for login in self._recent():
            redactor.learn_login(*login.login)
        return redactor

    def clean(self, text: str) -> str:
        """See :class:`Redactor`."""
        return super().clean(self._logins().clean(text))

    def is_in(self, text: str) -> bool:
        """See :class:`Redactor`."""
        return super().is_in(text) or self._logins().is_in(text)

    def is_in_body(self, body: bytes) -> bool:
        """See :class:`Redactor`."""
        return super().is_in_body(body) or self._logins().is_in_body(body)


class AsClients(Upstream):
    """See the module.

    Args:
        let_in: who may pull.
    """

    def __init__(self, registry: RegistrySettings, *, connections: int, events: Events, let_in: LetIn) -> None:
        self._let_in = let_in
        self._recent: tuple[ClientLogin, ...] = ()  # looked into from threads, so it never changes
        self._clients: LRUCache[ClientLogin, _Client] = LRUCache(_CLIENTS_MAX)
        self._way: tuple[str, Challenge] | None = None  # how the registry challenges
        super().__init__(
            registry, connections=connections, events=events, redactor=_ClientsRedactor(lambda: self._recent)
        )

    async def aclose(self) -> None:
        """See :class:`Upstream`."""
        for client in self._clients.values():
            await client.auth.aclose()
        await super().aclose()

    # --- who may pull -----------------------------------------------------------------------------------------------

    async def lets_in(self, login: ClientLogin, wanted: Wanted, attempt: Attempt) -> bool:
        """See :class:`registry_cache.access.forward.Asked`."""
        kind, method, path, headers = _question(wanted)
        ask = Ask(method, self._exchange.base_url + quote(path, safe="/:?=&"), wanted.repository.name, headers)
        client = _Client(login, self._authenticator) if attempt.is_guess else self._client_of(login)
        client.attempt, is_let_in = attempt, False
        try:
            is_let_in = await self._is_answered(client, attempt, kind, ask)
        except _REFUSED:  # by the token service
            pass
        except UpstreamError as error:
            error.args = (self.redactor.clean(str(error)),)
            raise
        finally:
            client.attempt = None
        if is_let_in:
            self._clients[login] = client
        return is_let_in

    async def knows(self, login: ClientLogin, attempt: Attempt) -> bool:
        """See :class:`registry_cache.access.forward.Asked`."""
        client = _Client(login, self._authenticator)
        client.attempt = attempt
        try:
            return await client.auth.login_works(login.basic or "")
        except _REFUSED:
            return False

    async def _is_answered(self, client: _Client, attempt: Attempt, kind: events.UpstreamKind, ask: Ask) -> bool:
        """Whether the registry answers *ask* with what is asked for, or leads to it."""
        self.limits.check("head")
        began, status = time.monotonic(), 0
        try:
            async with self._bounded():
                reply = await self._as(client, _noting(attempt, self._watched))(ask)
                try:
                    status = reply.status
                    if status != 401 and status // 100 != 5:  # noqa: PLR2004 -- HTTP
                        client.is_right()
                    said = _is_yes(kind, reply) or await self._no(reply)
                    if said:
                        self._answered()
                finally:
                    await reply.aclose()
        finally:
            duration_ms = (time.monotonic() - began) * 1000
            self._events.emit(
                events.UpstreamRequest(
                    kind=kind, method=ask.method, url=ask.url, status=status, duration_ms=duration_ms
                )
            )
        if said is None and ask.method == "HEAD":  # it does not say whose no it is
            return await self._is_answered(client, attempt, "manifest_get", ask._replace(method="GET"))
        if said is None:
            raise UpstreamError(f"upstream answered {status}, not in a registry's own words")
        return said

    async def _no(self, reply: Reply) -> bool | None:
        """False, where an answer that is no yes is a no; None where it is not known whose words they are."""
        status = reply.status
        if status == 401:  # noqa: PLR2004 -- HTTP
            return False
        body = await error_body(reply)
        if is_limit(status, reply.headers, body):
            raise self.limits.refused(reply.headers, "too many requests", "head")
        if status // 100 == 5 and status != 501:  # noqa: PLR2004 -- HTTP
            raise UpstreamError(f"upstream answered {status}")
        is_no = is_json(reply.headers) if oci_error(body) is None else own_words(status, body) is not None
        return False if status in (403, 404) and is_no else None

    # --- as whom ----------------------------------------------------------------------------------------------------

    def _own(self, watched: Send) -> Send:
        """As one of those whom the registry has let in; whom it refuses now is forgotten, and the next one tried."""

        async def send(ask: Ask) -> Reply:
            repository = Repository(self.name, ask.asked_for or ask.repository)
            for login in [*self._let_in.of(repository)][:_TRIED_MAX]:
                try:
                    reply = await self._as(self._client_of(login), watched)(ask)
                except _REFUSED:  # by the token service
                    self._refused(login, repository)
                    continue
                if reply.status != 401 and not (reply.status == 403 and is_json(reply.headers)):  # noqa: PLR2004
                    return reply
                await reply.aclose()
                self._refused(login, repository)
            raise LoginLapsed("upstream lets none of those in who have asked for it")

        return send

    def _refused(self, login: ClientLogin, repository: Repository) -> None:
        self._clients.pop(login, None)
        self._let_in.refused(login, repository)

    def _as(self, client: _Client, watched: Send) -> Send:
        async def counted(ask: Ask) -> Reply:
            client.count()
            return await watched(ask)

        async def send(ask: Ask) -> Reply:
            if not client.login.is_nobody:
                others = (login for login in self._recent if login != client.login)
                self._recent = (client.login, *others)[:_RECENT_MAX]
            reply = await Authorized(counted, client.auth)(ask)
            self._way = client.auth.known_way or self._way
            return reply

        return send

    def _client_of(self, login: ClientLogin) -> _Client:
        client = self._clients.get(login)
        if client is None:
            client = self._clients[login] = _Client(login, self._authenticator)
        return client

    def _authenticator(self, client: _Client) -> Authenticator:
        async def fetch(url: str, authorization: str | None, form: bytes = b"") -> TokenReply:
            client.count()
            return await self._fetch_token(url, authorization, form)

        async def ping(authorization: str | None) -> tuple[int, list[Challenge]]:
            client.count()
            return await self._ping(authorization)

        auth = Authenticator(
            account=ClientAccount(client, registry=self.origin, redactor=self.redactor, events=self._events),
            trust=self._trust,
            fetch=fetch,
            ping=ping,
            redactor=self.redactor,
            events=self._events,
            tries_again=False,  # a guess costs as little as can be
        )
        auth.known_way = self._way
        return auth


def _noting(attempt: Attempt, inner: Send) -> Send:
    """Whatever is sent as proof comes from the login, be it a token from before, which the login was not sent for."""

    async def send(ask: Ask) -> Reply:
        attempt.was_sent |= "Authorization" in ask.headers
        return await inner(ask)

    return send


def _is_yes(kind: events.UpstreamKind, reply: Reply) -> bool:
    """Whether it is what was asked for: a page, or the way to one, is what a portal answers everybody."""
    status, headers = reply.status, reply.headers
    if is_page(headers) and status // 100 == 2:  # noqa: PLR2004 -- HTTP
        return False
    if kind == "blob_get":  # registries lead to where their blobs are, on any host
        return status in (200, 206) or (status in REDIRECTS and bool(headers.get("location")))
    return status == 200 and (is_json(headers) or content_digest(headers) is not None)  # noqa: PLR2004 -- HTTP


def _question(wanted: Wanted) -> tuple[events.UpstreamKind, str, str, dict[str, str]]:
    name = f"/v2/{wanted.repository.name}"
    if wanted.kind == "manifest":
        return "manifest_head", "HEAD", f"{name}/manifests/{wanted.target}", {"Accept": MANIFEST_ACCEPT}
    if wanted.kind == "blob":
        # Some registries refuse HEAD of a blob where they answer GET. Most lead elsewhere, where nobody follows.
        return "blob_get", "GET", f"{name}/blobs/{wanted.target}", {"Range": "bytes=0-0"}
    return "other", "GET", f"{name}/tags/list?n=1", {}
