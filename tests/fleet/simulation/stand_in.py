"""What Redis answers to the scripts by which blobs are claimed; ``tests/fleet/test_stand_in.py`` holds it to that.

No bucket: nothing is shared there, and ``complete`` is never set.
"""

from collections.abc import Sequence
from typing import Any

from registry_cache.fleet import scripts

LEASE_MAX, AT_MAX = 200, 100


class StandIn:
    """The strings of one fleet; ``now`` is its clock, Unix seconds, and set by whoever uses it."""

    def __init__(self, now: float = 0.0) -> None:
        self.now = now
        self._kept: dict[str, tuple[bytes, float]] = {}
        self._scripts = {
            scripts.CLAIM: self._claim,
            scripts.RENEW: self._renew,
            scripts.RELEASE: self._release,
            scripts.DROP: self._drop,
        }

    def run(self, script: str, keys: Sequence[str], args: Sequence[str | int | bytes]) -> Any:
        """The answer of *script*."""
        return self._scripts[script](keys, [_bytes(one) for one in args])

    def kept(self) -> dict[str, tuple[bytes, float]]:
        """All values, and for how many seconds they stay."""
        live = {key: self._live(key) for key in list(self._kept)}
        return {key: (value, self._kept[key][1] - self.now) for key, value in live.items() if value is not None}

    def _live(self, key: str) -> bytes | None:
        found = self._kept.get(key)
        if found is None:
            return None
        if found[1] <= self.now:
            del self._kept[key]
            return None
        return found[0]

    def _set(self, key: str, value: bytes, seconds: float) -> None:
        self._kept[key] = (value, self.now + seconds)

    def _of_a_replica(self, key: str, most: int) -> bytes | None:
        """What is too long is of nobody here, and goes unread."""
        value = self._live(key)
        if value is not None and len(value) > most:
            del self._kept[key]
            return None
        return value or None

    def _claim(self, keys: Sequence[str], args: list[bytes]) -> list[Any]:
        lease, at, no = keys[:3]
        mine, address, lost, lease_ms, at_seconds, _, may_be_shared = args
        holder = self._of_a_replica(at, AT_MAX)
        if holder in (lost, address):
            self._kept.pop(at, None)
            holder = None
        if holder is not None:
            self._set(at, holder, int(at_seconds))
            return self._answer(b"at", holder)
        held = self._of_a_replica(lease, LEASE_MAX)
        if held is not None and held != lost and not held.endswith(b"|" + address):
            return self._answer(b"lead", held)
        if held is None and (said := self._of_a_replica(no, scripts.NO_MAX_BYTES)) is not None:
            return self._answer(b"failed", said)
        self._set(lease, mine, int(lease_ms) / 1000)
        return self._answer(b"yours", b"look" if may_be_shared == b"1" else b"")

    def _answer(self, what: bytes, value: bytes) -> list[Any]:
        seconds = int(self.now)
        return [what, value, b"%d" % seconds, b"%d" % int((self.now - seconds) * 1e6)]

    def _renew(self, keys: Sequence[str], args: list[bytes]) -> list[int]:
        lost = []
        for number, (key, mine) in enumerate(zip(keys, args[1:], strict=True), 1):
            held = self._of_a_replica(key, LEASE_MAX)
            if held is not None and held != mine:
                lost.append(number)
            else:
                self._set(key, mine, int(args[0]) / 1000)
        return lost

    def _release(self, keys: Sequence[str], args: list[bytes]) -> int:
        lease, at, no = keys
        mine, address, at_seconds, said, no_ms = args
        if self._of_a_replica(lease, LEASE_MAX) == mine:
            del self._kept[lease]
        if address:
            self._set(at, address, int(at_seconds))
        if said:
            self._set(no, said, int(no_ms) / 1000)
        return 1

    def _drop(self, keys: Sequence[str], _: list[bytes]) -> int:
        is_there = self._live(keys[0]) is not None
        self._kept.pop(keys[0], None)
        return int(is_there)


def _bytes(value: str | int | bytes) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()
