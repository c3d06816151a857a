"""The registries that are served, each with the settings that hold for it."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from registry_cache.model.registries import url_of
from registry_cache.settings.model import Settings
from registry_cache.settings.upstreams import UpstreamSettings, credential_of


class RegistrySettings(NamedTuple):
    """What holds for one registry: what its table sets, else what is set for all. Times are in seconds."""

    name: str
    url: str
    aliases: tuple[str, ...]
    username: str | None
    password_file: Path | None
    credential_helper: str | None
    credential_lifetime: float
    helper_env: Mapping[str, str]
    ca_file: Path | None
    client_cert: Path | None
    client_key: Path | None
    proxy: str | None
    trusted_realms: tuple[str, ...]
    private_hosts: tuple[str, ...]
    anonymous_fallback: bool
    repositories: tuple[str, ...]
    tag_ttl: float
    keep_deleted_tags: bool
    connect_timeout: float
    read_timeout: float
    request_timeout: float
    stale_timeout: float
    rate_limit_wait: float
    negative_ttl: float
    retries: int
    max_flights: int
    blob_connections: int
    prefetch: bool
    forward_allow: float
    forward_stale: float
    is_listed: bool = True
    forwards: bool = False

    @property
    def host(self) -> str:
        """The host that it is asked at, without its port."""
        return urlsplit(self.url).hostname or ""

    @property
    def may_be_shared(self) -> bool:
        """Whether other replicas may have what comes from it: not where it decides for each client."""
        return not self.forwards

    @property
    def has_account(self) -> bool:
        """Whether it is asked with an account, which may read more than whoever asks the cache."""
        return bool(self.credential_helper or self.client_cert or (self.username and self.password_file))


# What a registry that is not the default one does not take from the settings for all: whom it is asked as, and where.
_OF_ITS_OWN = (
    "repositories", "username", "password_file", "credential_helper", "credential_lifetime",
    "helper_env", "client_cert", "client_key", "proxy",    "trusted_realms", "private_hosts", "anonymous_fallback",
)  # fmt: skip


def registries(settings: Settings) -> dict[str, RegistrySettings]:
    """By name, the default one first."""
    names = dict.fromkeys([settings.default_registry, *settings.upstreams])
    return {name: _resolved(settings, name, settings.upstreams.get(name, UpstreamSettings())) for name in names}


def unlisted_registry(settings: Settings, name: str) -> RegistrySettings:
    """One that is asked only because ALLOW_UNLISTED has room for its name: as all, and without an account."""
    return _resolved(settings, name, UpstreamSettings())._replace(url=url_of(name), is_listed=False)


def spelled_out(settings: Settings) -> dict[str, RegistrySettings]:
    """Those that ALLOW_UNLISTED names in full, without a ``*``, by name."""
    names = [pattern for pattern in settings.allow_unlisted if "*" not in pattern]
    return {name: unlisted_registry(settings, name) for name in names if name not in registries(settings)}


def _resolved(settings: Settings, name: str, table: UpstreamSettings) -> RegistrySettings:
    is_default = name == settings.default_registry
    values = {}
    for field in RegistrySettings._fields:
        if field in ("name", "url", "aliases", "is_listed", "forwards"):
            continue
        own = getattr(table, field)
        inherits = own is None if field not in _OF_ITS_OWN else is_default and field not in table.model_fields_set
        values[field] = getattr(settings, field, own) if inherits else own
    if not is_default and values["username"] and not values["password_file"]:
        values["password_file"] = credential_of(name, os.environ.get("CREDENTIALS_DIRECTORY"))
    for field in ("trusted_realms", "private_hosts", "repositories"):
        values[field] = tuple(values[field])
    aliases = (*settings.aliases, *table.aliases) if is_default else tuple(table.aliases)
    url = settings.upstream if is_default and table.url is None else table.url
    forwards = table.access == "forward"
    return RegistrySettings(name, url or url_of(name), aliases, **values, forwards=forwards)
