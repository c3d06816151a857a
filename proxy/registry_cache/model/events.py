"""What happens, as frozen values. The core emits them; logs and metrics subscribe and are never imported by it.

Each event is one JSON line of the log: the class name in snake case is its ``event`` field.
"""

import re
import time
from typing import ClassVar, Literal, get_args

import msgspec

Level = Literal["debug", "info", "warning", "error"]
CacheResult = Literal["hit", "miss", "collapsed", "shared", "revalidated", "stale", "bypass", "error"]
Kind = Literal["manifest", "blob", "tags", "referrers", "catalog", "ping", "other"]

ALLOWED = "allow"  # of a request that a rule lets in; its ``decision``


def _tag(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


class Event(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag=_tag, omit_defaults=False):
    """Something worth knowing; ``time`` is Unix seconds."""

    level: ClassVar[Level] = "info"

    time: float = msgspec.field(default_factory=time.time)


class OfRegistry(Event, frozen=True, kw_only=True):
    """What happened with one registry; its name is set by :meth:`Events.of`."""

    registry: str = ""


class Request(Event, frozen=True, kw_only=True):
    """One /v2/ request was answered.

    ``bytes`` are body bytes handed to the kernel; ``repeated_bytes`` those of them that the same client had been sent
    before, by open-ended ranges of one pull. ``detail`` says why a tag was a miss, or served stale.

    Where there are rules, ``principal`` is who asked, ``auth`` what that was proven by (login, certificate, none),
    ``decision`` allow, deny, login (asked for one), unknown (upstream does not say) or limit, and ``rule``
    the number of the one that decided; 0: none.
    """

    cache: CacheResult
    kind: Kind
    registry: str
    repository: str
    reference: str
    digest: str
    method: str
    status: int
    bytes: int
    duration_ms: float
    upstream_ms: float
    client: str
    user_agent: str
    error: str = ""
    detail: str = ""
    repeated_bytes: int = 0
    principal: str = ""
    auth: str = ""
    decision: str = ""
    rule: int = 0


class Ready(Event, frozen=True, kw_only=True):
    """The cache answers on ``address``."""

    address: str
    version: str
    cache_dir: str
    max_size_bytes: int
    upstream: str


class CertificateLoaded(Event, frozen=True, kw_only=True):
    """Clients see another certificate from now on; ``ends_at`` (Unix seconds) is its end."""

    ends_at: float


class Stopping(Event, frozen=True, kw_only=True):
    """No new connections; running transfers have ``grace_seconds``."""

    grace_seconds: float


class Warned(Event, frozen=True, kw_only=True):
    """Something the operator should know and change."""

    level: ClassVar[Level] = "warning"

    message: str


class Crashed(Event, frozen=True, kw_only=True):
    """An error in this program: worth a bug report."""

    level: ClassVar[Level] = "error"

    message: str
    traceback: str = ""


class BackgroundFailed(Event, frozen=True, kw_only=True):
    """A round of ``work`` beside the service failed; the next round tries again."""

    level: ClassVar[Level] = "warning"

    work: str
    reason: str


# --- fleet ------------------------------------------------------------------------------------------------------


class FleetJoined(Event, frozen=True, kw_only=True):
    """The replica can be followed by the others of fleet ``name``."""

    name: str
    listen: str


class FleetRefused(Event, frozen=True, kw_only=True):
    """The replica differs from the others of fleet ``name``: it runs alone until it does not any more."""

    level: ClassVar[Level] = "error"

    name: str
    reason: str


class FleetAdmitted(Event, frozen=True, kw_only=True):
    """The replica does not differ from the others any more, and takes part."""

    name: str


class FleetRedisDown(Event, frozen=True, kw_only=True):
    """Redis does not answer: this replica fetches for itself until it does."""

    level: ClassVar[Level] = "warning"

    reason: str


class FleetRedisUp(Event, frozen=True, kw_only=True):
    """Redis answers again."""


class FleetTakeover(Event, frozen=True, kw_only=True):
    """The replica at ``peer``, which fetched ``digest``, is gone: this one goes on from ``offset`` with upstream."""

    level: ClassVar[Level] = "warning"

    digest: str
    offset: int
    peer: str


class FleetBucketDown(Event, frozen=True, kw_only=True):
    """``part`` (reading, writing, deleting) of the fleet's bucket does not work: it is done without until it does."""

    level: ClassVar[Level] = "warning"

    part: str
    reason: str


class FleetBucketUp(Event, frozen=True, kw_only=True):
    """``part`` (reading, writing, deleting) of the fleet's bucket works again."""

    part: str


class FleetNotShared(Event, frozen=True, kw_only=True):
    """A blob could not be brought into the fleet's bucket; it stays with this replica, where the others fetch it."""

    level: ClassVar[Level] = "warning"

    digest: str
    reason: str


class FleetObjectRotten(Event, frozen=True, kw_only=True):
    """What the fleet's bucket has of ``digest`` is wrong: it is deleted there, and fetched from upstream."""

    level: ClassVar[Level] = "warning"

    digest: str
    reason: str


class FleetEvicted(Event, frozen=True, kw_only=True):
    """The replica has deleted from the fleet's bucket what nobody had used for the longest."""

    blobs: int
    bytes: int


class FleetSwept(Event, frozen=True, kw_only=True):
    """The replica has compared the index of the fleet's bucket with what is in it."""

    objects: int
    adopted: int
    forgotten: int


# --- store ------------------------------------------------------------------------------------------------------


class BlobStored(Event, frozen=True, kw_only=True):
    """A verified blob was published."""

    level: ClassVar[Level] = "debug"

    digest: str
    size_bytes: int


class Evicted(Event, frozen=True, kw_only=True):
    """Room was made: ``objects`` least recently used blobs, or abandoned partials, are gone."""

    objects: int
    size_bytes: int
    reason: Literal["cap", "min_free"]


class NotStored(Event, frozen=True, kw_only=True):
    """The bytes of ``digest`` went to the client but could not be kept."""

    level: ClassVar[Level] = "warning"

    digest: str
    reason: str


class Quarantined(Event, frozen=True, kw_only=True):
    """Rot: a stored blob was not what its name says. It is fetched anew when it is next asked for."""

    level: ClassVar[Level] = "error"

    digest: str
    reason: str


class ManifestOpaque(Event, frozen=True, kw_only=True):
    """What upstream supplied as a manifest is served as it is, but what it names is not known, or not all of it."""

    level: ClassVar[Level] = "warning"

    digest: str
    reason: str


class StorageFailed(Event, frozen=True, kw_only=True):
    """The disk said no to something that is not a matter of space."""

    level: ClassVar[Level] = "error"

    operation: str
    reason: str


class StoreReadOnly(Event, frozen=True, kw_only=True):
    """Nothing is stored from now on: what is here is served, everything else passes by."""

    level: ClassVar[Level] = "error"

    reason: str


class StoreWritable(Event, frozen=True, kw_only=True):
    """What comes is stored again."""


class IndexRebuilt(Event, frozen=True, kw_only=True):
    """The index was reconciled with what is in blobs/."""

    level: ClassVar[Level] = "warning"

    reason: str
    blobs: int
    size_bytes: int
    duration_ms: float


class Purged(Event, frozen=True, kw_only=True):
    """The operator removed what ``pattern`` names."""

    pattern: str
    tags: int
    objects: int
    size_bytes: int


class Pinned(Event, frozen=True, kw_only=True):
    """The operator pinned ``names``, or unpinned them."""

    pattern: str
    names: list[str]
    pinned: bool


# --- upstream ---------------------------------------------------------------------------------------------------

UpstreamKind = Literal["manifest_get", "manifest_head", "blob_get", "blob_head", "token", "other"]


class UpstreamRequest(OfRegistry, frozen=True, kw_only=True):
    """One request was made upstream; ``status`` is 0 when no answer came."""

    level: ClassVar[Level] = "debug"

    kind: UpstreamKind
    method: str
    url: str
    status: int
    duration_ms: float


class UpstreamReceived(OfRegistry, frozen=True, kw_only=True):
    """Body bytes arrived from upstream; a counter, not a log line."""

    level: ClassVar[Level] = "debug"

    bytes: int


class UpstreamFailed(OfRegistry, frozen=True, kw_only=True):
    """An exchange with upstream broke; ``attempt`` counts from 1."""

    level: ClassVar[Level] = "warning"

    origin: str
    reason: str
    attempt: int = 1


class UpstreamDown(OfRegistry, frozen=True, kw_only=True):
    """The circuit breaker of ``origin`` opened: it is left alone for ``retry_in_seconds``."""

    level: ClassVar[Level] = "error"

    origin: str
    reason: str
    retry_in_seconds: float


class UpstreamUp(OfRegistry, frozen=True, kw_only=True):
    """``origin`` answers again."""

    origin: str


class UpstreamLimited(OfRegistry, frozen=True, kw_only=True):
    """Upstream said 429; nothing is asked of it before ``retry_after_seconds`` have passed."""

    level: ClassVar[Level] = "warning"

    origin: str
    retry_after_seconds: float
    message: str


class QuotaObserved(OfRegistry, frozen=True, kw_only=True):
    """The ``ratelimit-*`` headers of a manifest answer."""

    level: ClassVar[Level] = "debug"

    limit: int
    remaining: int
    window_seconds: int
    source: str


class CredentialRejected(OfRegistry, frozen=True, kw_only=True):
    """The token service refuses the configured account; it is not asked again with it for a while."""

    level: ClassVar[Level] = "error"

    realm: str
    username: str
    message: str
    retry_in_seconds: float


class CredentialWithheld(OfRegistry, frozen=True, kw_only=True):
    """A challenge named a realm that is not trusted with the credential."""

    level: ClassVar[Level] = "error"

    realm: str


# --- flights ----------------------------------------------------------------------------------------------------


class FlightResumed(Event, frozen=True, kw_only=True):
    """A broken transfer goes on at ``offset``."""

    level: ClassVar[Level] = "warning"

    digest: str
    offset: int
    attempt: int
    reason: str


class FlightFailed(Event, frozen=True, kw_only=True):
    """A blob could not be fetched."""

    level: ClassVar[Level] = "error"

    digest: str
    reason: str


class Prefetched(Event, frozen=True, kw_only=True):
    """A layer was fetched before a client asked for it: a request upstream that no miss in the log stands for."""

    digest: str
    size_bytes: int


class PrefetchWasted(Event, frozen=True, kw_only=True):
    """A layer was fetched before a client asked for it, and then no client did."""

    digest: str
    size_bytes: int
    reason: str


# --- clients ----------------------------------------------------------------------------------------------------

RefusalKind = Literal["malformed", "cross_site", "host", "path", "operator"]
REFUSAL_KINDS: tuple[RefusalKind, ...] = get_args(RefusalKind)


class RequestRefused(Event, frozen=True, kw_only=True):
    """A request was refused whatever it asked for; each is counted, and :class:`Refusals` is the line for many."""

    level: ClassVar[Level] = "debug"

    kind: RefusalKind
    client: str
    reason: str


class Refusals(Event, frozen=True, kw_only=True):
    """``requests`` were refused since the last line of this kind; ``client`` and ``reason`` are the last one's."""

    level: ClassVar[Level] = "warning"

    kind: RefusalKind
    requests: int
    client: str
    reason: str


class AccessDenied(Event, frozen=True, kw_only=True):
    """No rule let ``principal`` pull: so many ``requests`` since its last line; ``repository`` is the last one's."""

    principal: str
    auth: str
    requests: int
    repository: str


class Limited(Event, frozen=True, kw_only=True):
    """``principal`` has had what a limit gives it: so many ``requests`` were refused since its last line of that."""

    level: ClassVar[Level] = "warning"

    principal: str
    auth: str
    limit: str
    requests: int
    reason: str
