"""The tables ``[upstreams."ghcr.io"]``: registries beside the default one, and what each has of its own."""

import difflib
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic import model_validator as model_check

from registry_cache.model.registries import known_registries
from registry_cache.settings.types import (
    Aliases,
    Duration,
    Environment,
    HelperName,
    Hosts,
    PositiveDuration,
    ProxyUrl,
    ReadableFile,
    Realms,
    RepositoryPattern,
    Url,
    registry_name,
    words,
)


class UpstreamSettings(BaseModel):
    """One registry. What it does not set is as it is for all, but for its address, its account and whom it trusts."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: Url | None = Field(None, description="Where it is asked (default: https://NAME).")
    aliases: Aliases = Field([], description="Other names that images have for it, such as registry.corp:5443.")
    username: str | None = Field(None, description="Account for it; anonymous without it.")
    password_file: ReadableFile | None = Field(
        None,
        description="File that holds the account's access token (default: the credential `password.NAME` of a systemd "
        "unit).",
    )
    credential_helper: HelperName | None = Field(
        None,
        description="NAME of a `docker-credential-NAME` in the service's PATH that knows the account, such as "
        "ecr-login; in place of USERNAME and PASSWORD_FILE.",
    )
    credential_lifetime: Duration = Field(
        1800.0, description="How long what the helper gives is used, where it does not say itself when it ends."
    )
    helper_env: Environment = Field(
        {}, description="Environment variables for the helper, such as AWS_PROFILE; nothing secret, `doctor` shows it."
    )
    ca_file: ReadableFile | None = Field(
        None, description="PEM file of certificate authorities to trust for it beside the system's (default: CA_FILE)."
    )
    client_cert: ReadableFile | None = Field(
        None,
        description="PEM file of a certificate to show to its own host and TRUSTED_REALMS; read again on SIGHUP.",
    )
    client_key: ReadableFile | None = Field(
        None, description="PEM file of that certificate's key, without a password (default: it is in CLIENT_CERT)."
    )
    proxy: ProxyUrl | None = Field(
        None,
        description="Forward proxy for it and whatever it leads to, such as http://proxy.corp:3128, or `direct` "
        "(default: the variables HTTPS_PROXY, HTTP_PROXY, NO_PROXY).",
    )
    trusted_realms: Realms = Field(
        [], description="Hosts that may be sent its credential beside its own host and domain."
    )
    private_hosts: Hosts = Field([], description="Hosts on private addresses that it may redirect to.")
    anonymous_fallback: bool = Field(False, description="Go on without the account when it rejects the credential.")
    repositories: Annotated[list[RepositoryPattern], BeforeValidator(words)] = Field(
        [],
        description="Only these of its repositories, such as team-*/**: `*` is within a component, `**` is any "
        "(default: all).",
    )
    tag_ttl: Duration | None = Field(None, description="As TAG_TTL, for its tags.")
    keep_deleted_tags: bool | None = Field(None, description="As KEEP_DELETED_TAGS, for its tags.")
    connect_timeout: PositiveDuration | None = Field(None, description="As CONNECT_TIMEOUT.")
    read_timeout: PositiveDuration | None = Field(None, description="As READ_TIMEOUT.")
    request_timeout: PositiveDuration | None = Field(None, description="As REQUEST_TIMEOUT.")
    stale_timeout: Duration | None = Field(None, description="As STALE_TIMEOUT.")
    rate_limit_wait: Duration | None = Field(None, description="As RATE_LIMIT_WAIT.")
    negative_ttl: Duration | None = Field(None, description="As NEGATIVE_TTL.")
    retries: int | None = Field(None, ge=0, le=100, description="As RETRIES.")
    max_flights: int | None = Field(None, ge=1, le=1024, description="As MAX_FLIGHTS: slots of its own.")
    blob_connections: int | None = Field(None, ge=1, le=8, description="As BLOB_CONNECTIONS.")

    access: Literal["forward"] | None = Field(
        None,
        description="`forward`: it decides itself who may pull, by the login that each client has there; the cache has "
        "no account there (default: rules decide).",
    )
    forward_allow: Duration = Field(
        300.0, le=3600, description="How long it is not asked again about a login that it has let into a repository."
    )
    forward_stale: Duration = Field(
        3600.0,
        le=7 * 86_400,
        description="How long after its last yes a login still counts while it cannot be asked; 0: only FORWARD_ALLOW.",
    )
    prefetch: bool = Field(True, description="Fetch its layers before a running pull asks for them.")

    @model_check(mode="after")
    def _credential_is_whole(self) -> Self:
        if self.password_file and not self.username:
            raise ValueError("password_file is set but username is not: allowed is both or neither")
        if self.credential_helper and (self.username or self.password_file):
            raise ValueError("credential_helper is set beside username or password_file: allowed is one of both ways")
        if self.helper_env and not self.credential_helper:
            raise ValueError("helper_env is set but credential_helper is not")
        if self.client_key and not self.client_cert:
            raise ValueError("client_key is set but client_cert is not: allowed is both or neither")
        own = next((name for name in _OF_AN_ACCOUNT if getattr(self, name)), None)
        if self.access == "forward" and own is not None:
            raise ValueError(f"access is forward, but {own} is set: clients' own logins are used, and nothing else")
        return self

    @property
    def account(self) -> str:
        """With whose rights it is asked, for people; empty if with nobody's."""
        if self.credential_helper:
            return f"the login of docker-credential-{self.credential_helper}"
        return f"the certificate {self.client_cert}" if self.client_cert else self.username or ""


# What would be read with more rights than whoever asks has.
_OF_AN_ACCOUNT = ("username", "password_file", "credential_helper", "client_cert", "anonymous_fallback")


def by_name(tables: Any) -> Any:
    """*tables* by the names that registries are looked up by.

    An environment variable cannot have a dot in a shell: ``GHCR_IO`` is the one registry that it fits.

    Raises:
        ValueError: a name is none, or fits several, or is there twice.
    """
    if not isinstance(tables, Mapping):
        return tables  # pydantic says what it has to be
    spelled = {str(key): _named(str(key), tables) for key in tables}
    found: dict[str, Any] = {}
    # What is written out stands below what the environment says: its keys win.
    for key, name in sorted(spelled.items(), key=lambda item: item[0] != item[1]):
        before, table = found.get(name), tables[key]
        if isinstance(table, UpstreamSettings):
            table = table.model_dump(exclude_unset=True)
        if before is not None and not (_is_shell_name(key) and isinstance(table, Mapping)):
            raise ValueError(f"{key} and {name} are the same registry")
        found[name] = {**before, **table} if before is not None else table
    return found


def _named(key: str, tables: Mapping[Any, Any]) -> str:
    if not _is_shell_name(key):
        try:
            return registry_name(key)
        except ValueError as error:
            raise ValueError(f"{key!r}: {error}") from error
    known = {*known_registries(), *(str(other).lower() for other in tables if "." in str(other))}
    fits = sorted(name for name in known if re.sub(r"[.:-]", "_", name) == key.lower())
    if len(fits) != 1:
        near = fits or difflib.get_close_matches(key.lower().replace("_", "."), known, n=2)
        meant = f": did you mean {' or '.join(near)}?" if near else ""
        raise ValueError(f"{key} is no registry's name, such as ghcr.io, which is written with its dots{meant}")
    return registry_name(fits[0])


def _is_shell_name(key: str) -> bool:
    return re.fullmatch(r"\w+", key, re.ASCII) is not None and key.lower() != "localhost"


# Settings for all that are the default registry's own; one of them and the table's is one too many.
_DEFAULTS_OWN = ("username", "password_file", "trusted_realms", "private_hosts", "anonymous_fallback", "aliases")


def check_upstreams(
    tables: Mapping[str, UpstreamSettings], default: str, aliases: Sequence[str], is_set: Collection[str]
) -> None:
    """Refuse what would be ambiguous.

    Args:
        default: the registry of requests that name none.
        aliases: its other names, as they are set outside *tables*.
        is_set: the settings that are set outside *tables*.

    Raises:
        ValueError: a name is two registries', or a setting is set in both of its places.
    """
    if default in tables:
        own = next((name for name in _OF_AN_ACCOUNT if name in is_set), None)
        if tables[default].access == "forward" and own is not None:
            raise ValueError(
                f"{own.upper()} and UPSTREAMS__{default}__ACCESS are both set: allowed is one; forward uses clients' "
                "own logins, and nothing else"
            )
        if tables[default].credential_helper and "username" in is_set:
            raise ValueError(
                f"USERNAME and UPSTREAMS__{default}__CREDENTIAL_HELPER are both set: allowed is one of them"
            )
        for name, outside in [("url", "upstream"), *((name, name) for name in _DEFAULTS_OWN)]:
            if name in tables[default].model_fields_set and outside in is_set:
                raise ValueError(
                    f"{outside.upper()} and UPSTREAMS__{default}__{name.upper()} are the same setting: allowed is one"
                )
    alias_owners(tables, default, aliases)


def alias_owners(tables: Mapping[str, UpstreamSettings], default: str, aliases: Sequence[str]) -> dict[str, str]:
    """The registry that each alias is of; arguments and errors as of :func:`check_upstreams`."""
    owners = dict.fromkeys([default, *tables], "")
    named = [(alias, default) for alias in aliases]
    named += [(alias, name) for name, table in tables.items() for alias in table.aliases]
    for alias, name in named:
        if (owners.get(alias, name) or alias) != name:
            raise ValueError(f"{alias} is an alias of {name}, and another registry's name")
        owners[alias] = name
    return {alias: name for alias, name in owners.items() if name and alias != name}


def credential_of(name: str, directory: str | None) -> Path | None:
    """The credential ``password.NAME`` of systemd's LoadCredential=, if the unit was given one."""
    if directory is None:
        return None
    path = Path(directory) / f"password.{name}"
    return path if path.is_file() else None
