"""Which settings belong together: the sections of ``serve --help`` and of ``docs/configuration.md``."""

from registry_cache.settings.model import Settings

_GROUPS: dict[str, tuple[str, ...]] = {
    "The service": (
        "listen", "listen_socket", "hosts", "log_format", "log_level", "shutdown_grace", "max_connections",
        "client_timeout",
    ),
    "Who may ask": (
        "tls_cert", "tls_key", "client_ca", "htpasswd", "public_url", "open_to_all", "admin_networks", "ops_listen",
    ),
    "The disk": ("cache_dir", "max_size", "min_free", "scrub_rate"),
    "Upstream and the account": (
        "default_registry", "aliases", "upstream", "username", "password_file", "ca_file", "trusted_realms",
        "private_hosts", "anonymous_fallback", "allow_unlisted",
    ),
    "Tags": ("tag_ttl", "stale_timeout", "keep_deleted_tags"),
    "Fetching": (
        "connect_timeout", "read_timeout", "request_timeout", "rate_limit_wait", "negative_ttl", "retries",
        "max_flights", "blob_connections", "prefetch_concurrency", "prefetch_max_size",
    ),
    "The fleet": (
        "fleet_redis_url", "fleet_redis_password_file", "fleet_name", "fleet_key_file", "fleet_listen",
        "fleet_advertise", "fleet_peers", "fleet_followers",
        "fleet_bucket_url", "fleet_s3_region", "fleet_s3_credentials_file", "fleet_max_size",
        "fleet_redirect",
    ),
}  # fmt: skip


def grouped_settings() -> dict[str, list[str]]:
    """The settings by group, those of no group last; ``prune`` has a command and a section of its own."""
    found = {title: [name for name in names if name in Settings.model_fields] for title, names in _GROUPS.items()}
    known = {"prune", "upstreams", "access", "limits", "oidc", *(name for names in found.values() for name in names)}
    others = [name for name in Settings.model_fields if name not in known]
    return found | ({"Others": others} if others else {})
