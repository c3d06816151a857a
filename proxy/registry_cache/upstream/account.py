"""The configured account: whether it is known to be refused, and for what."""

import contextlib
import time
from collections.abc import Awaitable, Callable

from cachetools import TTLCache

from registry_cache.model import events
from registry_cache.model.bus import Events
from registry_cache.model.errors import CredentialRefused, Denied, UpstreamError
from registry_cache.upstream.challenges import Challenge
from registry_cache.upstream.credential import IDENTITY_TOKEN, Credential, FileCredential
from registry_cache.upstream.ratelimit import refusal_message
from registry_cache.upstream.redact import Redactor
from registry_cache.upstream.shapes import parsed_json
from registry_cache.upstream.urls import shown

# Hub locks an account for about ten minutes after repeated login failures (hub-feedback#2201).
REJECTED_SECONDS = 900.0
_PROBE_SECONDS = 60.0
_SCOPE_SECONDS = 60.0
_MESSAGE_MAX_CHARACTERS = 200


class Account:
    """See the module. A refusal of one name is no refusal of the account; a login without a name tells them apart.

    Args:
        credential: None for anonymous access.
        anonymous_fallback: go on without the account when it is rejected.
    """

    follows_redirects = True  # of a token service, to another one that may see it
    doubts_realms = True  # that the registry has not just named: what they refuse may be no news

    def __init__(
        self,
        credential: Credential | None,
        *,
        anonymous_fallback: bool,
        registry: str,
        redactor: Redactor,
        events: Events,
    ) -> None:
        self._credential = credential
        self._anonymous_fallback = anonymous_fallback
        self._registry = registry
        self._redactor = redactor
        self._events = events
        self._rejected: tuple[str, float] | None = None  # the Basic header that was rejected, until (monotonic)
        self._works: tuple[str, float] | None = None  # the one that a probe found good, until
        self._refused_scopes: TTLCache[Challenge, str] = TTLCache(1024, _SCOPE_SECONDS, timer=time.monotonic)

    @property
    def exists(self) -> bool:
        """Whether one is configured."""
        return self._credential is not None

    @property
    def is_rejected(self) -> bool:
        """Whether it was refused when it was last used."""
        return self._rejected is not None

    async def basic(self) -> str | None:
        """The ``Authorization: Basic`` for the registry itself; None where there is none to give.

        Raises:
            CredentialRefused: as :meth:`proof`.
        """
        proof = await self.proof()
        return proof if proof is None or proof.startswith("Basic ") else None

    async def proof(self) -> str | None:
        """What a token service wants to see: an ``Authorization: Basic``, or ``<token>`` and an identity token.

        None for anonymous access.

        Raises:
            CredentialRefused: it is known to be rejected, or there is no readable secret.
        """
        if self._credential is None:
            return None
        login = await self._credential.login()
        secret = login.secret.decode(errors="replace")
        self._redactor.learn_login(login.username, secret)
        basic = f"{IDENTITY_TOKEN} {secret}" if login.is_identity_token else login.basic
        if self._is_known_rejected(basic):
            if self._anonymous_fallback:
                return None
            raise self._refusal()
        return basic

    def _is_known_rejected(self, basic: str) -> bool:
        header, until = self._rejected or ("", 0.0)
        return header == basic and time.monotonic() < until

    def _refusal(self) -> CredentialRefused:
        name = self._credential.name if self._credential else ""
        return CredentialRefused(
            f"upstream rejected the credential of {name!r}: "
            "check USERNAME and PASSWORD_FILE; it is tried again when the file changes or some minutes later"
        )

    def expired(self) -> None:
        """The registry says that the login has come of age."""
        if self._credential is not None:
            self._credential.refused()

    async def changed(self) -> str | None:
        """The :meth:`proof` that its file has since it was rejected; None where that is not so."""
        if self._rejected is None or not isinstance(self._credential, FileCredential):
            return None  # a helper is a program: it is run for who pulls
        rejected, _ = self._rejected
        with contextlib.suppress(CredentialRefused):
            proof = await self.proof()
            return proof if proof != rejected else None
        return None

    def accepted(self) -> None:
        """A login with it worked."""
        self._rejected = None

    def reject(self, basic: str, realm: str, body: bytes) -> None:
        """It does not work; nothing is sent with it for a while, unless its secret changes."""
        if self._credential is None or self._is_known_rejected(basic):
            return
        self._rejected = (basic, time.monotonic() + REJECTED_SECONDS)
        self._works = None
        self._credential.refused()
        message = self._redactor.clean(refusal_message(body))[:_MESSAGE_MAX_CHARACTERS]
        username = self._credential.name
        self._events.emit(
            events.CredentialRejected(
                realm=self._redactor.clean(shown(realm)),
                username=username,
                message=message,
                retry_in_seconds=REJECTED_SECONDS,
            )
        )

    def check_scope(self, challenge: Challenge) -> None:
        """Raise Denied if its token service has just refused *challenge*, so that it is not asked for each pull."""
        if (message := self._refused_scopes.get(challenge)) is not None:
            raise Denied(message)

    async def refused_scope(
        self, challenge: Challenge, basic: str, body: bytes, login_works: Callable[[str], Awaitable[bool]]
    ) -> None:
        """The token service said 403 to one scope; returns if the account is rejected and may be left out.

        Raises:
            Denied: the account is good, but not for this.
            CredentialRefused: it is not good.
            UpstreamError: the answer is not the token service's own, or which of them it is cannot be found out.
        """
        if not isinstance(parsed_json(body), dict):
            raise UpstreamError("something in front of the token service answered 403")
        if not await self._is_good(basic, lambda: login_works(basic)):
            self.reject(basic, challenge.realm, body)
            if not self._anonymous_fallback:
                raise self._refusal()
            return
        text = self._redactor.clean(refusal_message(body))[:_MESSAGE_MAX_CHARACTERS]
        message = self._refused_scopes[challenge] = f"the token service refuses this name to the account: {text}"
        raise Denied(message)

    async def refused_by_registry(self, basic: str, login_works: Callable[[], Awaitable[bool]]) -> None:
        """The registry itself said 401 to *basic*; returns if that was meant for the name only.

        Raises:
            CredentialRefused: the account is not accepted.
        """
        if not await self._is_good(basic, login_works):
            self.reject(basic, self._registry, b"the registry refuses the login")
            if not self._anonymous_fallback:
                raise self._refusal()

    async def _is_good(self, basic: str, login_works: Callable[[], Awaitable[bool]]) -> bool:
        """Whether a login works; asked once a minute at most."""
        if self._works is not None and self._works[0] == basic and time.monotonic() < self._works[1]:
            return True
        good = await login_works()
        self._works = (basic, time.monotonic() + _PROBE_SECONDS) if good else None
        return good
