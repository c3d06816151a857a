"""What an operator should look at now and what to do about it, from ``/_stats``: for the page and the terminal."""

from collections.abc import Iterator
from typing import Literal, NamedTuple

from registry_cache.model.clock import is_recent
from registry_cache.model.units import counted, format_since, format_size
from registry_cache.observe.figures import FleetFigures, Stats, UpstreamFigures

_QUOTA_LOW = 0.1
# How long after the last one.
_REFUSED_SECONDS = 900.0
# Of a token service or a CDN: it counts no pulls.
_FEWER_AT_ONCE = (
    "It is asked again by itself after that. This host's address has asked it too often: the recent misses show who "
    "pulls what."
)
_REFUSED_BECAUSE = {
    "malformed": "of another protocol than HTTP",
    "cross_site": "of web pages of other sites",
    "host": "for a Host that is no name of this cache",
    "path": "with something before /v2/",
    "operator": "for figures or the page",
}
_REFUSED_REMEDY = {
    "malformed": "podman and skopeo ask by TLS first, and go on without: nothing is wrong then. Else a mirror's URL "
    "begins with https://, or it is a scanner or a broken client.",
    "cross_site": "Somebody's browser at that address shows a page that tries to pull through the cache.",
    "host": "If it is a name of this cache, put it into HOSTS. If not, somebody made it resolve here.",
    "path": "Clients there have a mirror's URL with a path: it is http://HOST:PORT and nothing behind it.",
    "operator": "If that address may read them, put it into ADMIN_NETWORKS.",
}


class Notice(NamedTuple):
    """Something that is not as it should be."""

    level: Literal["warning", "error"]
    what: str
    remedy: str


def notices(stats: Stats, now: float) -> Iterator[Notice]:
    """The worst first.

    Args:
        now: Unix seconds.
    """
    fleet = _of_the_fleet(stats.fleet) if stats.fleet else ()
    found = [*_of_the_store(stats, now), *_of_upstreams(stats, now), *fleet, *_of_clients(stats, now)]
    yield from sorted(found, key=lambda notice: notice.level != "error")


def _of_upstreams(stats: Stats, now: float) -> Iterator[Notice]:
    """Of each registry; with its name, where there are several."""
    if len(stats.upstreams) <= 1:
        yield from _of_upstream(stats.upstream, now, "")
        return
    for name, upstream in stats.upstreams.items():
        yield from _of_upstream(upstream, now, f"{name}: ")


def _of_upstream(upstream: UpstreamFigures, now: float, name: str) -> Iterator[Notice]:
    if upstream.credential_rejected:
        yield Notice(
            "error",
            f"{name}Upstream rejects the credential of the account that is set (USERNAME): only what is cached is "
            "served.",
            "Make a new access token for that account. After make install: write it into "
            "/etc/credstore/registry-cache.password, then systemctl restart registry-cache. Else: into PASSWORD_FILE, "
            "which is read again by itself. registry-cache doctor tells more.",
        )
    if not upstream.reachable:
        yield Notice(
            "error",
            f"{name}Upstream does not answer: {', '.join(upstream.down)}. What is cached is served, other pulls fail.",
            "It is tried again by itself. registry-cache doctor tells whether it is the network, TLS or upstream.",
        )
    if upstream.limited_for_seconds:
        who = upstream.limited_elsewhere
        yield Notice(
            "warning",
            f"{name}{who or 'Upstream'} said 429 and is left alone for {upstream.limited_for_seconds:.0f} s.",
            f"What is cached is served. {_FEWER_AT_ONCE if who else _more_pulls(upstream)}",
        )
    quota = upstream.rate_limit
    is_low = quota is not None and quota.remaining < quota.limit * _QUOTA_LOW
    if quota and is_low and is_recent(quota.observed_at, now, quota.window_seconds):
        yield Notice(
            "warning",
            f"{name}{quota.remaining} of {quota.limit} pulls {_is(quota.remaining)} left.",
            f"{_more_pulls(upstream)} Put off what is not cached; the recent misses show who pulls what.",
        )


def _of_the_fleet(fleet: FleetFigures) -> Iterator[Notice]:
    if fleet.redis_trouble:
        yield Notice(
            "error",
            f"The fleet's Redis is left alone: {fleet.redis_trouble}. This replica fetches and counts for itself.",
            "It is tried again every two seconds. See to Redis, FLEET_REDIS_URL and FLEET_REDIS_PASSWORD_FILE.",
        )
    elif fleet.refusal:
        yield Notice(
            "error",
            f"The fleet {fleet.name} has refused this replica, which runs alone: {fleet.refusal}.",
            "Give all replicas the same settings and key, or this one another FLEET_NAME.",
        )
    elif not fleet.address:
        yield Notice(
            "error",
            "Nobody knows where the other replicas reach this one, so it runs alone.",
            "Set FLEET_ADVERTISE to an address that is in FLEET_PEERS.",
        )
    parts = {"read": fleet.reading_trouble, "written to": fleet.writing_trouble}
    for part, trouble in parts.items():
        if trouble:
            yield Notice(
                "error",
                f"The fleet's bucket is not {part}: {trouble}. Pulls do without it.",
                "It is tried again by itself. See to the store, FLEET_BUCKET_URL, FLEET_S3_CREDENTIALS_FILE and the "
                "key's rights.",
            )
    if len(fleet.versions) > 1:
        yield Notice(
            "warning",
            f"The fleet's replicas have different versions: {', '.join(fleet.versions)}.",
            "They work together. If this is no upgrade that goes on just now, end it.",
        )


def _more_pulls(upstream: UpstreamFigures) -> str:
    """What to do about a quota, for who is asking: an account or an address."""
    if upstream.has_account is None:
        return "If the cache pulls anonymously: an account (USERNAME) has more pulls."
    if upstream.has_account:
        return (
            "The pulls are those of the account that is set (USERNAME): wait until they are back, give it a plan with "
            "more, or raise TAG_TTL and MAX_SIZE so that it needs fewer."
        )
    return (
        "No account is set, so the pulls are those of this host's address, which others may share: set USERNAME and "
        "PASSWORD_FILE, an account has more."
    )


def _of_the_store(stats: Stats, now: float) -> Iterator[Notice]:
    store, disk = stats.store, stats.disk
    if disk and disk.free_bytes < disk.min_free_bytes:
        yield Notice(
            "warning",
            f"{format_size(disk.free_bytes)} are free on the disk, less than MIN_FREE "
            f"({format_size(disk.min_free_bytes)}): cached content is evicted.",
            "Make room: registry-cache prune shows which of the host's own images can go.",
        )
    if disk and disk.free_files < disk.min_free_files:
        yield Notice(
            "warning",
            f"{counted(disk.free_files, 'inode')} {_is(disk.free_files)} free on the disk, fewer than the "
            f"{disk.min_free_files} that stay free (MIN_FREE): cached content is evicted, however many bytes are free.",
            "Remove small files elsewhere on that disk: df -i shows whether it is full of them.",
        )
    unstored = stats.unstored
    if unstored and not store.read_only and is_recent(unstored.last_at, now, _REFUSED_SECONDS):
        yield Notice(
            "error",
            f"{counted(unstored.objects, 'content')} {_was(unstored.objects)} not stored, the last one "
            f"{format_since(unstored.last_at, now)} ago: {unstored.reason}. What is not stored reaches its client, and "
            "each pull of it asks upstream again.",
            "Make room: on the disk (df, df -i; registry-cache prune for the host's own images), or with a larger "
            "MAX_SIZE.",
        )
    if store.read_only:
        yield Notice(
            "error",
            f"Nothing is stored: {store.read_only}. What is cached is served, everything else passes by.",
            "It is tried again every few seconds. Look whether the disk is full, read-only or failing (df, dmesg), and "
            "whether another program holds index.sqlite3.",
        )
    if store.quarantined:
        yield Notice(
            "error",
            f"{counted(store.quarantined, 'rotten file')} {_was(store.quarantined)} put aside.",
            "They are fetched anew when asked for. Look at the disk (dmesg, smartctl), then run registry-cache verify.",
        )


def _is(number: int) -> str:
    return "is" if number == 1 else "are"


def _was(number: int) -> str:
    return "was" if number == 1 else "were"


def _of_clients(stats: Stats, now: float) -> Iterator[Notice]:
    for kind, refused in sorted(stats.refused.items()):
        if is_recent(refused.last_at, now, _REFUSED_SECONDS):
            yield Notice(
                "warning",
                f"{counted(refused.requests, 'request')} {_REFUSED_BECAUSE.get(kind, kind)} {_was(refused.requests)} "
                f"refused, the last one from {refused.client or 'an unknown client'}: {refused.reason}.",
                _REFUSED_REMEDY.get(kind, "The log has their lines."),
            )
