"""What a cache that asks who is there is guarded by: its certificate, and who may pull what."""

import asyncio
import contextlib
import functools
import time
from collections.abc import AsyncIterator

from registry_cache.access.control import Access, Issuers
from registry_cache.access.forward import Forwarding
from registry_cache.access.htpasswd import read_users
from registry_cache.access.limits import Accounts
from registry_cache.access.rules import Rule
from registry_cache.access.tokens import kept_key
from registry_cache.model import events
from registry_cache.model.bus import Events
from registry_cache.model.errors import SettingsError
from registry_cache.runtime.background import Background
from registry_cache.runtime.file_marks import marks
from registry_cache.settings.model import Settings
from registry_cache.settings.registries import registries
from registry_cache.upstream.issuer import IssuerKeys
from registry_cache.web.certificates import Certificates

_LOOK_SECONDS = 30.0


@contextlib.asynccontextmanager
async def open_certificates(settings: Settings, bus: Events) -> AsyncIterator[Certificates | None]:
    """What clients see of who we are, if they speak TLS.

    Raises:
        SettingsError: it cannot be used.
    """
    if settings.tls_cert is None or settings.tls_key is None:
        yield None
        return
    certificates = Certificates(settings.tls_cert, settings.tls_key, settings.client_ca, events=bus)
    certificates.start()
    try:
        yield certificates
    finally:
        await certificates.aclose()


def check_users(settings: Settings) -> None:
    """Before anything is opened: a start that fails leaves no cache directory behind.

    Raises:
        SettingsError: HTPASSWD cannot be used.
    """
    if settings.htpasswd is not None:
        read_users(settings.htpasswd)


def rules_of(settings: Settings) -> list[Rule]:
    """The rules in their order; where there are none, whoever is known may pull everything, or everybody."""
    return [each.rule() for each in settings.access] or [Rule(identified=settings.has_rules)]


def access_of(settings: Settings, token_key: bytes = b"", issuers: Issuers | None = None) -> Access | None:
    """Who may pull what, and how much, where that is not everybody everything.

    Raises:
        SettingsError: HTPASSWD cannot be used.
    """
    if not (settings.has_rules or settings.limits or settings.forwarding):
        return None
    accounts = Accounts([each.limits() for each in settings.limits], time.monotonic) if settings.limits else None
    return Access(
        rules_of(settings),
        htpasswd=settings.htpasswd,
        token_key=token_key,
        accounts=accounts,
        issuers=issuers,
        forwards=_forwards_of(settings),
    )


def _forwards_of(settings: Settings) -> dict[str, Forwarding]:
    return {
        name: Forwarding(
            allow_seconds=registry.forward_allow,
            stale_seconds=registry.forward_stale,
            patience_seconds=(registry.request_timeout, registry.stale_timeout),
        )
        for name, registry in registries(settings).items()
        if registry.forwards
    }


class Guard:
    """Rules that follow their file while the cache runs."""

    def __init__(self, access: Access, settings: Settings, bus: Events) -> None:
        self.access = access
        self._files = [settings.htpasswd]
        self._events = bus
        self._seen = marks(self._files)
        self.watch = Background("logins", self._look_again, interval_seconds=_LOOK_SECONDS, events=bus)

    def reload(self) -> None:
        """Read the users anew, and ask anew who may pull. What is wrong with them leaves all as it is."""
        self._seen = marks(self._files)
        try:
            self.access.reload()
        except SettingsError as error:
            self._events.emit(events.Warned(message=f"{error}; the users from before count on"))

    async def _look_again(self) -> None:
        self.access.forget_old()
        if await asyncio.to_thread(marks, self._files) != self._seen:
            self.reload()


@contextlib.asynccontextmanager
async def open_guard(settings: Settings, bus: Events) -> AsyncIterator[Guard | None]:
    """Who may pull what, where that is not everybody everything. After the store: its directory keeps a key.

    Raises:
        SettingsError: HTPASSWD cannot be used.
    """
    key = (
        kept_key(settings.cache_dir / "token.key") if settings.htpasswd or settings.oidc or settings.forwarding else b""
    )
    async with contextlib.AsyncExitStack() as stack:
        issuers = await _open_issuers(settings, bus, stack) if settings.oidc else None
        access = access_of(settings, key, issuers)
        if access is None:
            yield None
            return
        stack.push_async_callback(access.aclose)
        guard = Guard(access, settings, bus)
        guard.watch.start()
        stack.push_async_callback(guard.watch.aclose)
        yield guard


async def _open_issuers(settings: Settings, bus: Events, stack: contextlib.AsyncExitStack) -> Issuers:
    from registry_cache.access import issuers, keys  # noqa: PLC0415 -- as in web/certificates.py

    found = []
    for name, table in settings.oidc.items():
        source = IssuerKeys(table.issuer, keys_url=table.keys_url, ca_file=table.ca_file, token_file=table.token_file)
        stack.push_async_callback(source.aclose)
        those = keys.Keys(source.fetch, failed=functools.partial(_keys_failed, bus, name))
        found.append(issuers.Issuer(name, table.issuer, table.audience, those))
    wanted = [table.claims for table in (*settings.access, *settings.limits) if table.claims is not None]
    return issuers.Issuers(found, wanted)


def _keys_failed(bus: Events, name: str, why: str) -> None:
    bus.emit(events.Warned(message=f"OIDC__{name}: {why}; keys that are known count on for a day"))
