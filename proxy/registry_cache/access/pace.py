"""How fast bytes go to one principal, over all its connections. Who sends asks before each piece; nothing is queued.

A second's worth may go at once. What is sent beyond the pace is paid for by waiting.
"""

from collections.abc import Awaitable, Callable

_BURST_SECONDS = 1.0
# Of a body, so much goes between two looks at the clock: connections of one principal take turns, and none sends much
# in one go. Not above what a fast client gets in a turn of the event loop.
_PIECE_SECONDS = 0.05
_PIECE_MIN_BYTES, _PIECE_MAX_BYTES = 1024, 2 * 1024 * 1024


class Pace:
    """See the module.

    Args:
        bytes_per_second: on average.
        now: monotonic seconds.
        sleep: as :func:`asyncio.sleep`.
    """

    __slots__ = ("_now", "_paid_at", "_rate", "_sleep", "piece_bytes")

    def __init__(
        self, bytes_per_second: float, *, now: Callable[[], float], sleep: Callable[[float], Awaitable[None]]
    ) -> None:
        self._rate = bytes_per_second
        self._now = now
        self._sleep = sleep
        self._paid_at = now() - _BURST_SECONDS  # when all that was sent has been paid for, at this rate
        piece = int(bytes_per_second * _PIECE_SECONDS)
        self.piece_bytes = min(_PIECE_MAX_BYTES, max(_PIECE_MIN_BYTES, piece))

    @property
    def room_bytes(self) -> int:
        """How many may go now; none or fewer where there is something to pay for."""
        now = self._now()
        return int((now - max(self._paid_at, now - _BURST_SECONDS)) * self._rate)

    def sent(self, size_bytes: int) -> None:
        """So many have gone."""
        self._paid_at = max(self._paid_at, self._now() - _BURST_SECONDS) + size_bytes / self._rate

    async def wait_for(self, size_bytes: int) -> None:
        """Wait until so many may go. They count from now on: who asks next waits for these, too."""
        self.sent(size_bytes)
        seconds = self._paid_at - self._now()
        if seconds > 0:
            await self._sleep(seconds)
