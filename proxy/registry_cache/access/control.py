"""Rules, users and tokens together: who asks, and whether they may."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from registry_cache.access.client_login import ClientLogin, Vault
from registry_cache.access.failures import Failures
from registry_cache.access.forward import Forwarding
from registry_cache.access.htpasswd import read_users
from registry_cache.access.limits import Accounts
from registry_cache.access.logins import Logins
from registry_cache.access.rules import Decision, Principal, Rule, Vouched, decide, may_pull_anything
from registry_cache.access.tokens import Holder, Tokens
from registry_cache.model.errors import LoginNeeded
from registry_cache.model.oci import Repository

_DECISIONS_MAX = 16_384
_TOKENS_MAX = 8192
_TOKEN_KEPT_BYTES = 2048  # a longer one is read each time: anybody can have one with a long login in it


class Issuers(Protocol):
    """See :class:`registry_cache.access.issuers.Issuers`, which is loaded where there are some."""

    async def aclose(self) -> None:
        """Stop asking for keys."""

    async def verify(self, token: str) -> tuple[Vouched, float]:
        """What *token* proves, until when."""

    def mark_of(self, name: str) -> bytes | None:
        """What changes with what is believed of an issuer; None if there is none of that name."""


def looks_like_a_token(password: str) -> bool:
    """Whether *password* is in the form of a JWT: two points, and JSON before the first one."""
    return password.startswith("eyJ") and password.count(".") == 2  # noqa: PLR2004 -- RFC 7515, section 7.1


class Access:
    """See the module. Whoever makes it closes it.

    Args:
        rules: in the order of the settings.
        htpasswd: the file with users and passwords, if there are logins.
        token_key: see :class:`registry_cache.access.tokens.Tokens`.
        accounts: of what each has had, where that is limited.
        issuers: whose tokens are logins, if there are any; it closes them.
        forwards: registries that decide themselves, by the login that a client has there; it closes them.
        now: Unix seconds.

    Raises:
        SettingsError: *htpasswd* cannot be used.
    """

    def __init__(
        self,
        rules: Sequence[Rule],
        *,
        htpasswd: Path | None = None,
        token_key: bytes = b"",
        accounts: Accounts | None = None,
        issuers: Issuers | None = None,
        forwards: Mapping[str, Forwarding] | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._rules = rules
        self._htpasswd = htpasswd
        self._now = now
        self.accounts = accounts
        self.issuers = issuers
        self._failures = Failures(time.monotonic)
        self.logins = None if htpasswd is None else Logins(read_users(htpasswd), failures=self._failures)
        self.forwards = forwards or {}
        self.vault = Vault() if self.forwards else None
        self._tokens = Tokens(token_key, self._kept, now, self.vault)
        self._decisions: dict[tuple[Principal, Repository], Decision] = {}
        self._holders: dict[bytes, tuple[Holder, float]] = {}  # by token: whose, until when

    @property
    def asks_for_logins(self) -> bool:
        """Whether a client without one is told where to log in."""
        return self.logins is not None or self.issuers is not None or bool(self.forwards)

    def reload(self) -> None:
        """Read the users anew, and have registries asked anew that decide themselves.

        Raises:
            SettingsError: users cannot be read; those from before stay.
        """
        for forwarding in self.forwards.values():
            forwarding.forget_all()
        if self._htpasswd is not None and self.logins is not None:
            self.logins.users = read_users(self._htpasswd)
            self._holders.clear()

    async def aclose(self) -> None:
        """End what runs."""
        if self.logins is not None:
            await self.logins.aclose()
        if self.issuers is not None:
            await self.issuers.aclose()
        for forwarding in self.forwards.values():
            await forwarding.aclose()

    def forget_old(self) -> None:
        """Let go of what has been over for a while."""
        for forwarding in self.forwards.values():
            forwarding.forget_old()

    def decide(self, principal: Principal, repository: Repository) -> Decision:
        """What the rules say of *principal* and *repository*; a registry that decides itself is another question."""
        question = (principal.proven, repository)
        found = self._decisions.get(question)
        if found is None:
            found = decide(self._rules, principal.proven, str(repository))
            if len(self._decisions) >= _DECISIONS_MAX:
                self._decisions.clear()  # somebody makes up names; what is in use comes back with its next request
            self._decisions[question] = found
        return found

    def forwarded(self, principal: Principal, registry: str) -> tuple[Forwarding, ClientLogin] | None:
        """The registry that decides itself, and whom it is asked about; None where rules decide.

        A login goes only to the registry that it was given for: any other is asked about nobody.
        """
        forwarding = self.forwards.get(registry)
        if forwarding is None or self.vault is None:
            return None
        login = principal.client_login
        if login is None or login.registry != registry:
            login = self.vault.nobody(registry)
        return forwarding, login

    def at_hand(self, principal: Principal, repository: Repository) -> Decision:
        """Whether *principal* may pull from *repository*, as far as that is known now. On the path of every hit."""
        decision = self.decide(principal, repository)
        found = self.forwarded(principal, repository.registry) if self.forwards else None
        if found is None:
            return decision
        forwarding, login = found
        is_denied = bool(decision.rule) and not decision.allowed
        return Decision(not is_denied and forwarding.at_hand(login, repository), decision.rule)

    def is_quiet(self, principal: Principal) -> bool:
        """Whether *principal* is never asked to log in."""
        return any(rule.quiet and rule.is_for(principal) for rule in self._rules)

    def may_pull_anything(self, principal: Principal) -> bool:
        """Whether some repository may be open to *principal*."""
        return may_pull_anything(self._rules, principal)

    def bars(self, origin: str) -> bool:
        """Whether logins of *origin* that are not known are refused unseen. A registry that decides has its own."""
        return not self.forwards and self._failures.bars(origin)

    def knows(self, user: str, password: str) -> bool:
        """Whether :meth:`verify` would say at once who that is, be it nobody."""
        is_token = self.issuers is not None and looks_like_a_token(password)
        return not is_token and (self.logins is None or not user or self.logins.knows(user, password))

    async def verify(self, user: str, password: str, origin: str, registry: str | None = None) -> tuple[Holder, float]:
        """Who logs in with that, and until when that may be believed (Unix seconds).

        Args:
            origin: of who says so (:attr:`Principal.origin`).
            registry: what it is said for. If that decides itself, a login that is nobody's here may be one there.

        Raises:
            LoginNeeded: it is nobody's.
            TooManyLogins: it is not looked at.
        """
        if self.issuers is not None and looks_like_a_token(password):
            self._failures.check(origin)
            try:
                return await self.issuers.verify(password)
            except LoginNeeded:
                self._failures.count(origin)
                raise
        login = self._client_login(user, password, registry)
        if login is not None:
            return login, float("inf")
        if self.logins is None or not user or not await self.logins.verify(user, password, origin):
            raise LoginNeeded("the login is not known here, or its password is wrong")
        return user, float("inf")

    def _client_login(self, user: str, password: str, registry: str | None) -> ClientLogin | None:
        """What may be somebody's at *registry*. A user of the cache's own has a password that goes nowhere."""
        is_own = self.logins is not None and self.logins.users.hash_of(user) is not None
        if is_own or self.vault is None or registry is None or registry not in self.forwards:
            return None
        return self.vault.sealed(registry, user, password)

    def make_token(self, holder: Holder, until: float = float("inf")) -> tuple[str, int]:
        """A token, and for how many seconds it is good; of nobody, where *holder* is empty.

        Raises:
            LoginNeeded: it would be too long to be sent.
        """
        return self._tokens.make(holder, until=until)

    def token_holder(self, token: bytes) -> Holder | None:
        """Whose token it is (empty: nobody's); None where it is none, or over. Cheap for those that came before."""
        found = self._holders.get(token)
        if found is None:
            found = self._tokens.holder(token.decode("ascii", "replace"))
            if found is None:
                return None
            if len(self._holders) >= _TOKENS_MAX:
                self._holders.clear()
            if len(token) <= _TOKEN_KEPT_BYTES:
                self._holders[token] = found
        holder, until = found
        return holder if self._now() < until else None

    def _kept(self, holder: Holder) -> bytes | None:
        if isinstance(holder, ClientLogin):
            return b""
        if isinstance(holder, Vouched):
            return None if self.issuers is None else self.issuers.mark_of(holder.issuer)
        return None if self.logins is None else self.logins.users.hash_of(holder)
