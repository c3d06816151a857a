"""Tries a login whose file was changed after a rejection: what is said of it stays true without clients."""

from registry_cache.model.bus import Events
from registry_cache.model.errors import RegistryCacheError
from registry_cache.runtime.background import Background
from registry_cache.upstream.account import REJECTED_SECONDS, Account
from registry_cache.upstream.auth import Authenticator

_LOOK_SECONDS = 5.0


class ChangedLogin:
    """See the module. Each login is tried until upstream has said yes or no to it, then not again.

    Its owner starts and closes it.
    """

    def __init__(self, account: Account, auth: Authenticator, events: Events, *, registry: str) -> None:
        self._account = account
        self._auth = auth
        self._registry = registry
        self._tried: tuple[str, float] | None = None  # a login without an answer, and the seconds waited after it
        self._background = Background("changed login", self._look, interval_seconds=_LOOK_SECONDS, events=events)

    def start(self) -> None:
        """Begin; needs a running event loop."""
        self._background.start()

    async def aclose(self) -> None:
        """Stop."""
        await self._background.aclose()

    async def _look(self) -> float | None:
        proof = await self._account.changed()
        if proof is None:
            return None
        try:
            is_good = await self._auth.login_works(proof)
        except RegistryCacheError:
            return self._later(proof)
        if is_good:
            self._account.accepted()
        else:
            self._account.reject(proof, self._registry, b"the registry refuses the changed login")
        return None

    def _later(self, proof: str) -> float:
        """How long to wait where no answer came: ever longer, since it may have been counted as a wrong login."""
        again = self._tried is not None and self._tried[0] == proof
        seconds = min(2 * self._tried[1], REJECTED_SECONDS) if self._tried and again else _LOOK_SECONDS
        self._tried = (proof, seconds)
        return seconds
