"""Whether a request may be answered at all, where the cache asks who is there."""

import functools

from registry_cache.access.client_login import ClientLogin
from registry_cache.access.forward import Forwarding, Wanted
from registry_cache.access.rules import Decision, Principal
from registry_cache.model import events
from registry_cache.model.errors import Hidden, LoginNeeded, NotCached
from registry_cache.model.oci import Repository
from registry_cache.web.exchange import Audit, Exchange, only_if_cached
from registry_cache.web.identity import Identity, connected
from registry_cache.web.routes import Route


async def admit(identity: Identity, exchange: Exchange, route: Route) -> None:
    """Let the request pass, and note who sends it; before anything is looked up, or fetched from upstream.

    Raises:
        LoginNeeded: a login may help.
        Hidden: none does.
        TooManyLogins: its login is not looked at.
        LimitReached: it has asked too often.
        UpstreamError, NotCached: upstream decides, and does not say.
    """
    access = identity.access
    here = connected(exchange.request)
    exchange.audit = Audit(here.name, here.auth, "login")
    registry = route.repository.registry if route.repository is not None else None
    try:
        login = await identity.of(exchange.request, registry)
    except LoginNeeded:
        _count(identity, exchange, here)
        exchange.audit = Audit(here.name, here.auth, "login")
        raise
    principal = login.principal
    if registry is not None and registry not in access.forwards:
        principal = principal.proven  # a login at another registry is nothing here, nor in the log
    exchange.principal = principal
    _count(identity, exchange, principal)
    may_ask = access.asks_for_logins and not login.came and not access.is_quiet(principal)
    if route.repository is None:
        # Only here do dockerd and skopeo find out that there are logins.
        if may_ask:
            raise LoginNeeded("a login is needed")
        exchange.audit = Audit(principal.name, principal.auth, events.ALLOWED)
        return
    decision = access.decide(principal, route.repository)
    forwarded = access.forwarded(principal, route.repository.registry)
    if forwarded is not None:
        decision = await _by_upstream(exchange, decision, route, *forwarded, may_ask=may_ask)
    if decision.allowed:
        exchange.audit = Audit(principal.name, principal.auth, events.ALLOWED, decision.rule)
    elif may_ask:
        exchange.audit = Audit(principal.name, principal.auth, "login", decision.rule)
        raise LoginNeeded(
            "a login is needed", scope=f"repository:{route.name}:pull", registry=route.repository.registry
        )
    else:
        exchange.audit = Audit(principal.name, principal.auth, "deny", decision.rule)
        raise Hidden


async def _by_upstream(
    exchange: Exchange,
    decision: Decision,
    route: Route,
    forwarding: Forwarding,
    login: ClientLogin,
    *,
    may_ask: bool,
) -> Decision:
    """What the registry says itself. A rule may say no before it; who may have a login is asked for that first."""
    if route.repository is None or may_ask or (decision.rule and not decision.allowed):
        return Decision(allowed=False, rule=decision.rule)
    exchange.recheck = functools.partial(_taken_back, exchange, forwarding, login, route.repository)
    if forwarding.at_hand(login, route.repository):
        return Decision(allowed=True, rule=decision.rule)
    principal = exchange.principal or connected(exchange.request)
    exchange.audit = Audit(principal.name, principal.auth, "unknown", decision.rule)
    if only_if_cached(exchange.request):
        raise NotCached("it is not cached for this login")
    allowed = await forwarding.allows(login, _wanted(route, route.repository), principal.origin)
    return Decision(allowed, decision.rule)


def _taken_back(exchange: Exchange, forwarding: Forwarding, login: ClientLogin, repository: Repository) -> None:
    """Upstream may have refused the login while an answer was looked for: another one's has brought it then."""
    if not forwarding.stands(login, repository):
        exchange.audit = exchange.audit._replace(decision="deny")
        raise Hidden


def _wanted(route: Route, repository: Repository) -> Wanted:
    if route.reference is not None:
        return Wanted(repository, "manifest", route.reference.target)
    if route.kind == "blob" and route.digest is not None:
        return Wanted(repository, "blob", route.digest)
    return Wanted(repository, "list")


def _count(identity: Identity, exchange: Exchange, principal: Principal) -> None:
    """One request more of *principal*; before anything is decided, so that a refusal tells nothing of what is here."""
    if identity.access.accounts is not None:
        exchange.account = identity.access.accounts.of(principal)
        if exchange.account is not None:
            exchange.principal = principal
            exchange.audit = Audit(principal.name, principal.auth, "limit")
            exchange.account.ask()
