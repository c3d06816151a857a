"""Asking another replica for a blob: over aiohttp, so that a question can be given up at any moment.

Addresses come from Redis, which is not trusted: only those in the fleet's networks are asked, by number, past any
forward proxy, and no redirect is followed but to such a one.
"""

import asyncio
import ipaddress
from collections.abc import Awaitable, Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, NamedTuple, Protocol, Self
from urllib.parse import urlsplit

import aiohttp

from registry_cache.fleet.signature import ANSWER, HEADER, Signer
from registry_cache.fleet.spaces import Spaces
from registry_cache.fleet.tls import FleetTls
from registry_cache.model.errors import RegistryCacheError
from registry_cache.model.oci import Digest, Repository
from registry_cache.model.ranges import ContentRange

# A peer that sends nothing for so long is asked whether it lives, and has so long for that.
SILENCE_SECONDS = 3.0
LIVES_SECONDS = 1.0
_CONNECT_SECONDS = 1.0
_HOPS_MAX = 8
# Kept of a body that arrives faster than it is written.
_BUFFER_BYTES = 1024 * 1024
PROVEN, DIRECT = "Fleet-Proven", "Fleet-Direct"


class PeerGone(RegistryCacheError):
    """It cannot be asked, or does not have it."""


class PeerSilent(RegistryCacheError):
    """It neither answers nor fails: it may be waiting, as we are."""


class PeerRefuses(RegistryCacheError):
    """It does not know us: another key, or another time."""


class PeerReply(NamedTuple):
    """The head of an answer; whoever has it closes the response."""

    response: aiohttp.ClientResponse
    start: int
    total_bytes: int
    is_proven: bool  # upstream has said there that the repository has it
    was_redirected: bool


def blob_path(repository: Repository, digest: Digest) -> str:
    """Where a blob is on the fleet's port."""
    return f"/fleet/v1/{repository.registry}/{repository.name}/blobs/{digest}"


class Session(Protocol):
    """What is needed of :class:`aiohttp.ClientSession`."""

    def request(
        self, method: str, url: str, *, headers: Mapping[str, str], allow_redirects: bool, ssl: Any
    ) -> Awaitable[aiohttp.ClientResponse]:
        """The head of the answer."""

    async def close(self) -> None:
        """Close its connections."""


def connections() -> aiohttp.ClientSession:
    """What other replicas are asked with."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS),
        auto_decompress=False,
        read_bufsize=_BUFFER_BYTES,
        trust_env=False,
    )


class Peers:
    """See the module.

    Args:
        networks: that replicas are in.
        address: where the others reach this one.
        now: the fleet's clock.
        spaces: what registries are called in the fleet.
        tls: None for plain connections.
        session: made when this is entered, and closed after it.
    """

    def __init__(
        self,
        signer: Signer,
        networks: Sequence[str],
        *,
        address: Callable[[], str],
        now: Callable[[], float],
        spaces: Spaces | None = None,
        tls: FleetTls | None = None,
        session: Callable[[], Session] = connections,
    ) -> None:
        self._signer = signer
        self._networks = [ipaddress.ip_network(network) for network in networks]
        self._tls = tls
        self._address = address
        self._spaces = spaces or Spaces()
        self._now = now
        self._open = session
        self._session: Session | None = None

    async def __aenter__(self) -> Self:
        self._session = self._open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def get(
        self, address: str, repository: Repository, digest: Digest, *, start: int, direct: bool = False
    ) -> PeerReply:
        """The blob from *start* on, from whoever is at *address*, or from whom that one sends us to.

        Args:
            direct: it shall send it itself.

        Raises:
            PeerGone, PeerSilent, PeerRefuses.
        """
        path = blob_path(self._spaces.told(repository), digest)
        for hop in range(_HOPS_MAX):
            # Whoever we end at sends it, however many it sends it to: nobody of them has done anything wrong.
            is_last = hop == _HOPS_MAX - 1
            response = await self._ask("GET", address, path, start, direct=direct or is_last)
            if response.status == 307:  # noqa: PLR2004 -- HTTP
                response.close()
                address = urlsplit(response.headers.get("Location", "")).netloc
                continue
            try:
                return self._reply(response, start, was_redirected=hop > 0)
            except BaseException:
                response.close()
                raise
        raise PeerGone("it sends us round")

    async def lives(self, address: str, repository: Repository, digest: Digest) -> bool:
        """Whether who is at *address* answers at all, and still brings the blob or has it."""
        path = blob_path(self._spaces.told(repository), digest)
        try:
            async with asyncio.timeout(LIVES_SECONDS):
                response = await self._ask("HEAD", address, path, 0, direct=True)
        except (PeerGone, PeerSilent, TimeoutError):
            return False
        response.release()
        return response.status == 200  # noqa: PLR2004 -- HTTP

    async def greet(self, address: str) -> None:
        """Find out whether who is at *address* is a replica with the same key; nothing is fetched.

        Raises:
            PeerGone, PeerSilent, PeerRefuses: it is not, or cannot be asked from here.
        """
        nothing = blob_path(Repository("invalid", "registry-cache/greeting"), Digest(f"sha256:{'0' * 64}"))
        response = await self._ask("HEAD", address, nothing, 0, direct=True)
        response.release()
        if response.status in (401, 403):
            raise PeerRefuses(f"{address} has another key, or another time")
        if not self._is_known(response):
            raise PeerGone(f"{address} is no replica of this fleet: it answers {response.status} without the key")

    def _is_known(self, response: aiohttp.ClientResponse) -> bool:
        """Whether who answers has the key."""
        return self._signer.is_answer(response.headers.get(ANSWER, ""), response.request_info.headers.get(HEADER, ""))

    async def _ask(self, method: str, address: str, path: str, start: int, *, direct: bool) -> aiohttp.ClientResponse:
        if self._session is None:
            raise PeerGone("it is too late")
        url = f"{'https' if self._tls else 'http'}://{self.allowed(address)}{path}"
        range_ = f"bytes={start}-"
        headers = {"Range": range_, HEADER: self._signer.header(self._address(), method, path, range_, self._now())}
        if direct:
            headers[DIRECT] = "1"
        context = self._tls.client() if self._tls else True
        try:
            async with asyncio.timeout(SILENCE_SECONDS):
                response = await self._session.request(method, url, headers=headers, allow_redirects=False, ssl=context)
        except TimeoutError as error:
            raise PeerSilent(f"{address} does not answer") from error
        except (aiohttp.ClientError, OSError) as error:
            raise PeerGone(f"{address}: {error}") from error
        if response.status < 400 and not self._is_known(response):  # noqa: PLR2004 -- HTTP
            response.close()
            raise PeerGone(f"{address} does not have the fleet's key")
        return response

    def allowed(self, address: str) -> str:
        """*address*, if it is a number and a port in the fleet's networks, and not this replica's own.

        Raises:
            PeerGone: it may not be asked.
        """
        try:
            parts = urlsplit(f"//{address}")
            host, port = ipaddress.ip_address(parts.hostname or ""), parts.port
        except ValueError:
            host, port = None, None
        plain = f"[{host}]:{port}" if host is not None and host.version == 6 else f"{host}:{port}"  # noqa: PLR2004
        if host is None or not port or plain == self._address() or not any(host in one for one in self._networks):
            raise PeerGone(f"{address[:60]!r} is no address of a peer")
        return plain

    @staticmethod
    def _reply(response: aiohttp.ClientResponse, start: int, *, was_redirected: bool) -> PeerReply:
        if response.status in (401, 403):
            raise PeerRefuses(f"{response.host} does not know this replica: is the key the same, and the time?")
        is_proven = response.headers.get(PROVEN) == "1"
        if response.status == 200 and response.content_length == 0 and not start:  # noqa: PLR2004 -- HTTP
            return PeerReply(response, 0, 0, is_proven, was_redirected)
        span = ContentRange.parse(response.headers.get("Content-Range", ""))
        if response.status != 206 or span is None or span.total is None or span.start != start:  # noqa: PLR2004
            raise PeerGone(f"{response.host} answered {response.status}")
        return PeerReply(response, start, span.total, is_proven, was_redirected)
