"""How replicas know each other: each request is signed with the fleet's key, which itself never travels.

``Fleet-Auth: ADDRESS TIME HMAC``, over method, path, range, address and time; it counts for a minute. The answer
is signed over that: a stranger at an address that Redis names is not believed.
"""

import hashlib
import hmac
import re
from pathlib import Path

HEADER = "Fleet-Auth"
ANSWER = "Fleet-Answer"
_VALID_SECONDS = 60
_FORM = re.compile(r"([0-9A-Fa-f.:\[\]]{3,60}) ([0-9]{1,12}) ([0-9a-f]{64})")


class Signer:
    """Signs, and checks.

    Args:
        key_file: read once.
    """

    def __init__(self, key_file: Path) -> None:
        self._key = key_file.read_bytes().strip()

    def header(self, address: str, method: str, path: str, range_: str, now: float) -> str:
        """The value of the header.

        Args:
            address: where the others reach who signs.
            now: the fleet's time, Unix seconds.
        """
        return f"{address} {int(now)} {self._mac(address, method, path, range_, str(int(now)))}"

    def address(self, value: str, method: str, path: str, range_: str, now: float) -> str | None:
        """Who has signed; None where it is wrong, or of another time."""
        match = _FORM.fullmatch(value)
        if match is None or abs(int(match[2]) - now) > _VALID_SECONDS:
            return None
        right = self._mac(match[1], method, path, range_, match[2])
        return match[1] if hmac.compare_digest(right, match[3]) else None

    def answer(self, request: str) -> str:
        """What proves that who answers *request*, the value of its header, has the key too."""
        return self._mac("answer", request)

    def is_answer(self, value: str, request: str) -> bool:
        """Whether *value* does."""
        return hmac.compare_digest(self.answer(request).encode(), _bytes(value))

    def seal(self, *parts: str, payload: bytes) -> str:
        """What proves that a replica has written *payload*, and what *parts* say of it; they have no line's end."""
        return self._mac("seal", *parts, payload=payload)

    def is_seal(self, value: str, *parts: str, payload: bytes) -> bool:
        """Whether *value* does."""
        return hmac.compare_digest(self.seal(*parts, payload=payload), value)

    def _mac(self, *parts: str, payload: bytes = b"") -> str:
        signed = hmac.new(self._key, _bytes("\n".join(parts)), hashlib.sha256)
        if payload:
            signed.update(b"\n")
            signed.update(payload)
        return signed.hexdigest()


def _bytes(text: str) -> bytes:
    # Headers of strangers may be of any bytes: what is no UTF-8 comes as surrogates.
    return text.encode("utf-8", "surrogatepass")
