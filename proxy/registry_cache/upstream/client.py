"""The questions that the rest of the program asks of upstream, and the answers in its own words.

Small answers (manifests, tags, tokens, HEADs) come through :mod:`.transport`; blob bodies through :mod:`.bulk`, under
the same rules: :mod:`.exchange`. No foreign exception leaves this package.
"""

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncIterator
from typing import NamedTuple
from urllib.parse import urlsplit

from registry_cache.model import events
from registry_cache.model.bus import Events
from registry_cache.model.errors import (
    BrokenOff,
    HeadRefused,
    RangeRefused,
    RateLimited,
    RegistryCacheError,
    SettingsError,
    UpstreamError,
    UpstreamRefused,
)
from registry_cache.model.oci import DOCKER_HUB, MANIFEST_ACCEPT, MANIFEST_MAX_BYTES, Digest, Reference, Repository
from registry_cache.model.ranges import ContentRange
from registry_cache.settings.registries import RegistrySettings
from registry_cache.upstream.account import Account
from registry_cache.upstream.addresses import AddressRules, host_of
from registry_cache.upstream.ask import Ask, Send
from registry_cache.upstream.auth import Authenticator, TokenReply
from registry_cache.upstream.authorized import Authorized
from registry_cache.upstream.blob_body import BlobBody
from registry_cache.upstream.bulk import BulkClient, BulkReply
from registry_cache.upstream.challenges import Challenge, parse_challenges
from registry_cache.upstream.changed import ChangedLogin
from registry_cache.upstream.credential import Credential, FileCredential, RealmTrust
from registry_cache.upstream.decoding import decoded, is_gzip, plain_length
from registry_cache.upstream.dialling import Dialling
from registry_cache.upstream.exchange import Exchange
from registry_cache.upstream.forward import chosen_proxy
from registry_cache.upstream.headers import Link, age_seconds, content_digest, content_length, is_page, media_type
from registry_cache.upstream.helper import HelperCredential
from registry_cache.upstream.judged import WHOLE, message_of
from registry_cache.upstream.ratelimit import RateLimit, is_limit
from registry_cache.upstream.redact import Redactor
from registry_cache.upstream.reply import Reply, error_body
from registry_cache.upstream.resilience import backoff_seconds
from registry_cache.upstream.shapes import ListKind, is_list, manifest_type
from registry_cache.upstream.tls import own_context, show, tls_context
from registry_cache.upstream.transport import SmallClient
from registry_cache.upstream.urls import origin_of
from registry_cache.upstream.watched import Breakers, Prober

_MEDIA_TYPE = re.compile(r"[\w.+-]{1,100}/[\w.+-]{1,150}", re.ASCII)
_OTHER_TYPES = ("text/", "image/", "application/xhtml", "application/octet")
# What docker login calls Docker Hub.
_HUB_SERVER = "https://index.docker.io/v1/"
_UNKNOWN_TYPE = "application/octet-stream"
_TOKEN_MAX_BYTES = 64 * 1024
LIST_MAX_BYTES = 16 * 1024 * 1024
_SMALL_ATTEMPTS = 3
# An origin that will be tried again this soon is waited for; else the client hears at once that it is down.
_PATIENCE_SECONDS = 5.0


class ManifestHead(NamedTuple):
    """What upstream says of a manifest without sending it; what it does not say is None, or octet-stream."""

    digest: Digest | None
    media_type: str
    size_bytes: int | None
    age_seconds: int = 0  # so long ago that was true: upstream is a cache itself


class FetchedManifest(NamedTuple):
    """A manifest as upstream sent it; not yet verified."""

    body: bytes
    media_type: str
    digest: str | None  # the Docker-Content-Digest header, if there was one
    age_seconds: int = 0  # as for a head


class FetchedList(NamedTuple):
    """The answer to tags/list or referrers; ``link`` leads to the next page under the name that was asked for.

    ``trouble`` is why it is an older one, of ``age_seconds`` ago.
    """

    body: bytes
    content_type: str
    link: str | None
    filters_applied: str | None
    age_seconds: float = 0.0
    trouble: RegistryCacheError | None = None


class Upstream:
    """One registry, as seen by one account.

    Args:
        connections: to blobs, at the same time; small answers have some more.
        redactor: that knows more than what is learnt here.
    """

    def __init__(
        self,
        registry: RegistrySettings,
        *,
        connections: int,
        events: Events,
        redactor: Redactor | None = None,
    ) -> None:
        self._events = events = events.of(registry.name)
        base_url = registry.url
        self.name = registry.name
        self.origin = origin_of(base_url)
        self.redactor = redactor or Redactor()
        self.limits = RateLimit(self.origin, self.redactor, events)
        self.breakers = Breakers(base_url, events)
        self.answered_at: float | None = None  # Unix seconds
        named_hosts = [*registry.private_hosts, *map(host_of, registry.trusted_realms)]
        addresses = AddressRules(base_url, named_hosts, public_only=not registry.is_listed)
        self._certificate = registry.client_cert, registry.client_key
        self._own_tls = (
            own_context(registry.ca_file, registry.client_cert, registry.client_key) if registry.client_cert else None
        )
        dialling = Dialling(
            tls_context(registry.ca_file),
            addresses,
            self.redactor,
            connect_timeout_seconds=registry.connect_timeout,
            read_timeout_seconds=registry.read_timeout,
            proxy=chosen_proxy(registry.proxy),
            own_tls=self._own_tls,
            own_hosts=frozenset({registry.host, *registry.trusted_realms}),
        )
        self._client = SmallClient(dialling, connections=connections + 32)
        self._bulk = BulkClient(dialling, connections=connections)
        self._small_timeout_seconds = dialling.answer_timeout_seconds  # the slowest whole exchange
        self._watched = self.breakers.around(self._client.send)
        account = Account(
            _credential(registry),
            anonymous_fallback=registry.anonymous_fallback,
            registry=self.origin,
            redactor=self.redactor,
            events=events,
        )
        self._trust = RealmTrust(base_url, registry.trusted_realms)
        self.auth = Authenticator(
            account=account,
            trust=self._trust,
            fetch=self._fetch_token,
            ping=self._ping,
            redactor=self.redactor,
            events=events,
        )
        self._exchange = Exchange(
            base_url,
            auth=self.auth,
            with_account=account.exists,
            limits=self.limits,
            breakers=self.breakers,
            addresses=addresses,
            redactor=self.redactor,
            events=events,
            answered=self._answered,
        )
        self._small_chain = self._exchange.chain(self._client.send, self._own)
        self._bulk_chain = self._exchange.chain(self._bulk.send, self._own)
        self._prober = Prober(self.breakers, self._client.send, events, bounded=self._bounded)
        self._prober.start()
        self._changed_login = ChangedLogin(account, self.auth, events, registry=self.origin)
        if account.exists:
            self._changed_login.start()

    def __repr__(self) -> str:
        return f"<Upstream {self.origin}>"

    @property
    def limited(self) -> tuple[float, str]:
        """For how long, in seconds, it wants to be left alone after a 429 at most.

        And which of its origins does: that of its token service or its CDN; empty for its own.
        """
        own = max(self.limits.pulls.closed_for_seconds, self.limits.requests.closed_for_seconds)
        return max((own, ""), self.breakers.longest_limit, key=lambda limit: limit[0])

    def _own(self, watched: Send) -> Send:
        """The step that authorizes what goes to upstream's own origin."""
        return Authorized(watched, self.auth)

    def reload(self) -> None:
        """Read again the certificate that this one shows; connections from now on have it."""
        certificate, key = self._certificate
        if self._own_tls is None or certificate is None:
            return
        try:
            show(self._own_tls, certificate, key)
        except SettingsError as error:
            self._events.emit(events.Warned(message=f"{self.name}: {error}"))

    def interrupt(self) -> None:
        """End every blob transfer under way at once, whatever its thread waits for; for the end of the process."""
        self._bulk.interrupt()

    async def aclose(self) -> None:
        """Close every connection."""
        await self._prober.aclose()
        await self._changed_login.aclose()
        await self.auth.aclose()
        await self._client.aclose()
        self._bulk.close()

    # --- questions ----------------------------------------------------------------------------------------------

    async def manifest_head(self, reference: Reference, *, attempts: int = _SMALL_ATTEMPTS) -> ManifestHead:
        """What *reference* is now. Hub does not count this as a pull.

        Raises:
            HeadRefused: a GET has to find out; its no may be another's than the registry's.
            ManifestUnknown, CredentialRefused, RateLimited, UpstreamError.
        """
        async with self._small("manifest_head", "HEAD", _manifest_path(reference), reference, attempts) as reply:
            size = plain_length(reply.headers) or None
            if size is not None and size > MANIFEST_MAX_BYTES:
                raise UpstreamError(f"the manifest is longer than {MANIFEST_MAX_BYTES} bytes")
            kind = self._type(reply) or _UNKNOWN_TYPE
            return ManifestHead(content_digest(reply.headers), kind, size, age_seconds(reply.headers))

    async def manifest(self, reference: Reference, *, attempts: int = _SMALL_ATTEMPTS) -> FetchedManifest:
        """The manifest itself. Hub counts this as a pull.

        By digest, any bytes that have it are what was asked for. By tag, they have to be able to be a manifest.

        Raises:
            ManifestUnknown, NameUnknown, Denied, CredentialRefused, RateLimited, UpstreamError.
        """
        path, limit = _manifest_path(reference), MANIFEST_MAX_BYTES
        reply, body = await self._whole("manifest_get", path, reference, limit, reference.digest, attempts)
        digest, kind = content_digest(reply.headers), await manifest_type(body)
        if reference.digest is None and kind is None:
            raise UpstreamError("upstream answered with something that is no manifest")
        kind = self._type(reply) or kind or _UNKNOWN_TYPE
        return FetchedManifest(body, kind, digest, age_seconds(reply.headers))

    async def blob_head(self, repository: Repository, digest: Digest) -> int:
        """The size of a blob, in bytes; found out by a GET of one byte where a HEAD does not tell.

        Raises:
            BlobUnknown, NameUnknown, Denied, CredentialRefused, RateLimited, UpstreamError.
        """
        path = _blob_path(repository, digest)
        with contextlib.suppress(HeadRefused):
            async with self._small("blob_head", "HEAD", path, repository) as reply:
                if (length := plain_length(reply.headers)) and not is_page(reply.headers):
                    return length
        with contextlib.suppress(RangeRefused):
            return await self._size_by_get(path, repository, digest, range_="bytes=0-0")
        return await self._size_by_get(path, repository, digest, range_=None)

    async def _size_by_get(self, path: str, repository: Repository, digest: Digest, *, range_: str | None) -> int:
        async with self._small("blob_get", "GET", path, repository, range_=range_) as reply:
            span = ContentRange.parse(reply.headers.only("content-range"))
            length = content_length(reply.headers) if reply.status in WHOLE else span and span.total
            if length is None or is_page(reply.headers):
                raise UpstreamError("upstream does not say how long the blob is")
            _check_empty(digest, length, UpstreamError)
            return length

    async def listing(self, repository: Repository, path: str) -> FetchedList:
        """The answer to a tags/list or referrers question.

        Args:
            path: path and query, on upstream.

        Raises:
            NameUnknown, ManifestUnknown, Denied, CredentialRefused, UpstreamRefused, RateLimited, UpstreamError.
        """
        kind: ListKind = "referrers" if "/referrers/" in path else "tags"
        reply, body = await self._whole("other", path, repository, LIST_MAX_BYTES)
        if not await is_list(body, kind):
            raise UpstreamError(f"upstream answered with something that is no list of {kind}")
        if await asyncio.to_thread(self.redactor.is_in_body, body):
            raise UpstreamError(f"upstream's list of {kind} has a secret of this cache in it")
        content_type = self._type(reply) or "application/json"
        filters = reply.headers.get("oci-filters-applied")
        link = _link(reply, path)
        if link is not None and self.redactor.is_in(link):
            link = None
        return FetchedList(body, content_type, link, filters and self.redactor.clean(filters)[:200])

    @contextlib.asynccontextmanager
    async def blob(
        self, repository: Repository, digest: Digest, *, start: int = 0, stop: int | None = None
    ) -> AsyncIterator[BlobBody]:
        """One GET of a blob from *start*; a single try.

        The body may begin elsewhere than asked: upstream may ignore the range. Look at ``body.start``.

        Raises:
            RangeRefused: a part was asked for, and the answer is neither that part nor the whole blob.
            BlobUnknown, NameUnknown, Denied, CredentialRefused, RateLimited, UpstreamError.
        """
        ranged = bool(start) or stop is not None
        headers = {"Range": f"bytes={start}-{'' if stop is None else stop - 1}"} if ranged else {}
        path = _blob_path(repository, digest)
        reply = await self._exchange.ask("blob_get", "GET", path, repository, self._bulk_chain, **headers)
        if not isinstance(reply, BulkReply):
            raise TypeError(reply)
        try:
            body = BlobBody.of(reply, self._received, start if ranged else None)
            _check_empty(digest, body.total_bytes, RangeRefused if ranged else UpstreamError)
            yield body
        except BaseException:
            reply.close()
            raise
        body.close()

    # --- small exchanges ----------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def _small(
        self,
        kind: events.UpstreamKind,
        method: str,
        path: str,
        of: Repository | Reference,
        attempts: int = _SMALL_ATTEMPTS,
        *,
        range_: str | None = None,
    ) -> AsyncIterator[Reply]:
        """A small exchange, tried again while upstream seems to be worth it."""
        repository = of.repository if isinstance(of, Reference) else of
        headers = {"Accept": MANIFEST_ACCEPT} if kind.startswith("manifest") else {}
        if range_ is not None:
            headers["Range"] = range_
        for attempt in range(1, attempts + 1):
            try:
                async with self._bounded():
                    reply = await self._exchange.ask(kind, method, path, repository, self._small_chain, **headers)
                break
            except UpstreamError as error:
                wait = max(backoff_seconds(attempt), error.retry_in_seconds)
                is_answer = isinstance(error, (RateLimited, UpstreamRefused, HeadRefused, RangeRefused))
                if is_answer or attempt == attempts or wait > _PATIENCE_SECONDS:
                    raise
                self._events.emit(events.UpstreamFailed(origin=self.origin, reason=str(error), attempt=attempt))
                await asyncio.sleep(wait)
        try:
            async with self._bounded():
                yield reply
        finally:
            await reply.aclose()

    async def _whole(
        self,
        kind: events.UpstreamKind,
        path: str,
        of: Repository | Reference,
        limit: int,
        digest: Digest | None = None,
        attempts: int = _SMALL_ATTEMPTS,
    ) -> tuple[Reply, bytes]:
        """A small exchange and its :meth:`_body`; asked once more where that breaks off."""
        async with self._small(kind, "GET", path, of, attempts) as reply:
            try:
                return reply, await self._body(reply, limit, digest)
            except BrokenOff as error:
                if attempts == 1:
                    raise
                self._events.emit(events.UpstreamFailed(origin=self.origin, reason=str(error), attempt=1))
        async with self._small(kind, "GET", path, of, 1) as reply:
            return reply, await self._body(reply, limit, digest)

    async def _body(self, reply: Reply, limit: int, digest: Digest | None) -> bytes:
        """A small body as it was meant: without an encoding that somebody in between put on it.

        Args:
            digest: bytes that have it are taken as they came, whatever they are called.
        """
        body = await reply.read_small(limit)
        self._received(len(body))
        length, encoding = content_length(reply.headers), reply.headers.get("content-encoding", "")
        if length is not None and length != len(body):
            raise BrokenOff(f"upstream announced {length} bytes and sent {len(body)}")
        plain = not encoding and not is_gzip(body)
        if plain or (digest is not None and await _hashed(body, digest.algorithm) == digest):
            return body
        return await asyncio.to_thread(decoded, body, encoding, limit)

    @contextlib.asynccontextmanager
    async def _bounded(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self._small_timeout_seconds):
                yield
        except TimeoutError as error:
            raise UpstreamError("upstream took too long to answer") from error

    async def _fetch_token(self, url: str, authorization: str | None, form: bytes = b"") -> TokenReply:
        began, status = time.monotonic(), 0
        ask = Ask("GET", url, "")
        if form:
            ask = Ask("POST", url, "", {"Content-Type": "application/x-www-form-urlencoded"}, form)
        try:
            async with self._bounded():
                reply = await self._watched(ask.with_authorization(authorization))
                try:
                    status = reply.status
                    body = await self._token_body(reply)
                    if is_limit(status, reply.headers, body):
                        raise self._token_limit(reply, body)
                    self.breakers.passed(url)
                    return TokenReply(status, body, reply.headers.first("location"))
                finally:
                    await reply.aclose()
        finally:
            duration_ms = (time.monotonic() - began) * 1000
            self._events.emit(
                events.UpstreamRequest(
                    kind="token", method=ask.method, url=url.partition("?")[0], status=status, duration_ms=duration_ms
                )
            )

    def _token_limit(self, reply: Reply, body: bytes) -> RateLimited:
        message = message_of(body, self.redactor) or "the token service limits us"
        if origin_of(reply.url) == self.origin:
            return self.limits.refused(reply.headers, message, "other")
        return self.breakers.limited(reply.url, reply.headers, message)

    @staticmethod
    async def _token_body(reply: Reply) -> bytes:
        if reply.status >= 400:  # noqa: PLR2004 -- HTTP
            return await error_body(reply)
        body = await reply.read_small(_TOKEN_MAX_BYTES)
        with contextlib.suppress(UpstreamError):
            body = decoded(body, reply.headers.get("content-encoding", ""), _TOKEN_MAX_BYTES)
        return body

    async def _ping(self, authorization: str | None) -> tuple[int, list[Challenge]]:
        """The status of upstream's ``/v2/``, and what it challenges with: what a login is tried against."""
        async with self._bounded():
            ask = Ask("GET", self._exchange.base_url + "/v2/", "").with_authorization(authorization)
            reply = await self._watched(ask)
            try:
                if is_limit(reply.status, reply.headers):
                    raise self.limits.refused(reply.headers, "upstream limits logins", "other")
                if reply.status not in (200, 401, 403, 404):
                    raise UpstreamError(f"upstream answered {reply.status} to a login")
                return reply.status, parse_challenges(reply.headers.lines("www-authenticate"))
            finally:
                await reply.aclose()

    def _type(self, reply: Reply) -> str:
        """The media type of a manifest or list; empty where it is none, but a web page's or a file's."""
        said = media_type(reply.headers)
        if not _MEDIA_TYPE.fullmatch(said) or said.lower().startswith(_OTHER_TYPES) or self.redactor.is_in(said):
            return ""
        return said

    def _answered(self) -> None:
        self.answered_at = time.time()

    def _received(self, count: int) -> None:
        if count:
            self._events.emit(events.UpstreamReceived(bytes=count))


def _credential(registry: RegistrySettings) -> Credential | None:
    if registry.credential_helper:
        return HelperCredential(
            registry.credential_helper,
            urlsplit(registry.url).netloc if registry.name != DOCKER_HUB else _HUB_SERVER,
            lifetime_seconds=registry.credential_lifetime,
            environment=registry.helper_env,
        )
    if registry.username and registry.password_file:
        return FileCredential(registry.username, registry.password_file)
    return None


def _manifest_path(reference: Reference) -> str:
    return f"/v2/{reference.repository.name}/manifests/{reference.target}"


def _blob_path(repository: Repository, digest: Digest) -> str:
    return f"/v2/{repository.name}/blobs/{digest}"


def _check_empty(digest: Digest, length: int | None, error: type[UpstreamError]) -> None:
    """Of an answer without content nothing can be held back until it is verified: it would be the blob at once."""
    if length == 0 and digest != Digest.of(b"", digest.algorithm):
        raise error("upstream sent nothing, and the blob is not empty")


async def _hashed(body: bytes, algorithm: str = "sha256") -> Digest:
    return await asyncio.to_thread(Digest.of, body, algorithm)


def _link(reply: Reply, path: str) -> str | None:
    """The next page, under the name that was asked for: of what upstream wrote, only the query is its own."""
    link = Link.next_page(reply.headers)
    query = link.target.partition("#")[0].partition("?")[2] if link is not None else ""
    return f'<{path.partition("?")[0]}?{query}>; rel="next"' if query else None
