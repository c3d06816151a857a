"""What replicas tell each other by way of Redis, each value sealed with the fleet's key for the name that it is under.

Who can write in Redis can so take values away or bring old ones back, but make none. The time and the mark are in
clear, for scripts: ``MICROSECONDS MARK HMAC``, a line's end, and the rest.
"""

import re
from typing import NamedTuple

from registry_cache.fleet.signature import Signer

_HEAD_MAX_BYTES = 300
_HEAD = re.compile(rb"([0-9]{1,16}) ([^ \n]{1,200}) ([0-9a-f]{64})")


class Sealed(NamedTuple):
    """One such value; ``asked_us`` is the fleet's time, in microseconds, that it holds for."""

    asked_us: int
    mark: str
    payload: bytes = b""

    def seal(self, signer: Signer, name: str) -> bytes:
        """Fit for Redis, under *name* only."""
        mac = signer.seal(name, str(self.asked_us), self.mark, payload=self.payload)
        return f"{self.asked_us} {self.mark} {mac}\n".encode() + self.payload


def opened(signer: Signer, name: str, value: object) -> Sealed | None:
    """What *value*, found under *name*, says; None where no replica has said it there."""
    if not isinstance(value, bytes):
        return None
    head, _, payload = value[: _HEAD_MAX_BYTES + 1].partition(b"\n")
    match = _HEAD.fullmatch(head)
    if match is None:
        return None
    payload = value[len(head) + 1 :]
    asked, mark = match[1].decode(), match[2].decode(errors="replace")
    if not signer.is_seal(match[3].decode(), name, asked, mark, payload=payload):
        return None
    return Sealed(int(asked), mark, payload)
