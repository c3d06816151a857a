"""The fast path of a cache that asks who is there: the same heads, answered to those who may have what they ask for."""

import functools

from aiohttp import hdrs, web
from aiohttp.base_protocol import BaseProtocol

from registry_cache.access.control import Access
from registry_cache.access.limits import Account
from registry_cache.access.pace import Pace
from registry_cache.access.rules import Principal
from registry_cache.access.tokens import Holder
from registry_cache.model import events
from registry_cache.model.bus import Events
from registry_cache.model.oci import Repository
from registry_cache.pull.answers import Served
from registry_cache.pull.pullthrough import PullThrough
from registry_cache.web.barred import BarredLogins
from registry_cache.web.blob_response import BlobResponder
from registry_cache.web.connection import Connection
from registry_cache.web.exchange import Audit
from registry_cache.web.fast_path import HEADS_MAX, Asked, FastPath, FileAnswer
from registry_cache.web.routes import Route

# As Go's clients and curl write it; in another way it is not cut out, and the head not learned.
_TOKEN_LINE = b"\r\nAuthorization: Bearer "
_LET_IN_MAX = 4096


class _Limited(Audit):
    """Of somebody who has an account; see :meth:`GuardedFastPath.log`."""

    account: Account


class GuardedFastPath(FastPath):
    """See the module. Each pull has a token of its own, so a head is known without the line that carries it."""

    def __init__(self, pull_through: PullThrough, blobs: BlobResponder, events: Events, access: Access) -> None:
        super().__init__(pull_through, blobs, events)
        self._access = access
        self._accounts = access.accounts
        self._barred = BarredLogins(access, events)
        self._heads: dict[bytes, tuple[Asked, bytes]] = {}  # whole ones, as one connection sends them again and again
        self._let_in: dict[tuple[Principal, Repository], Audit] = {}  # by rules, which stay as they are

    def learn(self, head: bytes, request: web.BaseRequest, route: Route) -> None:
        """See :class:`FastPath`."""
        head, token = without_token(head)
        if self._is_plain(request) and (hdrs.AUTHORIZATION in request.headers) == bool(token):
            self._learn(head, request, route)

    def learn_refusal(
        self, head: bytes, request: web.BaseRequest, response: web.Response, event: events.Request | None
    ) -> None:
        """See :class:`FastPath`."""
        if self._is_plain(request):
            self._barred.learn(head, request, response, event)

    def _is_plain(self, request: web.BaseRequest) -> bool:
        """Whether there is nothing but a login beside what requests have."""
        others = sum(name.title() not in self.plain for name in request.headers)
        return others == (hdrs.AUTHORIZATION in request.headers)

    def answer(
        self, head: bytes, protocol: BaseProtocol, client: str, audit: Audit | None = None
    ) -> bytes | FileAnswer | None:
        """See :class:`FastPath`. Whom it says no to, the other way tells so."""
        known = self._heads.get(head) or self._known(head)
        if known is None:
            return self._barred.answer(head, protocol.principal, client) if isinstance(protocol, Connection) else None
        asked, token = known
        principal = self._principal(protocol, token)
        if principal is None:
            return None
        audit = self._audit(principal, asked.repository)
        if audit is None:
            return None
        account = None if self._accounts is None else self._accounts.of(principal)
        if account is None:
            return self._serve(asked, protocol, client, audit)
        pace = account.pace
        if not account.may_ask() or (pace is not None and pace.room_bytes <= 0):
            return None
        limited = _Limited(*audit)
        limited.account = account
        answer = self._serve(asked, protocol, client, limited)
        if answer is not None:
            account.asked()
        if pace is not None and isinstance(answer, bytes):
            pace.sent(len(answer))
        return answer

    def _known(self, head: bytes) -> tuple[Asked, bytes] | None:
        """What *head* asks for, and by which token; None if it has not been learned."""
        bare, token = without_token(head)
        asked = self._asked.get(bare)
        if asked is None:
            return None
        if len(self._heads) >= HEADS_MAX:
            self._heads.clear()
        self._heads[head] = asked, token
        return asked, token

    def _pace(self, audit: Audit) -> Pace | None:
        """See :class:`FastPath`."""
        return audit.account.pace if isinstance(audit, _Limited) else None

    def log(
        self,
        asked: Asked,
        digest: str,
        served: Served,
        began: float,
        client: str,
        audit: Audit,
        sent: int,
        status: int = 200,
        error: str = "",
    ) -> None:
        """See :class:`FastPath`. What was fetched ahead has cost upstream its bytes."""
        if served.result == "collapsed" and isinstance(audit, _Limited):
            audit.account.received(sent)
        super().log(asked, digest, served, began, client, audit, sent, status, error)

    def _principal(self, protocol: BaseProtocol, token: bytes) -> Principal | None:
        """Who asks; None where that is for the other way to find out."""
        if not isinstance(protocol, Connection):
            return None
        principal = protocol.principal
        if token and self._access.asks_for_logins:
            holder = self._access.token_holder(token)
            if holder is None:
                return None
            principal = _holding(principal, holder)
        return principal

    def _audit(self, principal: Principal, repository: Repository) -> Audit | None:
        """What goes into the log, if *principal* may pull; None if not."""
        question = principal, repository
        audit = self._let_in.get(question)
        if audit is not None:
            return audit
        is_for_good = repository.registry not in self._access.forwards  # for as long as these rules are in force
        if is_for_good:
            principal = principal.proven  # as in web/admission.py
        decision = self._access.at_hand(principal, repository)
        if not decision.allowed:
            return None
        audit = Audit(principal.name, principal.auth, events.ALLOWED, decision.rule)
        if is_for_good:
            if len(self._let_in) >= _LET_IN_MAX:
                self._let_in.clear()
            self._let_in[question] = audit
        return audit


@functools.lru_cache(maxsize=1024)
def _holding(principal: Principal, holder: Holder) -> Principal:
    """Of one pull's requests it is the same."""
    return principal.holding(holder)


def without_token(head: bytes) -> tuple[bytes, bytes]:
    """A head without the line that carries a token, and the token; a head with none as it is."""
    before, found, rest = head.partition(_TOKEN_LINE)
    if not found:
        return head, b""
    token, end, after = rest.partition(b"\r\n")
    return before + end + after, token
