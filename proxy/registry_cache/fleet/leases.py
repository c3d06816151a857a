"""Who fetches which blob for all: leases, held from a flight's first GET until it has ended.

A lease is a hint. Two that hold one cost a second GET, never a wrong or a failed pull.
"""

import asyncio
import secrets
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Protocol

from registry_cache.fleet import scripts
from registry_cache.fleet.sealed import Sealed, opened
from registry_cache.fleet.signature import Signer
from registry_cache.fleet.spaces import Spaces
from registry_cache.model.bus import Events
from registry_cache.model.errors import BlobUnknown, RegistryCacheError
from registry_cache.model.oci import Digest, Repository
from registry_cache.runtime.background import Background

LOOK = "look"
_RENEW_SECONDS = 3.0
_VERDICT_MAX_CHARACTERS = 300
# Redis forgets a no after five seconds: one that is much older was put back.
_NO_OLD_SECONDS = 60.0


def prefix_of(name: str) -> str:
    """Of all keys of the fleet *name*: one hash slot."""
    return f"{{rc1:{name}}}:"


class RedisDown(RegistryCacheError):
    """Redis does not answer, or is left alone because it did not a moment ago."""


class Redis(Protocol):
    """What is needed of :class:`registry_cache.fleet.connection.FleetRedis`."""

    async def run(
        self, script: str, keys: Sequence[str], args: Sequence[str | int | bytes], *, patiently: bool = False
    ) -> Any:
        """The answer of *script*; raises RedisDown."""

    ahead_seconds: float  # of its clock, before ours

    def now(self) -> float:
        """Unix seconds, by its clock."""

    def told(self, seconds: int, microseconds: int) -> None:
        """What its clock says now."""


class Claim(NamedTuple):
    """What to do: ``yours`` (fetch it), follow who has the ``lead`` or has it (``at``), or ``failed``, as they did.

    ``stored``: it is in the bucket. ``value`` is the lease, the address, upstream's words, or what the bucket's index
    has of it; with ``yours`` :data:`LOOK`, where it may be in the bucket although the index does not have it.
    """

    what: Literal["yours", "lead", "at", "failed", "stored"]
    value: str

    @property
    def address(self) -> str:
        """Of whom to follow."""
        return self.value.rpartition("|")[2]


class Leases:
    """See the module.

    Args:
        name: of the fleet.
        spaces: what registries are called in it.
    """

    def __init__(
        self, redis: Redis, signer: Signer, *, name: str, events: Events, spaces: Spaces | None = None
    ) -> None:
        self.address = ""  # where the others reach this one; nothing is claimed before that is known
        self._redis = redis
        self._signer = signer
        self._spaces = spaces or Spaces()
        self._prefix = prefix_of(name)
        self._held: dict[Digest, str] = {}
        self._endings: set[asyncio.Task[None]] = set()
        self._renewal = Background("leases", self._renew, interval_seconds=_RENEW_SECONDS, events=events)

    def __repr__(self) -> str:
        return f"<Leases {self.address} {len(self._held)} held>"

    def __len__(self) -> int:
        return len(self._held)

    def start(self) -> None:
        """Renew what is held from now on."""
        self._renewal.start()

    async def aclose(self) -> None:
        """Give everything back."""
        await self._renewal.aclose()
        for digest in list(self._held):
            self.release(digest)
        await asyncio.gather(*self._endings, return_exceptions=True)

    def holds(self, digest: Digest) -> bool:
        """Whether this replica fetches *digest* for all."""
        return digest in self._held

    async def claim(
        self, repository: Repository, digest: Digest, lost: str = "", *, may_be_shared: bool = False
    ) -> Claim:
        """Who fetches *digest*.

        Args:
            lost: the lease or address of one that has just been seen not to answer: it is passed over.
            may_be_shared: the bucket may bring it.

        Raises:
            RedisDown: nobody can tell.
        """
        if not self.address:
            raise RedisDown("it is not known yet where the others reach this replica")
        mine = f"{secrets.token_hex(8)}|{self.address}"
        what, value = await self._asked(repository, digest, mine, lost, may_be_shared=may_be_shared)
        if what == b"failed":
            said = opened(self._signer, self._no(repository, digest), value)
            if said is not None and abs(self._redis.now() - said.asked_us / 1e6) < _NO_OLD_SECONDS:
                return Claim("failed", said.payload.decode(errors="replace"))
            await self._redis.run(scripts.DROP, [self._prefix + self._no(repository, digest)], [])
            what, value = await self._asked(repository, digest, mine, lost, may_be_shared=may_be_shared)
            if what == b"failed":  # somebody writes noes faster than they are deleted
                raise RedisDown("what is in Redis is not of this fleet")
        if what == b"yours":
            self._held[digest] = mine
        return Claim(what.decode(), value.decode(errors="replace"))

    async def _asked(
        self, repository: Repository, digest: Digest, mine: str, lost: str, *, may_be_shared: bool
    ) -> tuple[Any, bytes]:
        what, value, seconds, microseconds = await self._redis.run(
            scripts.CLAIM,
            [*self._keys(repository, digest), *(self._prefix + name for name in scripts.INDEX_KEYS)],
            [
                mine,
                self.address,
                lost,
                scripts.LEASE_MS,
                scripts.AT_SECONDS,
                bytes.fromhex(digest.encoded),
                int(may_be_shared),
            ],
        )
        self._redis.told(int(seconds), int(microseconds))
        return what, value

    def release(
        self,
        digest: Digest,
        repository: Repository | None = None,
        *,
        is_stored: bool = False,
        error: RegistryCacheError | None = None,
    ) -> None:
        """The flight of *digest* has ended; told to the others in the background.

        Args:
            is_stored: it is here now.
            error: why it is not. A registry's own no to the blob is told to those who followed.
        """
        mine = self._held.pop(digest, None)
        if mine is None:
            return
        no: bytes = b""
        if repository and type(error) is BlobUnknown:
            message = str(error)[:_VERDICT_MAX_CHARACTERS].encode()
            no = Sealed(int(self._redis.now() * 1e6), "blob", message).seal(self._signer, self._no(repository, digest))
        at = self.address if is_stored else ""
        keys = self._keys(repository, digest)
        task = asyncio.create_task(self._release(keys, mine, at, no), name=f"release {digest}")
        self._endings.add(task)
        task.add_done_callback(self._endings.discard)

    async def _release(self, keys: Sequence[str], mine: str, at: str, no: bytes) -> None:
        try:
            await self._redis.run(
                scripts.RELEASE, keys, [mine, at, scripts.AT_SECONDS, no, scripts.VERDICT_MS], patiently=True
            )
        except RedisDown:
            return  # it ends by itself

    async def _renew(self) -> None:
        """Also where nothing is held: the first who claims finds a connection that is open."""
        held = dict(self._held)
        try:
            lost = await self._redis.run(
                scripts.RENEW,
                [self._key("l", digest) for digest in held],
                [scripts.LEASE_MS, *held.values()],
                patiently=True,
            )
        except RedisDown:
            return
        digests = list(held)
        for number in lost:  # it slept through its time, and somebody has taken over: what it fetches goes on
            digest = digests[number - 1]
            if self._held.get(digest) == held[digest]:
                del self._held[digest]

    def _keys(self, repository: Repository | None, digest: Digest) -> list[str]:
        no = self._prefix + self._no(repository, digest)
        return [self._key("l", digest), self._key("at", digest), no]

    def _no(self, repository: Repository | None, digest: Digest) -> str:
        return f"x:{self._spaces.told(repository) if repository else ''}@{digest}"

    def _key(self, kind: str, digest: Digest) -> str:
        return f"{self._prefix}{kind}:{digest}"
