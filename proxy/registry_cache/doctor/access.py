"""Looks at who may pull what: certificates, users, rules."""

from collections.abc import Iterator
from pathlib import Path

from registry_cache.access.htpasswd import read_users
from registry_cache.access.rules import EVERYTHING
from registry_cache.doctor.check import Check
from registry_cache.model.errors import SettingsError
from registry_cache.model.registries import canonical
from registry_cache.model.registry_patterns import RegistryPatterns
from registry_cache.model.units import format_ago
from registry_cache.settings.access import WhoSettings
from registry_cache.settings.model import Settings

_SOON_SECONDS = 14 * 86400.0
_RENEW = "renew it (registry-cache tls init DIRECTORY --renew, if that made it): it is read again by itself"
_REPLACE = "put the authority that follows it into the file, too, before clients' certificates are refused"


def certificates(settings: Settings, now: float) -> Iterator[Check]:
    """The certificate that clients see, and those of their authorities, if there are any; and how long they will do.

    Args:
        now: Unix seconds.
    """
    if settings.tls_cert is not None:
        yield from _ends("certificate", settings.tls_cert, now, _RENEW, is_first_only=True)
    if settings.client_ca is not None:
        yield from _ends("client CA", settings.client_ca, now, _REPLACE)


def _ends(name: str, path: Path, now: float, remedy: str, *, is_first_only: bool = False) -> Iterator[Check]:
    from cryptography import x509  # noqa: PLC0415 -- as in web/certificates.py

    try:
        found = x509.load_pem_x509_certificates(path.read_bytes())
    except (OSError, ValueError) as error:
        yield Check(name, "broken", f"{path}: {error}", "write the certificate, with its chain, into it as PEM")
        return
    for each in found[:1] if is_first_only else found:
        begins, ends = each.not_valid_before_utc.timestamp(), each.not_valid_after_utc.timestamp()
        if now >= ends:
            yield Check(name, "broken", f"{path} ended {format_ago(now - ends)} ago", remedy)
        elif now < begins:
            yield Check(name, "broken", f"{path} begins in {format_ago(begins - now)}", "look at the clock: date -u")
        else:
            # Of one that lives for days only, the last part.
            is_late = ends - now < min(_SOON_SECONDS, (ends - begins) / 5)
            yield Check(name, "warning" if is_late else "ok", f"{path}: {format_ago(ends - now)} left", remedy)


def users(settings: Settings) -> Iterator[Check]:
    """The file of users, if there is one: after a change that cannot be read, those from before count on."""
    if settings.htpasswd is None:
        return
    try:
        found = read_users(settings.htpasswd)
    except SettingsError as error:
        remedy = "mend the file: the next start fails; a running cache goes on with the users from before"
        yield Check("users", "broken", str(error), remedy)
        return
    yield Check("users", "ok", f"{settings.htpasswd}: {len(found)}")
    for name, tables in (("ACCESS: rule", settings.access), ("LIMITS: table", settings.limits)):
        for number, table in enumerate(tables, 1):
            missing = [user for user in table.users or () if user != "*" and found.hash_of(user) is None]
            if missing:
                text = f"{name} {number} is for {', '.join(map(repr, missing))}, not in HTPASSWD"
                yield Check(
                    "users", "warning", text, "look at the spelling, add the user (htpasswd -B), or leave it out"
                )


def rules(settings: Settings) -> Iterator[Check]:
    """Rules that never decide: an earlier one fits all that they fit, a registry decides, or none such is served."""
    served, unlisted = {settings.default_registry, *settings.upstreams}, RegistryPatterns(settings.allow_unlisted)
    for number, rule in enumerate(settings.access, 1):
        registries = {canonical(pattern.partition("/")[0]) for pattern in rule.repositories}
        for registry in sorted(registries - served):
            if "*" not in registry and registry not in unlisted:
                text = f"ACCESS: rule {number} names {registry}, which is not served here"
                yield Check("rules", "warning", text, "look at the spelling, or serve it (UPSTREAMS, ALLOW_UNLISTED)")
        if registries <= set(settings.forwarding) and not rule.deny and not rule.quiet:
            text = f"ACCESS: rule {number} allows what {', '.join(sorted(registries))} decides: access is forward there"
            yield Check("rules", "warning", text, "leave the rule out, or the access of that registry")
        for before, other in enumerate(settings.access[: number - 1], 1):
            same = all(getattr(other, name) in (None, getattr(rule, name)) for name in WhoSettings.model_fields)
            if same and (EVERYTHING in other.repositories or other.repositories == rule.repositories):
                text = f"ACCESS: rule {number} never decides: rule {before} fits whatever it fits"
                yield Check("rules", "warning", text, "the first that fits decides: put the narrower one first")
                break
