"""Tags that have moved: told to all replicas, so that no client sees one go back.

Whoever hears that a tag that it has is something else by now asks for it at once, which costs upstream nothing: tag and
manifest are in Redis.
"""

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable

import msgspec

from registry_cache.fleet import question_scripts as scripts
from registry_cache.fleet.leases import Redis
from registry_cache.fleet.sealed import Sealed, opened
from registry_cache.fleet.signature import Signer
from registry_cache.fleet.spaces import Spaces
from registry_cache.fleet.stream_scripts import HEARD
from registry_cache.model.bus import Events
from registry_cache.model.errors import DigestInvalid, NameInvalid, RegistryCacheError, TagInvalid
from registry_cache.model.oci import Digest, Reference, Repository
from registry_cache.runtime.background import Background

_AT_ONCE = 100
# Of those that are heard of while upstream is slow, so many wait; the oldest are left to their time to live.
_WAITING_MAX = 1_000
_EACH_SECONDS = 10.0
_NAME = "ev"


Moved = Callable[[Reference, Digest, float], Awaitable[None]]


class Moves:
    """See the module.

    Args:
        prefix: of all keys of the fleet.
        spaces: what registries are called in the fleet.
        backlog_seconds: so long before its start a replica listens: the longest that a tag is served unasked.
    """

    def __init__(
        self,
        redis: Redis,
        signer: Signer,
        *,
        prefix: str,
        backlog_seconds: float,
        spaces: Spaces,
        events: Events,
    ) -> None:
        self._redis = redis
        self._signer = signer
        self._key = f"{prefix}{_NAME}"
        self._backlog_seconds = backlog_seconds
        self._spaces = spaces
        self._last = ""
        self._waiting: OrderedDict[Reference, tuple[Digest, int]] = OrderedDict()
        self._moved: Moved | None = None
        self._following = Background("fleet tags", self._follow, interval_seconds=60.0, events=events)

    def __repr__(self) -> str:
        return f"<Moves behind {self._last or 'nothing'}, {len(self._waiting)} waiting>"

    def start(self, moved: Moved) -> None:
        """Follow what :meth:`look` hears of.

        Args:
            moved: called with a reference, what it is, and how many seconds ago upstream said so.
        """
        self._moved = moved
        self._following.start()

    async def aclose(self) -> None:
        """Follow no more."""
        await self._following.aclose()

    def announcement(self, reference: Reference, digest: Digest, asked_us: int) -> bytes:
        """What the others are told of a tag."""
        repository = self._spaces.told(reference.repository)
        payload = msgspec.json.encode([repository.registry, repository.name, reference.target])
        return Sealed(asked_us, digest, payload).seal(self._signer, _NAME)

    async def look(self) -> None:
        """Hear what has been announced since.

        Raises:
            RedisDown: not now.
        """
        beginning = str(max(0, int((self._redis.now() - self._backlog_seconds) * 1000)))
        self._last = self._last or beginning
        is_more = True
        while is_more:
            last, entries = await self._redis.run(
                HEARD, [self._key], [self._last, _AT_ONCE, scripts.MOVE_MAX_BYTES, beginning], patiently=True
            )
            self._last = last.decode(errors="replace")
            for entry in entries:
                self._heard(entry)
            is_more = len(entries) == _AT_ONCE

    def _heard(self, entry: object) -> None:
        said = opened(self._signer, _NAME, entry)
        if said is None:
            return
        with contextlib.suppress(msgspec.MsgspecError, UnicodeDecodeError, NameInvalid, DigestInvalid, TagInvalid):
            registry, name, tag = msgspec.json.decode(said.payload, type=tuple[str, str, str])
            here = self._spaces.heard(registry)
            if here is None:
                return
            reference = Reference.parse(Repository.parse(name, here), tag)
            self._waiting.pop(reference, None)
            self._waiting[reference] = Digest.parse(said.mark), said.asked_us
            while len(self._waiting) > _WAITING_MAX:
                self._waiting.popitem(last=False)
            self._following.wake()

    async def _follow(self) -> None:
        while self._waiting and self._moved is not None:
            reference, (digest, asked_us) = self._waiting.popitem(last=False)
            ago_seconds = max(0.0, self._redis.now() - asked_us / 1e6)
            # What it could not be told now it will ask for when its time is over.
            with contextlib.suppress(RegistryCacheError, TimeoutError):
                async with asyncio.timeout(_EACH_SECONDS):
                    await self._moved(reference, digest, ago_seconds)
