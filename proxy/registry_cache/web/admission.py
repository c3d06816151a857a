"""Whether a request may be answered at all, where the cache asks who is there."""

from registry_cache.access.rules import Principal
from registry_cache.model.errors import Hidden, LoginNeeded
from registry_cache.web.exchange import Audit, Exchange
from registry_cache.web.identity import Identity, connected
from registry_cache.web.routes import Route


async def admit(identity: Identity, exchange: Exchange, route: Route) -> None:
    """Let the request pass, and note who sends it; before anything is looked up, or asked upstream.

    Raises:
        LoginNeeded: a login may help.
        Hidden: none does.
        TooManyLogins: its login is not looked at.
        LimitReached: it has asked too often.
    """
    access = identity.access
    here = connected(exchange.request)
    exchange.audit = Audit(here.name, here.auth, "login")
    try:
        login = await identity.of(exchange.request)
    except LoginNeeded:
        _count(identity, exchange, here)
        exchange.audit = Audit(here.name, here.auth, "login")
        raise
    exchange.principal = principal = login.principal
    _count(identity, exchange, principal)
    may_ask = access.asks_for_logins and not login.came and not access.is_quiet(principal)
    if route.repository is None:
        # Only here do dockerd and skopeo find out that there are logins.
        if may_ask:
            raise LoginNeeded("a login is needed")
        exchange.audit = Audit(principal.name, principal.auth, "allow")
        return
    decision = access.decide(principal, route.repository)
    if decision.allowed:
        exchange.audit = Audit(principal.name, principal.auth, "allow", decision.rule)
    elif may_ask:
        exchange.audit = Audit(principal.name, principal.auth, "login", decision.rule)
        raise LoginNeeded("a login is needed", scope=f"repository:{route.name}:pull")
    else:
        exchange.audit = Audit(principal.name, principal.auth, "deny", decision.rule)
        raise Hidden


def _count(identity: Identity, exchange: Exchange, principal: Principal) -> None:
    """One request more of *principal*; before anything is decided, so that a refusal tells nothing of what is here."""
    if identity.access.accounts is not None:
        exchange.account = identity.access.accounts.of(principal)
        if exchange.account is not None:
            exchange.principal = principal
            exchange.audit = Audit(principal.name, principal.auth, "limit")
            exchange.account.ask()
