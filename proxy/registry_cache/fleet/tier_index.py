"""What is in the bucket, by Redis's word: it claims too much or misses an object now and then, and both heal."""

import secrets
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple, TypeVar

from registry_cache.fleet import tier_scripts as scripts
from registry_cache.fleet.leases import Redis, prefix_of
from registry_cache.fleet.scripts import INDEX_KEYS
from registry_cache.model.oci import Digest

_T = TypeVar("_T")
# So many members a call: Redis does nothing else meanwhile, 1.7 ms for a hundred.
BATCH = 100
_TURN_MS = 15_000


def raw(digest: Digest) -> bytes:
    """A digest as it is in Redis."""
    return bytes.fromhex(digest.encoded)


def digest_of(data: bytes) -> Digest:
    """Back."""
    return Digest(f"{'sha256' if len(data) == 32 else 'sha512'}:{data.hex()}")  # noqa: PLR2004 -- its bytes


class Turn(NamedTuple):
    """Whether something is ours to do, and how things are."""

    is_mine: bool
    size_bytes: int
    going: int
    complete_at: float  # Unix seconds; 0 if the index does not have all yet
    now: float


class TierIndex:
    """See the module; each call raises RedisDown.

    Args:
        name: of the fleet.
    """

    def __init__(self, redis: Redis, *, name: str) -> None:
        self._redis = redis
        self._prefix = prefix_of(name)
        self._mine = secrets.token_hex(8)

    async def admit(
        self, digest: Digest, size_bytes: int, cap_bytes: int
    ) -> Literal["known", "going", "full", "share"]:
        """What is to be done with a blob that is here."""
        answer: bytes = await self._run(scripts.ADMIT, [raw(digest), size_bytes, cap_bytes])
        return answer.decode()  # type: ignore[return-value]

    async def shared(self, blobs: Iterable[tuple[Digest, int, float | None]]) -> int:
        """They are in the bucket: digest, bytes, last use (Unix seconds; None for now); how many were not known."""
        added = 0
        for batch in _batches(list(blobs)):
            values: list[str | int | bytes] = []
            for digest, size, used_at in batch:
                values += [raw(digest), size, "" if used_at is None else int(used_at)]
            added += await self._run(scripts.SHARED, values)
        return added

    async def forget(self, entries: Iterable[tuple[Digest, str]]) -> int:
        """They are not in the bucket, of whom it says so; how many were forgotten."""
        count = 0
        for batch in _batches(list(entries)):
            values: list[str | int | bytes] = []
            for digest, value in batch:
                values += [raw(digest), value.encode("latin-1", "replace")]  # as scan() has read it, whoever wrote it
            count += await self._run(scripts.FORGET, values)
        return count

    async def touch(self, digests: Collection[Digest]) -> None:
        """They have been used just now, as far as they are in the bucket."""
        for batch in _batches(list(digests)):
            await self._run(scripts.TOUCH, [raw(digest) for digest in batch])

    async def lend(self, digest: Digest, least_bytes: int, mark: str = "", seconds: int = 0) -> str:
        """What it says of a blob of at least that size that is to be read in the bucket; empty if there is none.

        Args:
            mark: of who is to read it there, which is a use; the same one is not lent it again for so many *seconds*.
        """
        keys = self._keys(*([f"w:{mark}"] if mark else []))
        value: bytes = await self._redis.run(scripts.LEND, keys, [raw(digest), least_bytes, seconds])
        return value.decode("latin-1")

    async def condemn(self, target_bytes: int) -> list[Digest]:
        """What is to be deleted: what was begun before, and the least lately used down to *target_bytes*."""
        return [digest_of(data) for data in await self._run(scripts.CONDEMN, [target_bytes, BATCH], "keep")]

    async def known(self, digests: Collection[Digest]) -> list[Digest]:
        """Those that are in the bucket, and are not being deleted."""
        found: list[Digest] = []
        for batch in _batches(list(digests)):
            answer = await self._run(scripts.KNOWN, [raw(digest) for digest in batch])
            found += [digest for digest, is_there in zip(batch, answer, strict=True) if is_there]
        return found

    async def purged(self, digests: Collection[Digest]) -> None:
        """They are to be deleted, as far as they are in the bucket."""
        for batch in _batches(list(digests)):
            await self._run(scripts.PURGED, [raw(digest) for digest in batch])

    async def gone(self, digests: Sequence[Digest]) -> int:
        """They are deleted; how many bytes that were."""
        freed: int = await self._run(scripts.GONE, [raw(digest) for digest in digests])
        return freed

    async def turn(self, what: str) -> Turn:
        """Whether *what* is this replica's to do, for some seconds from now."""
        mine, size, going, complete, now = await self._run(scripts.TURN, [self._mine, _TURN_MS], f"q:{what}")
        return Turn(bool(mine), size, going, complete, now)

    async def turn_over(self, what: str) -> None:
        """Another one may."""
        await self._run(scripts.TURN_OVER, [self._mine], f"q:{what}")

    async def recount(self) -> bytes:
        """Count all of it anew, by :meth:`scan` of all; give what :meth:`complete` wants to know."""
        count: bytes = await self._run(scripts.RECOUNT, [])
        return count

    async def scan(self, cursor: int) -> tuple[int, list[tuple[Digest, str]]]:
        """Some of the entries with their values; 0 for the last ones, as for the first.

        While all is counted anew, what has come since then is left out.
        """
        after, flat = await self._run(scripts.SCAN, [cursor, 5 * BATCH])
        pairs = zip(flat[::2], flat[1::2], strict=True)
        return int(after), [(digest_of(data), value.decode("latin-1")) for data, value in pairs]

    async def complete(self, count: bytes) -> bool:
        """It has all that is in the bucket, and all is counted; whether nobody has begun another *count* meanwhile."""
        return bool(await self._run(scripts.COMPLETE, [count]))

    async def _run(self, script: str, args: Sequence[str | int | bytes], *more: str) -> Any:
        return await self._redis.run(script, self._keys(*more), args, patiently=True)  # no client waits for any of this

    def _keys(self, *more: str) -> list[str]:
        return [self._prefix + name for name in (*INDEX_KEYS, *more)]


def _batches(items: list[_T]) -> Iterator[list[_T]]:
    for start in range(0, len(items), BATCH):
        yield items[start : start + BATCH]
