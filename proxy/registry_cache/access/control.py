"""Rules, users and tokens together: who asks, and whether they may."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from registry_cache.access.failures import Failures
from registry_cache.access.htpasswd import read_users
from registry_cache.access.limits import Accounts
from registry_cache.access.logins import Logins
from registry_cache.access.rules import Decision, Principal, Rule, Vouched, decide, may_pull_anything
from registry_cache.access.tokens import Holder, Tokens
from registry_cache.model.errors import LoginNeeded
from registry_cache.model.oci import Repository

_DECISIONS_MAX = 16_384
_TOKENS_MAX = 8192


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
        now: Callable[[], float] = time.time,
    ) -> None:
        self._rules = rules
        self._htpasswd = htpasswd
        self._now = now
        self.accounts = accounts
        self.issuers = issuers
        self._failures = Failures(time.monotonic)
        self.logins = None if htpasswd is None else Logins(read_users(htpasswd), failures=self._failures)
        self._tokens = Tokens(token_key, self._kept, now)
        self._decisions: dict[tuple[Principal, Repository], Decision] = {}
        self._holders: dict[bytes, tuple[Holder, float]] = {}  # by token: whose, until when

    @property
    def asks_for_logins(self) -> bool:
        """Whether a client without one is told where to log in."""
        return self.logins is not None or self.issuers is not None

    def reload(self) -> None:
        """Read the users anew.

        Raises:
            SettingsError: that is not possible; those from before stay.
        """
        if self._htpasswd is not None and self.logins is not None:
            self.logins.users = read_users(self._htpasswd)
            self._holders.clear()

    async def aclose(self) -> None:
        """End what runs."""
        if self.logins is not None:
            await self.logins.aclose()
        if self.issuers is not None:
            await self.issuers.aclose()

    def decide(self, principal: Principal, repository: Repository) -> Decision:
        """Whether *principal* may pull from *repository*."""
        question = (principal, repository)
        found = self._decisions.get(question)
        if found is None:
            found = decide(self._rules, principal, str(repository))
            if len(self._decisions) >= _DECISIONS_MAX:
                self._decisions.clear()  # somebody makes up names; what is in use comes back with its next request
            self._decisions[question] = found
        return found

    def is_quiet(self, principal: Principal) -> bool:
        """Whether *principal* is never asked to log in."""
        return any(rule.quiet and rule.is_for(principal) for rule in self._rules)

    def may_pull_anything(self, principal: Principal) -> bool:
        """Whether some repository may be open to *principal*."""
        return may_pull_anything(self._rules, principal)

    async def verify(self, user: str, password: str, address: str) -> tuple[Holder, float]:
        """Who logs in with that, and until when that may be believed (Unix seconds).

        Args:
            address: of who says so.

        Raises:
            LoginNeeded: it is nobody's.
            TooManyLogins: it is not looked at.
        """
        if self.issuers is not None and looks_like_a_token(password):
            self._failures.check(address)
            try:
                return await self.issuers.verify(password)
            except LoginNeeded:
                self._failures.count(address)
                raise
        if self.logins is None or not user or not await self.logins.verify(user, password, address):
            raise LoginNeeded("the login is not known here, or its password is wrong")
        return user, float("inf")

    def make_token(self, holder: Holder, until: float = float("inf")) -> tuple[str, int]:
        """A token, and for how many seconds it is good; of nobody, where *holder* is empty."""
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
            self._holders[token] = found
        holder, until = found
        return holder if self._now() < until else None

    def _kept(self, holder: Holder) -> bytes | None:
        if isinstance(holder, Vouched):
            return None if self.issuers is None else self.issuers.mark_of(holder.issuer)
        return None if self.logins is None else self.logins.users.hash_of(holder)
