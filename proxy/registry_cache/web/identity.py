"""Who sends a request, by its connection and its ``Authorization``; and what is said to those who may log in.

The challenge is Bearer, with a realm of our own: to a Basic one a client without a login gives up, and dockerd sends
the user's Docker Hub password with every request.

Source: distribution docs, "Token authentication"; RFC 7617 (Basic), RFC 6750 (Bearer).
"""

import base64
import binascii
import datetime as dt
import re

import msgspec
from aiohttp import hdrs, web

from registry_cache.access.client_login import ClientLogin
from registry_cache.access.control import Access
from registry_cache.access.rules import Principal
from registry_cache.access.tokens import Holder
from registry_cache.model.errors import BadRequest, Barred, LoginNeeded, RegistryCacheError, Unsupported
from registry_cache.web.connection import Connection
from registry_cache.web.errors import rendered
from registry_cache.web.exchange import INERT, JSON, client_address
from registry_cache.web.fast_connection import FastConnection
from registry_cache.web.gate import Gate
from registry_cache.web.names import Registries

TOKEN_PATH = "/token"  # noqa: S105 -- a path
_AUTHORITY = re.compile(r"[A-Za-z0-9._:\[\]-]{1,255}")
_SCOPE = re.compile(r"[A-Za-z0-9._:/@-]{1,300}")
_HEADER_MAX = 20_000  # a JWT as password, in base64
# A name in a path may be any registry's, which ``ns`` has told: the challenge says whose, and comes back.
_SERVICE = "registry-cache"
_NO_STORE = {"Cache-Control": "no-store"}
_NOBODY: tuple[Holder, float] = ("", float("inf"))


class Login(msgspec.Struct, frozen=True):
    """What a request says of who sends it.

    Attributes:
        came: with a login or token that counts, be it nobody's: there is no use in asking for another one.
    """

    principal: Principal
    came: bool


class Identity:
    """See the module.

    Args:
        registries: what names mean, for logins that are sent for one.
        public_url: by which clients call the cache, where that is not what its connections say.
    """

    def __init__(self, access: Access, gate: Gate, registries: Registries, *, public_url: str | None = None) -> None:
        self.access = access
        self._gate = gate
        self._registries = registries
        self._public_url = public_url

    async def of(self, request: web.BaseRequest, registry: str | None = None) -> Login:
        """Who sends *request*.

        Args:
            registry: whose content it asks for.

        Raises:
            LoginNeeded: its login or token is none.
            TooManyLogins: it is not looked at.
        """
        principal = connected(request)
        header = _authorization(request) if self.access.asks_for_logins else ""
        scheme, _, value = header.partition(" ")
        if not header:
            return Login(principal, came=False)
        if scheme.lower() == "bearer":
            holder = self.access.token_holder(value.strip().encode("ascii", "replace"))
            if holder is None:
                raise LoginNeeded("the token is none, or over")
            return Login(principal.holding(holder), came=True)
        if scheme.lower() != "basic":
            raise LoginNeeded("allowed are Bearer and Basic")
        holder, _ = await self._holder(value, principal.origin, registry)
        return Login(principal.holding(holder), came=True)

    async def token(self, request: web.BaseRequest) -> web.StreamResponse:
        """The token endpoint: a login, or none, for a token."""
        try:
            self._gate.check(request)
            token, seconds = self.access.make_token(*await self._who_wants_a_token(request))
        except RegistryCacheError as error:
            status, body, headers = rendered(error, "other")
            if isinstance(error, LoginNeeded):
                headers["WWW-Authenticate"] = 'Basic realm="registry-cache"'
            if isinstance(error, Unsupported):
                headers["Allow"] = "GET"
            response = web.Response(status=status, body=body, headers={**INERT, **JSON, **_NO_STORE, **headers})
            if isinstance(error, Barred) and isinstance(request.protocol, FastConnection):
                request.protocol.learn_refusal(request, response, None)
            return response
        now = dt.datetime.now(dt.UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        answer = {"token": token, "access_token": token, "expires_in": seconds, "issued_at": now}
        return web.Response(body=msgspec.json.encode(answer), headers={**INERT, **JSON, **_NO_STORE})

    async def _who_wants_a_token(self, request: web.BaseRequest) -> tuple[Holder, float]:
        if request.method != "GET":
            raise Unsupported("a token is asked for with GET")  # containerd then does
        scheme, _, value = _authorization(request).partition(" ")
        if scheme and scheme.lower() != "basic":
            raise LoginNeeded("a token is given for a login: Basic")
        principal = connected(request)
        has_scope = "scope" in request.query
        registry = self._asked_for(request)
        try:
            holder, until = await self._holder(value, principal.origin, registry) if scheme else _NOBODY
            if isinstance(holder, ClientLogin) and not has_scope:
                await self._try(holder, principal.origin)
        except LoginNeeded:
            # Somebody else's login, as dockerd sends Docker Hub's to a mirror. Whether the user is known makes no
            # difference, so that nobody finds out who is.
            if not self._may_be_others(principal, registry, has_scope=has_scope):
                raise
            return _NOBODY
        if not holder and not has_scope:
            raise LoginNeeded("a login is needed")  # `docker login` asks for no scope, and wants to hear this
        return holder, until

    def _may_be_others(self, principal: Principal, registry: str | None, *, has_scope: bool) -> bool:
        """Whether a login that is none here may have a token of nobody: it may be right somewhere else."""
        if has_scope:
            return registry in self.access.forwards or self.access.may_pull_anything(principal)
        # Of `docker login`, with several registries that decide themselves: nobody knows whose it is.
        return registry is None and len(self.access.forwards) > 1

    async def _try(self, login: ClientLogin, origin: str) -> None:
        """`docker login` wants to hear whether it is right. With a scope the registry is asked for what is pulled."""
        if not await self.access.forwards[login.registry].knows(login, origin):
            raise LoginNeeded(f"{login.registry} does not accept the login")

    def _asked_for(self, request: web.BaseRequest) -> str | None:
        """The registry that a token is wanted for; where nothing says so, the only one that decides itself."""
        forwards = self.access.forwards
        if not forwards:
            return None
        _, _, named = request.query.get("service", "").partition("/")
        if named in forwards:
            return named
        kind, _, rest = request.query.get("scope", "").partition(":")
        if kind == "repository":
            try:
                return self._registries.repository(rest.rpartition(":")[0], None).registry
            except RegistryCacheError:
                return None
        return next(iter(forwards)) if len(forwards) == 1 and not kind else None

    async def _holder(self, basic: str, origin: str, registry: str | None) -> tuple[Holder, float]:
        """Whose the value of a Basic header is; nobody's is the empty user and password that skopeo sends."""
        user, password = decoded(basic)
        return await self.access.verify(user, password, origin, registry) if user or password else _NOBODY

    def challenge(self, request: web.BaseRequest, error: LoginNeeded) -> dict[str, str]:
        """The header that tells a client where to log in."""
        if not self.access.asks_for_logins:
            return {}
        base = self._public_url or _base(request)
        if not base:
            return {}
        scope = f',scope="{error.scope}"' if _SCOPE.fullmatch(error.scope) else ""
        service = f"{_SERVICE}/{error.registry}" if error.registry in self.access.forwards else _SERVICE
        dead = ',error="invalid_token"' if hdrs.AUTHORIZATION in request.headers else ""
        return {"WWW-Authenticate": f'Bearer realm="{base}{TOKEN_PATH}",service="{service}"{scope}{dead}'}


def _base(request: web.BaseRequest) -> str:
    """By what the client has called the cache; empty where that cannot be part of a URL."""
    encrypted = isinstance(request.protocol, Connection) and request.protocol.is_encrypted
    host = request.headers.get(hdrs.HOST, "")
    return f"{'https' if encrypted else 'http'}://{host}" if _AUTHORITY.fullmatch(host) else ""


def connected(request: web.BaseRequest) -> Principal:
    """Who is at the other end of *request*'s connection."""
    protocol = request.protocol
    return protocol.principal if isinstance(protocol, Connection) else Principal(client_address(request))


def _authorization(request: web.BaseRequest) -> str:
    values = request.headers.getall(hdrs.AUTHORIZATION, ())
    if len(values) > 1:
        raise BadRequest("a request has one Authorization")
    return values[0].strip() if values else ""


def decoded(basic: str) -> tuple[str, str]:
    """User and password of a Basic header's value.

    Raises:
        LoginNeeded: it is none.
    """
    try:
        text = base64.b64decode(basic.strip()[:_HEADER_MAX], validate=True).decode()
    except (binascii.Error, ValueError) as error:
        raise LoginNeeded("the login cannot be read") from error
    user, colon, password = text.partition(":")
    if not colon:
        raise LoginNeeded("the login cannot be read")
    return user, password
