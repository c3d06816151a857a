"""``registry-cache access check``: what the rules say of somebody and an image, and which one decides."""

import ipaddress
import sys
from pathlib import Path

import click

from registry_cache.access.control import Access
from registry_cache.access.rules import Principal, Vouched, decide
from registry_cache.assembly.guards import access_of, rules_of
from registry_cache.cli.common import say, service_config_option
from registry_cache.model.errors import RegistryCacheError
from registry_cache.model.oci import Repository
from registry_cache.model.registries import looks_like_registry
from registry_cache.settings.load import load_settings
from registry_cache.settings.model import Settings
from registry_cache.web.names import Registries

_REFUSED = 1
_NOBODY = "-"


@click.command(
    "access",
    epilog="""\b
Examples:
  registry-cache access check ci ghcr.io/org/app:1.0
  registry-cache access check - nginx --address 10.1.2.3                  # without a login
  registry-cache access check - nginx --certificate node1.nodes.corp
  registry-cache access check - ghcr.io/org/app --issuer github --claim repository_owner=org
""",
)
@click.argument("action", type=click.Choice(["check"]))
@click.argument("user")
@click.argument("image")
@click.option("--address", default="127.0.0.1", show_default=True, help="The address that it would come from.")
@click.option("--certificate", "certificates", multiple=True, metavar="NAME", help="A name in the certificate shown.")
@click.option(
    "--uid", type=click.IntRange(0), metavar="NUMBER", help="The user of this host that it would come from, by number."
)
@click.option("--issuer", metavar="NAME", help="The issuer ([oidc.NAME]) of the token that it would come with.")
@click.option("--claim", "claims", multiple=True, metavar="NAME=VALUE", help="What that token says.")
@service_config_option
def command(
    action: str,  # noqa: ARG001 -- there is one; others may follow
    user: str,
    image: str,
    address: str,
    certificates: tuple[str, ...],
    uid: int | None,
    issuer: str | None,
    claims: tuple[str, ...],
    config: Path | None,
) -> None:
    """Say whether USER (- for nobody) may pull IMAGE by the rules in the settings, and which rule decides.

    No password is asked for, and no running cache.

    Exit codes: 0 for yes, or where a registry decides itself; 1 for no.
    """
    _check(address, issuer, claims)
    settings = load_settings(config, {}, with_token=False)
    access = access_of(settings)
    try:
        repository = _repository(settings, image)
    except RegistryCacheError as error:
        raise click.UsageError(str(error)) from error
    vouched = _vouched(settings, issuer, claims)
    if repository.registry in settings.forwarding:
        is_known = access is not None and access.logins is not None and access.logins.users.hash_of(user) is not None
        here = Principal("" if uid is not None else address, certificates, user if is_known else "", vouched, uid)
        allowed, text = _by_registry(settings, here, repository)
        say(f"{repository}: {text}")
        sys.exit(0 if allowed else _REFUSED)
    if access is None or not settings.has_rules:
        say(f"{repository}: yes, there are no rules: whoever reaches {settings.listen} may pull everything")
        return
    principal = Principal(
        "" if uid is not None else address, certificates, "" if user == _NOBODY else user, vouched, uid
    )
    allowed, text = _judged(access, settings, principal, repository)
    say(f"{repository}: {text}")
    sys.exit(0 if allowed else _REFUSED)


def _check(address: str, issuer: str | None, claims: tuple[str, ...]) -> None:
    try:
        ipaddress.ip_address(address)
    except ValueError as error:
        raise click.UsageError(f"--address {address!r} is no address.") from error
    if claims and issuer is None:
        raise click.UsageError("--claim needs --issuer: whose token says it?")
    for claim in claims:
        if not all(claim.partition("=")):
            raise click.UsageError(f"--claim {claim!r}: allowed is NAME=VALUE.")


def _by_registry(settings: Settings, principal: Principal, repository: Repository) -> tuple[bool, str]:
    """Of a registry that decides itself: rules can only say no before it."""
    decision = decide(rules_of(settings), principal, str(repository))
    if decision.rule and not decision.allowed and settings.access:
        return (
            False,
            f"no, rule {decision.rule} of {len(settings.access)} says so, before {repository.registry} is asked",
        )
    return True, (
        f"{repository.registry} decides, by the login that the client has there (access = forward): only a pull tells"
    )


def _vouched(settings: Settings, issuer: str | None, claims: tuple[str, ...]) -> Vouched | None:
    if issuer is None:
        return None
    if issuer not in settings.oidc:
        raise click.UsageError(f"there is no [oidc.{issuer}] in the settings")
    said = tuple((name, value) for name, _, value in (claim.partition("=") for claim in claims))
    return Vouched(issuer, dict(said).get("sub", "?"), said)


def _judged(access: Access, settings: Settings, principal: Principal, repository: Repository) -> tuple[bool, str]:
    if principal.user and (access.logins is None or access.logins.users.hash_of(principal.user) is None):
        return False, f"no, {principal.user!r} is not in HTPASSWD" if access.logins else "no, there are no logins"
    decision = access.decide(principal, repository)
    if not settings.access:
        why = "whoever is known may pull everything" if decision.allowed else "who is not known may pull nothing"
        return decision.allowed, f"{'yes' if decision.allowed else 'no'}, {why} (there is no [[access]])"
    if not decision.rule:
        return False, f"no, none of {len(settings.access)} rules fits"
    return (
        decision.allowed,
        f"{'yes' if decision.allowed else 'no'}, rule {decision.rule} of {len(settings.access)} says so",
    )


def _repository(settings: Settings, image: str) -> Repository:
    """The repository that an image's name means, as a request for it would."""
    name = image.partition("@")[0]
    last = name.rpartition("/")[2]
    name = name.removesuffix(f":{last.partition(':')[2]}") if ":" in last else name
    first, slash, rest = name.partition("/")
    registries = Registries.of(settings)
    if slash and looks_like_registry(first):
        return registries.repository(rest, registries.named(first, ""))
    return registries.repository(name, None)
