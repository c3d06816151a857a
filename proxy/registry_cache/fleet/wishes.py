"""What an operator wishes at one replica, for all of them: purges, and pins.

Purges are a stream of thirty days, heard from its beginning when a replica starts: who was away drops what was purged
after it was stored. To hear one again does no harm: what was stored later stays. Pins are a hash with a time for each,
so that unpinning reaches those that were away, too. What cannot be told now is told when Redis is back.
"""

import asyncio
import contextlib
import secrets
from collections.abc import Awaitable, Callable, Collection, Sequence
from itertools import islice
from typing import Protocol

import msgspec

from registry_cache.fleet import wish_scripts as scripts
from registry_cache.fleet.leases import Redis, RedisDown
from registry_cache.fleet.news import NEWS
from registry_cache.fleet.purges import Purges
from registry_cache.fleet.sealed import Sealed, opened
from registry_cache.fleet.signature import Signer
from registry_cache.fleet.stream_scripts import HEARD
from registry_cache.model import events
from registry_cache.model.bus import Events
from registry_cache.model.contents import Pattern, Pin
from registry_cache.model.errors import DigestInvalid, NameInvalid, TagInvalid
from registry_cache.model.oci import Digest, Reference, Repository
from registry_cache.runtime.background import Background

# Others' wishes are news (news.py). Ours are tried again where Redis did not take them.
_LOOK_SECONDS = 60.0
_TELL_AGAIN_SECONDS = 0.5
_AT_ONCE = 100
_PURGE_NAME, _PIN_NAME = "purged", "pins"
_PINNED, _UNPINNED = "+", "-"
# Of purges that wait for Redis, which keeps no more either.
_WAITING_MAX = scripts.PURGES_MAX
_PINS_AT_ONCE = 200
_ODD = (msgspec.MsgspecError, UnicodeDecodeError, NameInvalid, DigestInvalid, TagInvalid)


class Curator(Protocol):
    """What is needed of :class:`registry_cache.catalog.curator.Curator`."""

    async def purge_older(self, patterns: Sequence[Pattern], before: float) -> list[Digest]:
        """Purge what was here before *before* (Unix seconds)."""

    async def pins(self) -> set[Pin]:
        """All of them."""

    async def follow_pins(self, *, add: Sequence[Pin], remove: Sequence[Pin]) -> None:
        """Pin and unpin."""


def _encoded(*parts: str | None) -> bytes:
    return msgspec.json.encode(parts, enc_hook=str)  # a Digest is no plain str to it


class Wishes:
    """See the module; a :class:`registry_cache.catalog.curator.Herald`.

    Args:
        prefix: of all keys of the fleet.
        condemn: what is purged goes from the shared bucket too, if there is one.
        known: what of some digests is there.
    """

    def __init__(
        self,
        redis: Redis,
        signer: Signer,
        *,
        prefix: str,
        condemn: Callable[[Collection[Digest]], Awaitable[None]],
        known: Callable[[Collection[Digest]], Awaitable[list[Digest]]],
        bus: Events,
    ) -> None:
        self._redis = redis
        self._signer = signer
        self._prefix = prefix
        self._condemn = condemn
        self._known = known
        self._curator: Curator | None = None
        self._events = bus
        self._purges = Purges()
        self._last = "0"  # of the stream
        self._version = b""  # of the pins
        self._untold_purges: dict[bytes, None] = {}
        self._own: dict[bytes, None] = {}  # purges that are done here, and not yet heard of
        self._is_warned = False  # of too many purges
        self._untold_pins: dict[Pin, tuple[str, int]] = {}
        self._doomed: dict[Digest, None] = {}  # purged here, and not yet condemned for all
        self._looking = asyncio.Lock()
        self._listening = Background("fleet wishes", self._round, interval_seconds=_LOOK_SECONDS, events=bus)

    def __repr__(self) -> str:
        waiting = len(self._untold_purges) + len(self._untold_pins)
        return f"<Wishes behind {self._last}, {waiting} to tell>"

    def start(self, curator: Curator) -> None:
        """Hear and do what is wished elsewhere."""
        self._curator = curator
        self._listening.start()

    async def aclose(self) -> None:
        """Hear no more."""
        await self._listening.aclose()

    # --- told ---------------------------------------------------------------------------------------------------

    async def shared(self, digests: Sequence[Digest]) -> list[Digest]:
        """See :class:`registry_cache.catalog.curator.Herald`."""
        try:
            return await self._known(digests)
        except RedisDown:
            return []

    def purged(self, patterns: Sequence[Pattern], digests: Sequence[Digest]) -> None:
        """See :class:`registry_cache.catalog.curator.Herald`."""
        at_us = self._now_us()
        for pattern in patterns:
            self._purges.add(pattern, at_us)
            payload = _encoded(pattern.registry, pattern.repository, pattern.tag, pattern.digest)
            entry = Sealed(at_us, "-", payload).seal(self._signer, _PURGE_NAME)
            self._untold_purges[entry] = self._own[entry] = None
        while len(self._untold_purges) > _WAITING_MAX:
            del self._untold_purges[next(iter(self._untold_purges))]
            self._too_many()
        while len(self._own) > _WAITING_MAX:
            del self._own[next(iter(self._own))]
        self._doomed.update(dict.fromkeys(digests))
        self._listening.wake()

    def pinned(self, pins: Sequence[Pin], *, pinned: bool) -> None:
        """See :class:`registry_cache.catalog.curator.Herald`."""
        for pin in pins:
            self._untold_pins[pin] = (_PINNED if pinned else _UNPINNED), self._now_us()
        self._listening.wake()

    def since_us(self, repository: Repository, *, tag: str = "", digest: Digest | None = None) -> int:
        """What was heard from upstream before that (the fleet's time, microseconds) has been purged; 0 for never."""
        return self._purges.since_us(repository, tag=tag, digest=digest)

    # --- heard --------------------------------------------------------------------------------------------------

    def wake(self) -> None:
        """There is something to hear."""
        self._listening.wake()

    async def _round(self) -> float | None:
        with contextlib.suppress(RedisDown):
            await self.look()
            if not (self._untold_purges or self._untold_pins or self._doomed):
                return None
        return _TELL_AGAIN_SECONDS

    async def look(self) -> None:
        """Tell what is still to be told, then hear and do what is new.

        Raises:
            RedisDown: not now.
        """
        async with self._looking:
            await self._look()

    async def _look(self) -> None:
        await self._tell_purges()
        await self._hear_purges()
        doomed = list(self._doomed)
        if doomed:
            await self._condemn(doomed)
            for digest in doomed:
                self._doomed.pop(digest, None)
        await self._tell_pins(dict(list(self._untold_pins.items())[:_PINS_AT_ONCE]))
        await self._hear_pins()

    async def _tell_purges(self) -> None:
        while self._untold_purges:
            some = list(islice(self._untold_purges, scripts.PURGES_AT_ONCE))
            if await self._redis.run(scripts.PURGED, self._keys("purged", NEWS), some, patiently=True):
                self._too_many()
            for entry in some:
                self._untold_purges.pop(entry, None)

    def _too_many(self) -> None:
        if not self._is_warned:
            self._is_warned = True
            text = f"more than {scripts.PURGES_MAX} purges in thirty days: who was away misses the first of them"
            self._events.emit(events.Warned(message=text))

    async def _hear_purges(self) -> None:
        heard: dict[int, dict[Pattern, None]] = {}  # what was purged together, by when that was
        own: list[bytes] = []
        until, is_more = self._last, True
        while is_more:
            last, entries = await self._redis.run(
                HEARD, self._keys("purged"), [until, _AT_ONCE, scripts.WISH_MAX_BYTES, "0"], patiently=True
            )
            own += [entry for entry in entries if entry in self._own]
            for at_us, pattern in filter(None, map(self._purge, entries)):
                heard.setdefault(at_us, {})[pattern] = None
            until = last.decode(errors="replace")
            is_more = len(entries) == _AT_ONCE
        for at_us, patterns in heard.items():
            await self._do(list(patterns), at_us)
        self._last = until
        for entry in own:
            self._own.pop(entry, None)

    async def _do(self, patterns: Sequence[Pattern], at_us: int) -> None:
        for pattern in patterns:
            self._purges.add(pattern, at_us)
        if self._curator is not None:
            before = at_us / 1e6 - self._redis.ahead_seconds
            self._doomed.update(dict.fromkeys(await self._curator.purge_older(patterns, before)))

    def _purge(self, entry: bytes) -> tuple[int, Pattern] | None:
        if entry in self._own:
            return None
        said = opened(self._signer, _PURGE_NAME, entry)
        if said is None:
            return None
        try:
            registry, repository, tag, digest = msgspec.json.decode(
                said.payload, type=tuple[str, str, str | None, str | None]
            )
            return said.asked_us, Pattern(repository, tag, Digest.parse(digest) if digest else None, "", registry)
        except _ODD:
            return None

    async def _hear_pins(self) -> None:
        if self._curator is None:
            return
        version, values = await self._redis.run(
            scripts.PINS, [self._prefix + "pins", self._prefix + "pins_at"], [self._version], patiently=True
        )
        if version == self._version:
            return
        told: dict[Pin, tuple[str, int]] = {}
        for value in values:
            self._hear_pin(value, told)
        told |= self._untold_pins
        here = await self._curator.pins()
        add = [pin for pin, (mark, _) in told.items() if mark == _PINNED and pin not in here]
        remove = [pin for pin, (mark, _) in told.items() if mark == _UNPINNED and pin in here]
        if add or remove:
            await self._curator.follow_pins(add=add, remove=remove)
        for pin in here - told.keys():  # pinned before there was a fleet, or Redis has lost it
            self._untold_pins[pin] = _PINNED, self._now_us()
        self._version = version

    def _hear_pin(self, value: object, told: dict[Pin, tuple[str, int]]) -> None:
        said = opened(self._signer, _PIN_NAME, value)
        if said is None:
            return
        with contextlib.suppress(*_ODD):
            registry, name, target = msgspec.json.decode(said.payload, type=tuple[str, str, str])
            pin = Pin(Repository.parse(name, registry), Reference.parse(Repository(registry, name), target).target)
            if pin not in told or told[pin][1] < said.asked_us:
                told[pin] = said.mark, said.asked_us

    async def _tell_pins(self, pins: dict[Pin, tuple[str, int]]) -> None:
        if not pins:
            return
        args: list[str | int | bytes] = [secrets.token_hex(8)]
        for pin, (mark, at_us) in pins.items():
            payload = _encoded(*pin.repository, pin.target)
            args += [f"{pin.repository}@{pin.target}", Sealed(at_us, mark, payload).seal(self._signer, _PIN_NAME)]
        await self._redis.run(scripts.PIN, self._keys("pins", "pins_at", NEWS), args, patiently=True)
        for pin, said in pins.items():
            if self._untold_pins.get(pin) == said:
                del self._untold_pins[pin]

    def _keys(self, *names: str) -> list[str]:
        return [self._prefix + name for name in names]

    def _now_us(self) -> int:
        return int(self._redis.now() * 1e6)
