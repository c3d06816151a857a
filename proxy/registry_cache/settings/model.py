"""Every setting: its name, its type, its default and what it is for.

Where they come from is in :mod:`registry_cache.settings.load`.
"""

import os
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, BeforeValidator, ByteSize, ConfigDict, Field
from pydantic import model_validator as model_check
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from registry_cache.model.registries import HUB_NAMES, url_of, well_known
from registry_cache.model.units import Threshold
from registry_cache.settings.access import AccessRule, LimitSettings, OidcSettings
from registry_cache.settings.fleet import FleetFields
from registry_cache.settings.types import (
    Address,
    Aliases,
    DiskThreshold,
    Duration,
    FilePath,
    HostNames,
    Hosts,
    IssuerName,
    NetworkList,
    PositiveDuration,
    ReadableFile,
    Realms,
    RegistryName,
    RegistryPatternList,
    Size,
    Url,
    Words,
    host_and_port,
    is_loopback,
    unit_credential,
)
from registry_cache.settings.upstreams import UpstreamSettings, alias_owners, by_name, check_upstreams, credential_of

ENV_PREFIX = "REGISTRY_CACHE_"


def _default_cache_dir() -> Path:
    """systemd's CacheDirectory= if there is one, else the conventional place for root or for a user."""
    if directory := os.environ.get("CACHE_DIRECTORY"):
        return Path(directory.split(":")[0])
    if os.geteuid() == 0:
        return Path("/var/cache/registry-cache")
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "registry-cache"


def credential_file() -> Path | None:
    """The account's token, if the unit was given one."""
    return unit_credential("password", "PASSWORD_FILE")


def _default_state_file() -> Path:
    """systemd's StateDirectory= if there is one, else the conventional place for root or for a user."""
    if directory := os.environ.get("STATE_DIRECTORY"):
        return Path(directory.split(":")[0]) / "images.json"
    if os.geteuid() == 0:
        return Path("/var/lib/registry-cache/images.json")
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state") / "registry-cache/images.json"


class PruneSettings(BaseModel):
    """``registry-cache prune``: when the host's own images are pruned, and which."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    free_below: DiskThreshold = Field(
        Threshold(percent=15), description="Prune only when less than this is free where Docker keeps its data."
    )
    free_target: DiskThreshold | None = Field(
        None, description="Stop pruning as soon as this much is free (default: free_below plus 5 % of the filesystem)."
    )
    min_age: Duration = Field(7 * 86400.0, description="A dangling image younger than this on this host stays.")
    keep: Words = Field([], description="Images never pruned: name patterns such as postgres:*, or digests.")
    include_tagged: bool = Field(False, description="Also prune tagged images that nothing uses.")
    tagged_min_age: Duration = Field(30 * 86400.0, description="A tagged image used within this time stays.")
    include_build_cache: bool = Field(False, description="Also prune build cache that is not in use.")
    build_cache_min_age: Duration = Field(30 * 86400.0, description="Build cache used within this time stays.")
    min_container_age: Duration = Field(
        300.0, description="A container younger than this counts as a run under way; 0 turns this off."
    )
    lock_file: FilePath = Field(
        Path("/run/lock/registry-cache-run.lock"), description="The run lock: shared by runs, exclusive for the prune."
    )
    lock_wait: Duration = Field(
        600.0, description="The longest that guard waits for the run lock; then it says who holds it, and ends."
    )
    lock_group: str | None = Field(
        None, description="Only this group's users may take the run lock (mode 0660; default: everybody)."
    )
    state_file: FilePath = Field(
        default_factory=_default_state_file,
        description="The record of when images were last seen in use (default: images.json in "
        "/var/lib/registry-cache, or in ~/.local/state/registry-cache without root).",
    )
    docker_host: str | None = Field(
        None, description="The Docker Engine to talk to (default: DOCKER_HOST, else the usual sockets)."
    )
    data_root: FilePath | None = Field(
        None, description="Watch the free space of this directory's filesystem (default: what the engine says)."
    )


class Settings(FleetFields):
    """The settings of one process, validated as a whole."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX, env_nested_delimiter="__", extra="forbid", frozen=True, enable_decoding=False
    )

    listen: Address = Field("127.0.0.1:5000", description="Address and port that dockerd's registry-mirrors points at.")
    listen_socket: FilePath | None = Field(
        None,
        description="A Unix socket for clients on this host, beside LISTEN: rules know them by their user (`uids`).",
    )
    hosts: HostNames = Field(
        [],
        description="Names by which clients call the cache, beside localhost and addresses (the Host header). On "
        "loopback others are refused, on other addresses only if this is set; `*`: none is.",
    )
    open_to_all: bool = Field(
        False,
        description="Let whoever reaches LISTEN pull what the account can. Without it a cache that has an account "
        "listens on loopback only.",
    )
    tls_cert: ReadableFile | None = Field(
        default_factory=lambda: unit_credential("tls.cert", "TLS_CERT"),
        description="PEM file of the certificate, with its chain, that clients see on LISTEN: they speak TLS then. "
        "Read again when it changes, and on SIGHUP (default: the credential `tls.cert` of a systemd unit).",
    )
    tls_key: ReadableFile | None = Field(
        default_factory=lambda: unit_credential("tls.key", "TLS_KEY"),
        description="PEM file of its key, without a password (default: the credential `tls.key` of a systemd unit).",
    )
    client_ca: ReadableFile | None = Field(
        None, description="PEM file of authorities whose certificates clients may show."
    )
    htpasswd: ReadableFile | None = Field(
        default_factory=lambda: unit_credential("htpasswd", "HTPASSWD"),
        description="File of users that may log in, as `htpasswd -B` makes it; read again when it changes, and on "
        "SIGHUP (default: the credential `htpasswd` of a systemd unit).",
    )
    public_url: Url | None = Field(
        None, description="By which clients call the cache, where a proxy in front speaks TLS for it."
    )
    admin_networks: NetworkList = Field(
        [],
        description="Networks that may read /_stats, /metrics and the page on LISTEN (default: everybody; with "
        "OPS_LISTEN or rules loopback only).",
    )
    ops_listen: Address | None = Field(
        None, description="A second address, for /_stats, /metrics and the page alone: whoever reaches it reads them."
    )
    cache_dir: FilePath = Field(
        default_factory=_default_cache_dir,
        description="Where cached content lives; blobs/ in it is the truth (default: /var/cache/registry-cache, or "
        "~/.cache/registry-cache without root; a systemd unit's CacheDirectory= first).",
    )
    max_size: Size = Field(
        ByteSize(20_000_000_000), description="The cap: blobs and partials together never take more bytes."
    )
    min_free: Size | None = Field(
        None, description="Free disk space never used up (default: the smaller of 1 GB and 5 % of the filesystem)."
    )
    default_registry: RegistryName = Field(
        HUB_NAMES[0],
        description="The registry's name in images; requests that name no registry mean it, and what is cached is its.",
    )
    aliases: Aliases = Field(
        [],
        description="Other names that images have for it, such as registry.corp:5443; Docker Hub's are known.",
    )
    upstream: Url = Field(
        default_factory=lambda values: url_of(values.get("default_registry", HUB_NAMES[0])),
        description="The registry that misses are fetched from (default: https://DEFAULT_REGISTRY, and for docker.io "
        "https://registry-1.docker.io).",
    )
    username: str | None = Field(None, description="Account for upstream; anonymous without it.")
    password_file: ReadableFile | None = Field(
        default_factory=credential_file,
        description="File that holds the account's access token (PAT); read again when a token is needed (default: the "
        "credential `password` of a systemd unit).",
    )
    ca_file: ReadableFile | None = Field(
        None, description="PEM file of certificate authorities to trust beside the system's."
    )
    trusted_realms: Realms = Field(
        [], description="Hosts that may be sent the credential beside upstream's own host and domain."
    )
    private_hosts: Hosts = Field(
        [],
        description="Hosts on private addresses that upstream may redirect to, or name as its token service; needed "
        "where upstream itself is public.",
    )
    anonymous_fallback: bool = Field(
        False, description="Go on without the account when upstream rejects the credential."
    )
    tag_ttl: Duration = Field(900.0, description="How long a tag is served without asking upstream again.")
    keep_deleted_tags: bool = Field(
        False, description="Keep serving a cached tag that upstream has deleted or made private."
    )
    connect_timeout: PositiveDuration = Field(5.0, description="For the connection to upstream, TLS included.")
    read_timeout: PositiveDuration = Field(
        15.0, description="A read from upstream that stalls this long counts as broken."
    )
    request_timeout: PositiveDuration = Field(
        25.0, description="The longest a client waits for the first byte of uncached content, retries included."
    )
    stale_timeout: Duration = Field(
        2.5, description="How long upstream may take to confirm an expired tag before the stale one is served."
    )
    rate_limit_wait: Duration = Field(
        15.0, description="The longest an uncached pull waits for upstream's rate limit to pass, instead of a 429."
    )
    negative_ttl: Duration = Field(
        10.0, description="How long upstream's no to a tag, manifest, blob or list is answered from memory; 0: never."
    )
    retries: int = Field(5, ge=0, le=100, description="How often a broken transfer from upstream is taken up again.")
    max_flights: int = Field(32, ge=1, le=1024, description="Blobs fetched from upstream at the same time.")
    blob_connections: int = Field(
        4,
        ge=1,
        le=8,
        description="Connections for one blob of which more than 32 MiB are left, where upstream gives each less than "
        "400 Mbit/s; 1: always one.",
    )
    prefetch_concurrency: int = Field(
        6, ge=0, le=64, description="Layers fetched before a running pull asks for them, at the same time; 0: none."
    )
    prefetch_max_size: Size = Field(
        ByteSize(2_000_000_000),
        description="The most bytes fetched ahead that no client has asked for yet (at most a quarter of MAX_SIZE).",
    )
    max_connections: int = Field(2048, ge=8, le=65536, description="Client connections served at the same time.")
    client_timeout: PositiveDuration = Field(
        60.0, description="A client that neither sends its request nor takes a byte for this long is dropped."
    )
    scrub_rate: Size = Field(
        ByteSize(10_000_000), description="Bytes per second that the background scrub re-hashes; 0 turns it off."
    )
    shutdown_grace: Duration = Field(30.0, description="How long running transfers may go on after SIGTERM.")
    log_format: Literal["json", "console"] | None = Field(
        None, description="json, or console for people (default: console on a terminal, else json)."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="The least severe event logged."
    )
    prune: PruneSettings = Field(PruneSettings(), description="The host's image prune policy.")
    upstreams: Annotated[dict[str, UpstreamSettings], BeforeValidator(by_name)] = Field(
        {}, description="Registries that are served beside the default one, and what is its own of each."
    )
    allow_unlisted: RegistryPatternList = Field(
        [],
        description="Names of further registries that are asked when a client names them, such as *.gcr.io: over "
        "https, without an account, and on public addresses only.",
    )

    access: list[AccessRule] = Field(
        [],
        description="Who may pull what, in order: the first rule that fits decides (default: with HTPASSWD or "
        "CLIENT_CA whoever logs in or shows a certificate, else everybody).",
    )

    oidc: dict[IssuerName, OidcSettings] = Field(
        {}, description="Issuers whose tokens (JWT) are logins, by names for the rules."
    )
    limits: list[LimitSettings] = Field(
        [],
        description="How much each client may have: of these tables the first that fits it counts (default: no limit).",
    )

    # Whether an account without its token is an error: it is for whoever uses it.
    needs_token: ClassVar[bool] = True

    @model_check(mode="after")
    def _credential_is_whole(self) -> Self:
        if self.username and not self.password_file and self.needs_token:
            raise ValueError("USERNAME is set but PASSWORD_FILE is not: allowed is both or neither")
        if self.password_file and not self.username and "password_file" in self.model_fields_set:
            raise ValueError("PASSWORD_FILE is set but USERNAME is not: allowed is both or neither")
        return self

    @model_check(mode="after")
    def _registries_are_told_apart(self) -> Self:
        check_upstreams(self.upstreams, self.default_registry, self.aliases, self.model_fields_set)
        for name, table in self.upstreams.items():
            is_default = name == self.default_registry
            own = table.password_file or credential_of(name, os.environ.get("CREDENTIALS_DIRECTORY"))
            if table.username and not own and not (is_default and self.password_file) and self.needs_token:
                raise ValueError(
                    f"UPSTREAMS__{name}__USERNAME is set but its PASSWORD_FILE is not: allowed is both or neither"
                )
        return self

    @model_check(mode="after")
    def _issuers_are_told_apart(self) -> Self:
        names: dict[tuple[str, str], str] = {}
        for name, table in self.oidc.items():
            first = names.setdefault((table.issuer, table.audience), name)
            if first != name:
                raise ValueError(
                    f"OIDC__{name} has the issuer and the audience of OIDC__{first}: each token would be the latter's"
                )
        return self

    @model_check(mode="after")
    def _rules_can_be_kept(self) -> Self:
        if self.open_to_all and self.has_rules:
            raise ValueError(
                "OPEN_TO_ALL is set beside rules (ACCESS, HTPASSWD, CLIENT_CA, OIDC): allowed is one of both"
            )
        if (self.htpasswd or self.oidc) and not self.tls_cert and not self.is_loopback:
            name = "HTPASSWD" if self.htpasswd else "OIDC"
            raise ValueError(f"{name} is set, but LISTEN is reached without TLS: passwords would be read on the way")
        if self.forwarding and not self.tls_cert and not self.is_loopback:
            raise ValueError(
                f"UPSTREAMS__{self.forwarding[0]}__ACCESS is forward, but LISTEN is reached without TLS: passwords "
                "would be read on the way"
            )
        for name, tables in (("ACCESS: rule", self.access), ("LIMITS: table", self.limits)):
            for number, table in enumerate(tables, 1):
                if table.users is not None and self.htpasswd is None:
                    raise ValueError(f"{name} {number} names users, but HTPASSWD is not set: nobody could log in")
                if table.oidc is not None and table.oidc["issuer"][0] not in self.oidc:
                    raise ValueError(
                        f"{name} {number} names the issuer {table.oidc['issuer'][0]!r}: there is no such OIDC"
                    )
                if table.uids is not None and self.listen_socket is None:
                    raise ValueError(f"{name} {number} names uids, but LISTEN_SOCKET is not set: nobody has one")
                if table.certificates is not None and self.client_ca is None:
                    raise ValueError(f"{name} {number} names certificates, but CLIENT_CA is not set: none counts")
        return self

    @model_check(mode="after")
    def _rules_can_fit(self) -> Self:
        owners = alias_owners(self.upstreams, self.default_registry, self.aliases)
        for number, rule in enumerate(self.access, 1):
            for registry in {pattern.partition("/")[0] for pattern in rule.repositories} & owners.keys():
                raise ValueError(
                    f"ACCESS: rule {number} names {registry}, an alias: allowed is the registry that it is one of, "
                    f"{owners[registry]}"
                )
        return self

    @model_check(mode="after")
    def _certificate_is_whole(self) -> Self:
        if (self.tls_cert is None) != (self.tls_key is None):
            there, missing = ("TLS_CERT", "TLS_KEY") if self.tls_cert else ("TLS_KEY", "TLS_CERT")
            raise ValueError(f"{there} is set but {missing} is not: allowed is both or neither")
        if self.client_ca and not self.tls_cert:
            raise ValueError("CLIENT_CA is set but TLS_CERT is not: certificates need TLS")
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 -- the signature is the library's
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flags (given to the constructor) over environment over the TOML file."""
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)

    @property
    def listen_host(self) -> str:
        """As :func:`host_and_port` has it."""
        return host_and_port(self.listen)[0]

    @property
    def listen_port(self) -> int:
        """As :func:`host_and_port` has it."""
        return host_and_port(self.listen)[1]

    @property
    def listens_everywhere(self) -> bool:
        """Whether the cache is at every address of this machine."""
        return self.listen_host in ("", "0.0.0.0", "::")  # noqa: S104 -- compared, not bound

    @property
    def mirror_url(self) -> str:
        """What dockerd's registry-mirrors has to name, as far as is known here: on this machine at least."""
        return str(self.public_url or self.local_url).rstrip("/")

    @property
    def local_url(self) -> str:
        """Where the cache answers on this machine, without a trailing slash."""
        host = "127.0.0.1" if self.listens_everywhere else self.listen_host
        scheme = "https" if self.tls_cert else "http"
        return f"{scheme}://{'[' + host + ']' if ':' in host else host}:{self.listen_port}"

    @property
    def upstream_host(self) -> str:
        """Upstream's host, without its port."""
        return urlsplit(self.upstream).hostname or ""

    @property
    def misnamed(self) -> str:
        """What to say where upstream is a well-known registry, and not the one that it is called; empty elsewhere."""
        name = well_known(self.upstream_host)
        if name in (None, self.default_registry):
            return ""
        return (
            f"UPSTREAM is {self.upstream_host}, but what it has is served and cached as {self.default_registry}'s: set "
            f"DEFAULT_REGISTRY={name}"
        )

    @property
    def accounts(self) -> list[str]:
        """With whose rights registries are asked, for people."""
        return [name for name in (self.username, *(table.account for table in self.upstreams.values())) if name]

    @property
    def lends_account(self) -> str:
        """What to say where whoever reaches the port could use the account, and nobody said so; empty elsewhere."""
        if self.is_loopback or self.open_to_all or self.has_rules or not self.accounts:
            return ""
        return (
            f"LISTEN: {self.listen!r}: whoever reaches it could pull whatever {self.accounts[0]} can, private "
            "repositories too: set LISTEN to 127.0.0.1:5000, say who may pull (ACCESS, HTPASSWD, CLIENT_CA), leave "
            "the account (USERNAME) out, or set OPEN_TO_ALL=true if everybody there may"
        )

    @property
    def has_rules(self) -> bool:
        """Whether not everybody may pull everything: the cache asks who is there."""
        return bool(self.access or self.htpasswd or self.client_ca or self.oidc)

    @property
    def forwarding(self) -> list[str]:
        """Registries that decide themselves who may pull, by the logins that clients have there."""
        return [name for name, table in self.upstreams.items() if table.access == "forward"]

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the cache."""
        return is_loopback(self.listen)
