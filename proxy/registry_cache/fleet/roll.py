"""Who is in the fleet now: each replica says so every ten seconds, with what it has done, and hears the others.

It is for operators only: no pull asks it, and nothing is decided by it.
"""

import contextlib
import secrets
import time
from collections.abc import Callable, Iterator
from typing import Annotated

import msgspec

from registry_cache import __version__
from registry_cache.fleet.counts import Counts
from registry_cache.fleet.leases import Redis, RedisDown
from registry_cache.fleet.scripts import PREFACE
from registry_cache.fleet.sealed import Sealed, opened
from registry_cache.fleet.signature import Signer
from registry_cache.model.bus import Events
from registry_cache.observe.figures import MemberFigures
from registry_cache.runtime.background import Background

BEAT_SECONDS = 10.0
# Who has said nothing for so long is gone.
_GONE_SECONDS = 30.0
_MARK = "-"
_INSTANCE_CHARACTERS = 16
_VALUE_MAX_BYTES = 1000
# More than any fleet has. Who writes more there is none of ours, and all is thrown away: the living say it again.
_MEMBERS_MAX = 1000

# KEYS: what each replica says, by its instance. ARGV: mine, what I say (nothing: I leave). Gives the time, then
# instance and word of each that is no older than it may be.
_CALL = (
    PREFACE
    + f"""
local key, mine, word = KEYS[1], ARGV[1], ARGV[2]
if is_kind(key, 'hash') and redis.call('HLEN', key) > {_MEMBERS_MAX} then redis.call('UNLINK', key) end
if word == '' then
  redis.call('HDEL', key, mine)
else
  redis.call('HSET', key, mine, word)
  redis.call('EXPIRE', key, {2 * int(_GONE_SECONDS)})
end
local now = redis.call('TIME')
local found = {{now[1], now[2]}}
for _, instance in ipairs(redis.call('HKEYS', key)) do
  local is_short = #instance == {_INSTANCE_CHARACTERS} and redis.call('HSTRLEN', key, instance) <= {_VALUE_MAX_BYTES}
  local value = is_short and redis.call('HGET', key, instance)
  if value and math.abs(now_us() - asked(value)) <= {int(_GONE_SECONDS * 1e6)} then
    found[#found + 1] = instance
    found[#found + 1] = value
  else
    redis.call('HDEL', key, instance)
  end
end
return found
"""
)

_Count = Annotated[int, msgspec.Meta(ge=0, le=2**62)]


class Word(msgspec.Struct, frozen=True, kw_only=True):
    """What a replica says of itself: bytes and counts since its start. What a newer one adds is not read."""

    address: Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z0-9.:\[\]_-]{0,100}\Z")]
    version: Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z0-9.+_-]{1,40}\Z")]
    upstream_bytes: _Count
    peer_bytes: _Count
    bucket_bytes: _Count
    takeovers: _Count


class Roll:
    """See the module.

    Args:
        prefix: of all keys of the fleet.
        address: where the others reach this replica.
    """

    def __init__(
        self,
        redis: Redis,
        signer: Signer,
        *,
        prefix: str,
        address: Callable[[], str],
        counts: Counts,
        events: Events,
    ) -> None:
        self._redis = redis
        self._signer = signer
        self._key = f"{prefix}replicas"
        self._mine = secrets.token_hex(_INSTANCE_CHARACTERS // 2)
        self._address = address
        self._counts = counts
        self._others: list[MemberFigures] = []
        self._calling = Background("fleet roll", self.call, interval_seconds=BEAT_SECONDS, events=events)

    def __repr__(self) -> str:
        return f"<Roll of {1 + len(self._others)}>"

    def members(self) -> list[MemberFigures]:
        """The replica itself, as it is now, and those that it has heard of in the last half minute."""
        since = time.time() - _GONE_SECONDS
        return [_figures(self._word(), time.time()), *(one for one in self._others if one.heard_at >= since)]

    def start(self) -> None:
        """Say and hear it until :meth:`aclose`."""
        self._calling.start()

    async def aclose(self) -> None:
        """Leave."""
        await self._calling.aclose()
        with contextlib.suppress(RedisDown):
            await self._redis.run(_CALL, [self._key], [self._mine, ""])

    async def call(self) -> float | None:
        """Say that this replica is here, and hear who else is."""
        word = Sealed(int(self._redis.now() * 1e6), _MARK, msgspec.json.encode(self._word()))
        with contextlib.suppress(RedisDown):
            said = word.seal(self._signer, self._name(self._mine))
            answer = await self._redis.run(_CALL, [self._key], [self._mine, said], patiently=True)
            self._others = sorted(self._heard(answer[2:]), key=lambda one: (one.address, -one.heard_at))
        return None if self._address() else 1.0  # it is known in a moment

    def _heard(self, pairs: list[bytes]) -> Iterator[MemberFigures]:
        for instance, value in zip(pairs[::2], pairs[1::2], strict=False):
            name = instance.decode("ascii", "replace")
            said = opened(self._signer, self._name(name), value) if name != self._mine else None
            if said is not None:
                with contextlib.suppress(msgspec.MsgspecError, UnicodeDecodeError):
                    word = msgspec.json.decode(said.payload, type=Word)
                    yield _figures(word, said.asked_us / 1e6 - (self._redis.now() - time.time()))

    def _name(self, instance: str) -> str:
        return f"replicas:{instance}"

    def _word(self) -> Word:
        return Word(
            address=self._address(),
            version=__version__,
            upstream_bytes=self._counts.upstream_bytes,
            peer_bytes=self._counts.peer_bytes,
            bucket_bytes=self._counts.bucket_bytes,
            takeovers=self._counts.takeovers,
        )


def _figures(word: Word, heard_at: float) -> MemberFigures:
    return MemberFigures(heard_at=heard_at, **msgspec.structs.asdict(word))
