"""Rules, users and tokens together: who asks, and whether they may."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from registry_cache.access.htpasswd import Users, read_users
from registry_cache.access.limits import Accounts
from registry_cache.access.logins import Logins
from registry_cache.access.rules import Decision, Principal, Rule, decide, may_pull_anything
from registry_cache.access.tokens import Tokens
from registry_cache.model.oci import Repository

_DECISIONS_MAX = 16_384
_TOKENS_MAX = 8192


class Access:
    """See the module. Whoever makes it closes it.

    Args:
        rules: in the order of the settings.
        htpasswd: the file with users and passwords, if there are logins.
        token_key: see :class:`registry_cache.access.tokens.Tokens`.
        accounts: of what each has had, where that is limited.
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
        now: Callable[[], float] = time.time,
    ) -> None:
        self._rules = rules
        self._htpasswd = htpasswd
        self._now = now
        self.accounts = accounts
        self.logins = None if htpasswd is None else Logins(read_users(htpasswd))
        self._tokens = Tokens(token_key, self._users().hash_of, now)
        self._decisions: dict[tuple[Principal, Repository], Decision] = {}
        self._owners: dict[bytes, tuple[str, float]] = {}  # by token: user, until when

    @property
    def asks_for_logins(self) -> bool:
        """Whether a client without one is told where to log in."""
        return self.logins is not None

    def reload(self) -> None:
        """Read the users anew.

        Raises:
            SettingsError: that is not possible; those from before stay.
        """
        if self._htpasswd is not None and self.logins is not None:
            self.logins.users = read_users(self._htpasswd)
            self._tokens = Tokens(self._tokens.key, self.logins.users.hash_of, self._now)
            self._owners.clear()

    async def aclose(self) -> None:
        """End what runs."""
        if self.logins is not None:
            await self.logins.aclose()

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

    def make_token(self, user: str) -> str:
        """A token of *user*; of nobody, where that is empty."""
        return self._tokens.make(user)

    def token_user(self, token: bytes) -> str | None:
        """Whose token it is (empty: nobody's); None where it is none, or over. Cheap for those that came before."""
        found = self._owners.get(token)
        if found is None:
            found = self._tokens.user(token.decode("ascii", "replace"))
            if found is None:
                return None
            if len(self._owners) >= _TOKENS_MAX:
                self._owners.clear()
            self._owners[token] = found
        user, until = found
        return user if self._now() < until else None

    def _users(self) -> Users:
        return Users({}) if self.logins is None else self.logins.users
