"""A client that pulls images through a cache as a daemon does, throwing the bytes away; every digest is verified."""

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import quote

import aiohttp

from registry_cache.model.errors import ContentError, DigestInvalid, RegistryCacheError
from registry_cache.model.foreign import read_json
from registry_cache.model.oci import (
    DOCKER_HUB,
    INDEX_TYPES,
    MANIFEST_ACCEPT,
    MANIFEST_MAX_BYTES,
    STAY,
    TOO_MANY_PARTS,
    Descriptor,
    Digest,
    Manifest,
    Reference,
    Repository,
)
from registry_cache.model.registries import split
from registry_cache.observe.figures import OtherSchema, Stats, read
from registry_cache.warming.platforms import EVERY_PLATFORM, full_platform

_OK = (200, 206)
_NOT_HERE = 504
_FORBIDDEN = 403
_TRIES = 3
_STATS_MAX_BYTES = 8 * 1024 * 1024
_ERROR_MAX_BYTES = 64 * 1024
# The cache itself waits for upstream for up to REQUEST_TIMEOUT before it answers.
_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=120)
# Answered from the store or not at all (RFC 9111, section 5.2.1.7): asking costs upstream nothing.
_ONLY_IF_CACHED = {"Cache-Control": "only-if-cached"}


class PullFailed(RegistryCacheError):
    """The cache did not give what was asked for; the text has its reason, *status* is 0 when it did not answer."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


def reason_of(error: Exception) -> str:
    """*error* of an HTTP client in a few words, without addresses and objects."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        inner = error.certificate_error
        return str(getattr(inner, "verify_message", "") or inner)
    if isinstance(error, aiohttp.ClientConnectorError):
        number = error.os_error.errno or 0  # below zero: what getaddrinfo says
        return os.strerror(number).lower() if number > 0 else error.os_error.strerror or str(error.os_error)
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return str(error) or type(error).__name__


class Name(NamedTuple):
    """An image, as it is asked for: ``reference`` is a tag or a digest."""

    repository: Repository
    reference: str

    @classmethod
    def parse(cls, text: str) -> "Name":
        """``nginx`` is ``docker.io/library/nginx:latest``; of tag and digest the digest counts.

        Raises:
            NameInvalid, TagInvalid, DigestInvalid: not within the grammar.
        """
        name, _, digest = text.partition("@")
        tag = "latest"
        if ":" in name.rpartition("/")[2]:
            name, _, tag = name.rpartition(":")
        registry, name = split(name)
        is_official = registry == DOCKER_HUB and "/" not in name
        repository = Repository.parse(f"library/{name}" if is_official else name, registry)
        return cls(repository, Reference.parse(repository, Digest.parse(digest) if digest else tag).target)

    def path(self, kind: str, reference: str) -> str:
        """Where the cache has it; which registry is meant is always said.

        Args:
            kind: ``blobs`` or ``manifests``.
        """
        ns = quote(self.repository.registry, safe=":.")
        return f"/v2/{self.repository.name}/{kind}/{reference}?ns={ns}"

    def __str__(self) -> str:
        return f"{self.repository.familiar}{'@' if ':' in self.reference else ':'}{self.reference}"


class Look(NamedTuple):
    """What of an image is here, found without asking for content upstream.

    Args:
        pulls: that Docker Hub would count, at most: manifests below an index that is not here are not known.
        missing_bytes: of blobs, as far as the manifests are here.
        size_bytes: of the blobs that are known.
    """

    pulls: int
    missing_bytes: int
    size_bytes: int
    is_whole: bool


class Pulled(NamedTuple):
    """An image's manifests have come; ``fetched`` of them from upstream."""

    blobs: tuple[Descriptor, ...]
    manifests: tuple[Digest, ...]
    size_bytes: int
    fetched: int


class Puller:
    """A client of the cache at *base* (a URL without a trailing slash). The session belongs to the caller."""

    def __init__(self, session: aiohttp.ClientSession, base: str) -> None:
        self._session = session
        self._base = base

    async def stats(self) -> Stats:
        """The cache's figures.

        Raises:
            PullFailed: it does not answer, or is no registry-cache (then with a status).
        """
        headers = {"Accept": "application/json"}
        timeout = aiohttp.ClientTimeout(10)
        status = 0
        try:
            async with self._session.get(f"{self._base}/_stats", headers=headers, timeout=timeout) as response:
                status = response.status
                answer = read_json(await _read(response, _STATS_MAX_BYTES), dict[str, Any])
        except (aiohttp.ClientError, OSError) as error:
            raise PullFailed(f"no cache answers on {self._base}: {reason_of(error)}") from error
        except ContentError as error:
            raise PullFailed(f"what answers on {self._base} is no registry-cache", status) from error
        if status == _FORBIDDEN:
            raise PullFailed(f"the cache on {self._base} does not show its figures here: see ADMIN_NETWORKS", status)
        if "upstream" not in answer or "store" not in answer:
            raise PullFailed(f"what answers on {self._base} is no registry-cache", status)
        try:
            return read(answer, Stats)
        except OtherSchema as error:
            raise PullFailed(str(error), status) from error

    async def instance(self) -> str:
        """Which cache it is, which it tells everybody.

        Raises:
            PullFailed: it does not answer, or is no registry-cache (then with a status).
        """
        status = 0
        try:
            async with self._session.get(f"{self._base}/_health", timeout=aiohttp.ClientTimeout(10)) as response:
                status = response.status
                answer = read_json(await _read(response, _ERROR_MAX_BYTES), dict[str, Any])
        except (aiohttp.ClientError, OSError) as error:
            raise PullFailed(f"no cache answers on {self._base}: {reason_of(error)}") from error
        except ContentError as error:
            raise PullFailed(f"what answers on {self._base} is no registry-cache", status) from error
        return str(answer.get("instance", ""))

    async def look(self, name: Name, platforms: Sequence[str]) -> Look:
        """What is here, and what the rest would cost. One free ``HEAD`` at most goes upstream.

        Raises:
            PullFailed: there is no such image, or it cannot be asked for.
        """
        headers = await self._head(name, "manifests", name.reference)
        digest = Digest.parse(headers.get("Docker-Content-Digest", name.reference))
        top = await self._stored(name, digest)
        if top is None:
            is_index = headers.get("Content-Type", "").partition(";")[0] in INDEX_TYPES
            return Look(1 + len(platforms) * is_index, 0, 0, is_whole=False)
        pulls, found = 0, []
        for child in _chosen(name, top, platforms):
            stored = await self._stored(name, child.digest)
            pulls += stored is None
            found += [stored] if stored is not None else []
        images = found if top.is_index else [top]
        blobs = {blob.digest: blob.size_bytes for image in images for blob in image.blobs}
        missing = sum([size for digest, size in blobs.items() if not await self.is_here(name, "blobs", digest)])
        return Look(pulls, missing, sum(blobs.values()), is_whole=not pulls and not missing)

    async def observe_quota(self, name: Name) -> None:
        """Have the cache ask upstream about *name* once more, for free: it notes what quota is left."""
        headers = await self._head(name, "manifests", name.reference)
        await self._head(name, "manifests", headers.get("Docker-Content-Digest", name.reference))

    async def manifests(self, name: Name, platforms: Sequence[str]) -> Pulled:
        """Pull what counts against the quota: the manifests.

        Raises:
            PullFailed: they cannot be had; the text says why.
        """
        body, hit = await self._manifest(name, name.reference)
        bodies, fetched = [body], int(not hit)
        manifest = _parsed(name, body)
        images = [] if manifest.is_index else [manifest]
        for child in _chosen(name, manifest, platforms):
            body, hit = await self._manifest(name, child.digest)
            bodies.append(body)
            images.append(_parsed(name, body))
            fetched += not hit
        blobs = {blob.digest: blob for image in images for blob in image.blobs}
        digests = tuple(map(Digest.of, bodies))
        return Pulled(tuple(blobs.values()), digests, sum(map(len, bodies)), fetched)

    async def blob(self, name: Name, blob: Descriptor, came: Callable[[int], None]) -> bool:
        """Pull one blob to its end; whether it was here already.

        Args:
            came: told how many more bytes have come.

        Raises:
            PullFailed: it cannot be had; the text says why.
        """
        known, position, hit = hashlib.new(blob.digest.algorithm), 0, False

        def take(piece: bytes) -> None:
            nonlocal position
            known.update(piece)
            position += len(piece)
            came(len(piece))

        for attempt in range(1, _TRIES + 1):
            before = position
            try:
                hit = await self._pieces(name, blob, position, take) and (hit or attempt == 1)
                break
            except (aiohttp.ClientError, OSError) as error:
                if attempt == _TRIES and position == before:
                    raise PullFailed(f"{name}: {blob.digest}: {reason_of(error)}") from error
        if known.hexdigest() != blob.digest.encoded:  # the size is only its manifest's word
            raise PullFailed(f"{name}: what came is not {blob.digest}")
        return hit

    async def is_here(self, name: Name, kind: str, digest: Digest) -> bool:
        """Whether the cache holds *digest*; upstream is not asked. This counts as a use of it.

        Args:
            kind: ``blobs`` or ``manifests``.
        """
        try:
            await self._head(name, kind, digest, _ONLY_IF_CACHED)
        except PullFailed as error:
            if error.status == _NOT_HERE:
                return False
            raise
        return True

    async def _pieces(self, name: Name, blob: Descriptor, start: int, take: Callable[[bytes], None]) -> bool:
        url = self._base + name.path("blobs", blob.digest)
        headers = STAY | ({"Range": f"bytes={start}-"} if start else {})
        async with self._session.get(url, headers=headers, timeout=_TIMEOUT) as response:
            if response.status not in _OK:
                raise PullFailed(f"{name}: {await _reason(response)}", response.status)
            if start and response.status != 206:  # noqa: PLR2004 -- HTTP
                raise PullFailed(f"{name}: {blob.digest}: the cache does not go on where it broke off")
            async for piece in response.content.iter_any():
                take(piece)
            return _is_hit(response.headers)

    async def _head(self, name: Name, kind: str, reference: str, headers: Mapping[str, str] = {}) -> Mapping[str, str]:
        url = self._base + name.path(kind, reference)
        try:
            async with self._session.head(
                url, headers={"Accept": MANIFEST_ACCEPT, **headers}, timeout=_TIMEOUT
            ) as response:
                if response.status not in _OK:
                    raise PullFailed(f"{name}: {await _reason(response)}", response.status)
                return response.headers
        except (aiohttp.ClientError, OSError) as error:
            raise PullFailed(f"{name}: {reason_of(error)}") from error

    async def _stored(self, name: Name, digest: Digest) -> Manifest | None:
        """The manifest, if it is here."""
        try:
            body, _ = await self._manifest(name, digest, _ONLY_IF_CACHED)
        except PullFailed as error:
            if error.status == _NOT_HERE:
                return None
            raise
        return _parsed(name, body)

    async def _manifest(self, name: Name, reference: str, headers: Mapping[str, str] = {}) -> tuple[bytes, bool]:
        url = self._base + name.path("manifests", reference)
        try:
            async with self._session.get(
                url, headers={"Accept": MANIFEST_ACCEPT, **headers}, timeout=_TIMEOUT
            ) as response:
                if response.status not in _OK:
                    raise PullFailed(f"{name}: {await _reason(response)}", response.status)
                body = await _read(response, MANIFEST_MAX_BYTES)
                Digest.parse(response.headers.get("Docker-Content-Digest", "")).verify(body)
                return body, _is_hit(response.headers)
        except (ContentError, DigestInvalid, aiohttp.ClientError, OSError) as error:
            raise PullFailed(f"{name}: {reason_of(error)}") from error


def _parsed(name: Name, body: bytes) -> Manifest:
    """The manifest of *name*.

    Raises:
        PullFailed: it cannot be read as one, or it names too much: nobody knows what to pull.
    """
    try:
        manifest = Manifest.parse(body)
    except ContentError as error:
        raise PullFailed(f"{name}: {error}") from error
    if not manifest.is_whole:
        raise PullFailed(f"{name}: {TOO_MANY_PARTS}")
    return manifest


def _is_hit(headers: Mapping[str, str]) -> bool:
    return headers.get("Cache-Status", "").startswith("registry-cache; hit")


async def _read(response: aiohttp.ClientResponse, limit: int) -> bytes:
    body = bytearray()
    async for piece in response.content.iter_any():
        body += piece
        if len(body) > limit:
            raise ContentError(f"the answer is longer than {limit} bytes")
    return bytes(body)


async def _reason(response: aiohttp.ClientResponse) -> str:
    try:
        body = await _read(response, _ERROR_MAX_BYTES)
        return f"{response.status} {read_json(body, dict[str, Any])['errors'][0]['message']}"
    except (LookupError, TypeError, ContentError):
        words = {
            401: "upstream rejects the account",
            404: "no such image, or no access to it",
            429: "upstream's rate limit",
        }
        return f"{response.status} {words.get(response.status, response.reason)}"


def _chosen(name: Name, manifest: Manifest, platforms: Sequence[str]) -> Iterator[Descriptor]:
    """The children of an index that are for one of *platforms*.

    Raises:
        PullFailed: there is none for one of them.
    """
    if not manifest.is_index:
        return
    by_platform: dict[str, list[Descriptor]] = {}
    for child in manifest.children:
        if "unknown" not in child.platform.split("/"):  # buildkit's attestations: no daemon pulls them
            by_platform.setdefault(full_platform(child.platform or "any"), []).append(child)
    wanted = list(by_platform) if EVERY_PLATFORM in platforms else list(platforms)
    for platform in wanted:
        if platform not in by_platform:
            raise PullFailed(f"{name} has no {platform}; it has {', '.join(sorted(by_platform))}", 404)
        # Several for one platform: a daemon takes the first (Windows has one for each version of its kernel).
        yield by_platform[platform][0]
