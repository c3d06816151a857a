"""The figures of ``/_stats`` and of the admin interface, as types: the service fills them, page and terminal read them.

Within one ``schema`` fields are only added, with a default, so that an older command understands a newer service. A
field that goes, or comes to mean something else, is a new schema.
"""

from typing import Any, TypeVar

import msgspec

from registry_cache.model.errors import RegistryCacheError

SCHEMA = 1


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """What the types of this module have in common. Sizes are in bytes, times in Unix seconds."""


class ByteFigures(Figures, frozen=True, kw_only=True):
    """Body bytes since the start."""

    served: int
    from_cache: int
    from_upstream: int


class RepositoryFigures(Figures, frozen=True, kw_only=True):
    """What was asked for of one repository since the start, and the part of it that was served from here."""

    name: str
    requests: int
    bytes: int
    hits: int
    from_cache: int


class ClientFigures(Figures, frozen=True, kw_only=True):
    """What one client address asked for since the start, and the part of it that was served from here."""

    address: str
    requests: int
    bytes: int
    hits: int
    from_cache: int


class AllRepositories(Figures, frozen=True, kw_only=True):
    """Every repository that is counted, together; ``count`` is how many."""

    count: int
    requests: int
    bytes: int
    hits: int
    from_cache: int


class PrefetchFigures(Figures, frozen=True, kw_only=True):
    """Bytes fetched before a client asked for them, and those of them that no client asked for."""

    fetched_bytes: int
    wasted_bytes: int


class RefusedFigures(Figures, frozen=True, kw_only=True):
    """Requests refused whatever they asked for, since the start; ``client`` and ``reason`` are the last one's."""

    requests: int
    last_at: float
    client: str
    reason: str


class UnstoredFigures(Figures, frozen=True, kw_only=True):
    """Content that reached its clients and could not be kept, since the start; ``reason`` is the last one's."""

    objects: int
    last_at: float
    reason: str


class StoreFigures(Figures, frozen=True, kw_only=True):
    """What is in the store now; evictions since the start.

    Attributes:
        read_only: why nothing is stored; empty when all is well.
    """

    size_bytes: int
    max_size_bytes: int
    partial_bytes: int
    blobs: int
    manifests: int
    tags: int
    evicted_objects: int
    evicted_bytes: int
    quarantined: int
    read_only: str = ""


class DiskFigures(Figures, frozen=True, kw_only=True):
    """The filesystem of the cache directory: bytes, and files (0 where it has no bound for them)."""

    size_bytes: int
    free_bytes: int
    min_free_bytes: int
    free_files: int = 0
    min_free_files: int = 0


class QuotaFigures(Figures, frozen=True, kw_only=True):
    """What upstream's ``ratelimit-*`` headers said last."""

    limit: int
    remaining: int
    window_seconds: int
    source: str
    observed_at: float


class UpstreamFigures(Figures, frozen=True, kw_only=True):
    """A registry as it is seen from here; requests, failures and bytes since the start.

    Attributes:
        down: the origins whose breaker is open.
        answered_at: when it last answered anything; None for never.
        limited_for_seconds: how long it wants to be left alone after a 429; 0: not at all.
        limited_elsewhere: the origin that does, where that is not the registry's own but its token service or CDN.
        requests: made to it, by kind.
        aliases: other names that images have for it.
        served: requests of clients for what is its, by what came of them.
        has_account: whether it is asked with an account; None where an older service does not say it.
    """

    reachable: bool
    down: list[str]
    answered_at: float | None
    credential_rejected: bool
    limited_for_seconds: float
    requests: dict[str, int]
    failures: int
    rate_limit: QuotaFigures | None
    limited_elsewhere: str = ""
    aliases: list[str] = []
    received_bytes: int = 0
    served: dict[str, int] = {}
    served_bytes: int = 0
    has_account: bool | None = None


class MemberFigures(Figures, frozen=True, kw_only=True):
    """What a replica of a fleet says of itself; counts and bytes since its start.

    Attributes:
        address: where the others reach it; empty while it does not know.
        heard_at: when it said so.
        upstream_bytes: that have come from upstream; ``peer_bytes``: from other replicas; ``bucket_bytes``: from there.
    """

    address: str
    version: str
    heard_at: float
    upstream_bytes: int
    peer_bytes: int
    bucket_bytes: int
    takeovers: int


class FleetFigures(Figures, frozen=True, kw_only=True):
    """What this replica does for the fleet and gets from it; counts and bytes since the start.

    Attributes:
        address: where the others reach it; empty while that is not known, and it runs alone.
        redis_trouble: why Redis is left alone; empty while it works.
        refusal: why it has no part in the fleet: it asks another upstream, or has another key; empty while it has.
        leases: blobs that it fetches for all, now.
        led: blobs that it has fetched for all; ``takeovers``: those of them whose leader had died.
        followed: bodies that it has begun to read from others.
        alone: blobs that it has fetched for itself, since neither Redis nor a peer could help.
        refused: requests on the fleet's port without the key.
        reading_trouble: why the bucket is not read; empty while it is, or where there is none.
        writing_trouble: so, or why nothing is deleted there.
        sharing: blobs that are on their way into the bucket, or wait for that, now.
        from_bucket: bodies that it has begun to read from the bucket; ``bucket_bytes``: their bytes.
        bucket_redirects: clients that it has sent to the bucket; ``bucket_redirects_bytes``: for so many.
        shared: blobs that it has brought there; ``not_shared``: tried, and could not.
        evicted: blobs that it has deleted there for room; ``rotten``: since they were wrong.
        members: who has said in the last half minute that it takes part; this replica is the first.
    """

    name: str
    address: str
    redis_trouble: str
    leases: int
    led: int
    followed: int
    takeovers: int
    alone: int
    upstream_bytes: int = 0
    peer_bytes: int
    served_bytes: int
    redirected: int
    refused: int
    refusal: str = ""
    has_bucket: bool = False
    reading_trouble: str = ""
    writing_trouble: str = ""
    sharing: int = 0
    from_bucket: int = 0
    bucket_bytes: int = 0
    shared: int = 0
    shared_bytes: int = 0
    bucket_redirects: int = 0
    bucket_redirects_bytes: int = 0
    not_shared: int = 0
    evicted: int = 0
    evicted_bytes: int = 0
    rotten: int = 0
    members: list[MemberFigures] = []

    @property
    def versions(self) -> list[str]:
        """Of its members, each once."""
        return sorted({one.version for one in self.members})


class Transfer(Figures, frozen=True, kw_only=True):
    """A flight that is under way; ``size_bytes`` is None while upstream has not told it.

    Attributes:
        bytes_per_second: on average since its first byte in this run; 0 before that.
        seconds_left: at that rate; None where rate or size are not known.
    """

    repository: str
    digest: str
    received_bytes: int
    size_bytes: int | None
    readers: int
    bytes_per_second: float = 0.0
    seconds_left: float | None = None


class Stats(Figures, frozen=True, kw_only=True):
    """``GET /_stats``; its form is fixed.

    Attributes:
        requests: by what came of them, since the start.
        latency_seconds: of hits and misses, the quantiles; None before the first.
        events: other things that happened, by the event of the log.
        host: the name of the machine, as it calls itself.
        clients: the addresses with the most bytes.
        unstored: None while everything could be kept.
        refused: by kind: malformed, cross_site, host, path, operator.
        upstream: the default registry.
        upstreams: every registry, by its name, the default one first.
        fleet: None where there is none.
    """

    schema: int = SCHEMA
    version: str
    instance: str
    host: str = ""
    uptime_seconds: float
    requests: dict[str, int]
    hit_ratio: float | None
    byte_hit_ratio: float | None
    bytes: ByteFigures
    latency_seconds: dict[str, dict[str, float | None]]
    repositories: list[RepositoryFigures]
    all_repositories: AllRepositories
    clients: list[ClientFigures] = []
    prefetch: PrefetchFigures
    events: dict[str, int]
    refused: dict[str, RefusedFigures] = {}
    unstored: UnstoredFigures | None = None
    store: StoreFigures
    disk: DiskFigures | None
    upstream: UpstreamFigures
    upstreams: dict[str, UpstreamFigures] = {}
    flights: int
    transfers: list[Transfer]
    fleet: FleetFigures | None = None


class PinFigures(Figures, frozen=True, kw_only=True):
    """How many pins there are, and the bytes that are here for them."""

    number: int
    size_bytes: int


class NextEviction(Figures, frozen=True, kw_only=True):
    """A blob that would go if room were needed now."""

    digest: str
    size_bytes: int
    last_use: float
    repositories: list[str]


class FullStats(Stats, frozen=True, kw_only=True):
    """The admin interface's ``/stats``; ``history`` is by the name of the span, its fields those of ``Counts``.

    Attributes:
        largest_bytes: the size of the largest blob that is here.
    """

    history: dict[str, dict[str, int]]
    pins: PinFigures
    next_evictions: list[NextEviction]
    largest_bytes: int = 0


class OtherSchema(RegistryCacheError):
    """The figures are those of a service whose version this command does not understand."""


S = TypeVar("S", bound=Stats)


def read(document: Any, kind: type[S]) -> S:
    """The figures in *document*, which is parsed JSON.

    Raises:
        OtherSchema: of another version's service; the text says which, and what to do.
    """
    told = document if isinstance(document, dict) else {}
    schema, version = told.get("schema", 0), str(told.get("version", "unknown"))[:100]
    try:
        if schema != SCHEMA:
            raise OtherSchema(
                f"the running service has version {version} (figures of schema {schema}), this command knows schema "
                f"{SCHEMA}: restart the service, or use the command of its version"
            )
        return msgspec.convert(told, kind)
    except msgspec.ValidationError as error:
        raise OtherSchema(
            f"the running service has version {version} and gives figures that this command does not understand "
            f"({error}): restart the service"
        ) from error
