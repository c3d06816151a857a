"""One request while it is answered: what the log line and the headers of the answer are made of."""

import time
from collections.abc import Callable
from typing import NamedTuple

from aiohttp import web

from registry_cache.access.limits import Account
from registry_cache.access.rules import Principal
from registry_cache.model import events
from registry_cache.model.events import CacheResult, Kind
from registry_cache.model.oci import Digest, Repository
from registry_cache.model.units import well_formed
from registry_cache.pull.answers import Served

# What is passed on may be a page or a script: a browser that is led to it shows and runs nothing of it.
INERT = {"X-Content-Type-Options": "nosniff", "Content-Security-Policy": "default-src 'none'; sandbox"}
FIXED_HEADERS = {"Docker-Distribution-Api-Version": "registry/2.0", **INERT}
JSON = {"Content-Type": "application/json"}
# ``detail`` of a request that was refused whatever it asked for: no trouble of the cache's.
REFUSED = "refused"

_STATUS: dict[CacheResult, str] = {
    "hit": "registry-cache; hit",
    "miss": "registry-cache; fwd=miss; stored",
    "collapsed": "registry-cache; fwd=miss; collapsed",
    "shared": "registry-cache; hit; detail=shared",
    "revalidated": "registry-cache; hit; detail=revalidated",
    "stale": "registry-cache; hit; fwd=stale; detail=",
    "bypass": "registry-cache; fwd=bypass",
    "error": "registry-cache; fwd=miss; detail=error",
}


class Audit(NamedTuple):
    """Who asked, and what was decided; see :class:`registry_cache.model.events.Request`."""

    principal: str = ""
    auth: str = ""
    decision: str = ""
    rule: int = 0


NOBODY = Audit()


class Exchange:
    """What becomes known of one request while it is answered; its log line in the end."""

    __slots__ = (
        "account", "audit", "began", "body_begun", "body_bytes", "digest", "error", "kind", "open_ended", "principal",
        "recheck", "reference", "registry", "repeated_bytes", "repository", "request", "served",
    )  # fmt: skip

    def __init__(self, request: web.BaseRequest, registry: str) -> None:
        self.request = request
        self.registry = registry  # as long as it is not known whose repository is asked for
        self.began = time.perf_counter()
        self.kind: Kind = "other"
        self.repository: Repository | None = None
        self.reference = ""
        self.digest = ""
        self.served = Served("error")
        self.body_begun = False  # the head is out: no other answer can be given any more
        self.body_bytes = 0
        self.open_ended = False  # the client may leave when it has what it wanted
        self.repeated_bytes = 0  # of body_bytes: what it had been sent before, and did not want again
        self.error = ""
        self.audit = NOBODY
        self.account: Account | None = None  # of whoever asks, where it is limited
        self.principal: Principal | None = None  # where the cache asks who is there
        self.recheck: Callable[[], None] | None = None  # raises if it may not be answered any more

    def check(self) -> None:
        """Before an answer that was found goes out.

        Raises:
            Hidden: it must not, any more.
        """
        if self.recheck is not None:
            self.recheck()

    def refused(self, error: Exception) -> None:
        """No answer was looked for: neither a hit nor a miss, and nothing of the cache's has failed."""
        self.served = Served("bypass", detail=REFUSED)
        self.error = well_formed(str(error))

    @property
    def left_status(self) -> int:
        """The status of an answer whose client left before its end.

        Who asked for everything from somewhere on, and took some of it, has had what it wanted (containerd does so).
        """
        return 206 if self.open_ended and self.body_bytes else 499

    def event(self, status: int) -> events.Request:
        """The log line."""
        request, repository = self.request, self.repository
        return events.Request(
            cache=self.served.result,
            kind=self.kind,
            registry=repository.registry if repository else self.registry,
            repository=repository.name if repository else "",
            reference=self.reference,
            digest=self.digest,
            method=well_formed(request.method[:40]),
            status=status,
            bytes=self.body_bytes,
            duration_ms=round((time.perf_counter() - self.began) * 1000, 3),
            upstream_ms=round(self.served.upstream_seconds * 1000, 3),
            client=client_address(request),
            user_agent=user_agent(request),
            error=self.error,
            detail=self.served.detail,
            repeated_bytes=self.repeated_bytes,
            **self.audit._asdict(),
        )


def answer_headers(served: Served, digest: Digest | None = None, *, head: bool = False) -> dict[str, str]:
    """The headers that every answer carries. Source: RFC 9211 (``Cache-Status``), RFC 9111 (``Age``)."""
    headers = dict(FIXED_HEADERS)
    headers["Cache-Status"] = _STATUS[served.result] + (served.detail if served.result == "stale" else "")
    if head and served.result == "miss":
        headers["Cache-Status"] = "registry-cache; fwd=miss"  # only a head was fetched: nothing is stored
    if served.age_seconds is not None:
        headers["Age"] = str(int(served.age_seconds))
    if served.result == "stale":
        headers["Warning"] = '110 registry-cache "Response is Stale"'
    if digest is not None:
        headers["Docker-Content-Digest"] = digest
        headers["ETag"] = f'"{digest}"'
    return headers


def namespace(registry: str) -> dict[str, str]:
    """Whose content it is. Source: OCI distribution spec, "Registry Proxying"."""
    return {"OCI-Namespace": registry}


def manifest_headers(
    registry: str, served: Served, digest: Digest, media_type: str, *, head: bool = False
) -> dict[str, str]:
    """The headers of an answer with a manifest, but for its length."""
    return {**answer_headers(served, digest, head=head), **namespace(registry), "Content-Type": media_type}


def blob_headers(registry: str, served: Served, digest: Digest, *, head: bool = False) -> dict[str, str]:
    """The headers of an answer with a blob, but for length and range."""
    headers = answer_headers(served, digest, head=head) | namespace(registry)
    headers["Accept-Ranges"] = "bytes"
    headers["Content-Type"] = "application/octet-stream"
    return headers


def user_agent(request: web.BaseRequest) -> str:
    """For the log: bounded and escaped, it is the client's to choose."""
    return well_formed(request.headers.get("User-Agent", "")[:200])


def client_address(request: web.BaseRequest) -> str:
    """The client's address, for the log."""
    return plain_address(request.remote or "")


def plain_address(address: str) -> str:
    """An IPv4 address that came through a socket for both (``::ffff:192.0.2.1``) as people know it."""
    return address.removeprefix("::ffff:")


def whose_share(address: str) -> str:
    """Whom an address counts for where clients share: on loopback everybody has sixteen million, and one share."""
    plain = plain_address(address)
    return "127.0.0.1" if plain.startswith("127.") else plain


def only_if_cached(request: web.BaseRequest) -> bool:
    """Whether the client wants what is here or nothing. Source: RFC 9111, section 5.2.1.7."""
    return "only-if-cached" in request.headers.get("Cache-Control", "").lower()


def matches_etag(request: web.BaseRequest, digest: Digest) -> bool:
    """Whether ``If-None-Match`` names the content that would be sent."""
    header = request.headers.get("If-None-Match")
    if header is None:
        return False
    tags = [tag.strip().removeprefix("W/").strip('"') for tag in header[:4096].split(",")]
    return "*" in tags or digest in tags
