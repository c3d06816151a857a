"""Slots as flights wait for them: the clock, the wake-ups and the timer that :mod:`.slots` does without."""

import asyncio
import time
from collections.abc import Callable

from registry_cache.pull.slots import Claim, Slots


class Seat:
    """One flight's place among the slots of a registry: made by :meth:`Boarding.seat`.

    ``interrupt`` is called when the slot is wanted back; its owner leaves soon after.
    """

    def __init__(self, boarding: "Boarding", client: str) -> None:
        self.claim = Claim(client)
        self.interrupt: Callable[[], None] | None = None
        self.changed = asyncio.Event()
        self._boarding = boarding

    def __repr__(self) -> str:
        return f"<Seat {self.claim!r}>"

    @property
    def held(self) -> bool:
        """Whether it has a slot."""
        return self.claim.held

    async def wait(self) -> bool:
        """See :meth:`Boarding.wait`."""
        return await self._boarding.wait(self)

    def leave(self) -> None:
        """Give the slot back; may be called at any time."""
        self._boarding.leave(self)

    def read(self, *, by_anyone: bool) -> None:
        """Whether somebody reads what the slot is used for."""
        self._boarding.read(self, by_anyone=by_anyone)


class Boarding:
    """Hands out slots.

    Args:
        grace_seconds: as for :class:`Slots`.
    """

    def __init__(self, limit: int, *, grace_seconds: float) -> None:
        self._slots = Slots(limit, grace_seconds=grace_seconds)
        self._seats: dict[Claim, Seat] = {}
        self._timer: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return f"<Boarding {self._slots!r}>"

    def seat(self, client: str) -> Seat:
        """A place that has no slot yet, and counts for that address."""
        return Seat(self, client)

    async def wait(self, seat: Seat) -> bool:
        """Whether *seat* has got a slot; it has none, and waits for none, if nobody reads it or ``changed`` was set."""
        seat.changed.clear()
        self._seats[seat.claim] = seat
        self._slots.ask(seat.claim)
        self._settle()
        try:
            # The usual case costs no turn of the event loop; and who is not read does not wait.
            if not seat.held and seat.claim.unread_since is None:
                await seat.changed.wait()
        finally:
            if not seat.held:
                self.leave(seat)
        return seat.held

    def leave(self, seat: Seat) -> None:
        """Give the slot back; may be called at any time."""
        if self._seats.pop(seat.claim, None) is not None:
            self._slots.leave(seat.claim)
            self._settle()

    def read(self, seat: Seat, *, by_anyone: bool) -> None:
        """Whether somebody reads what the slot is used for."""
        seat.claim.unread_since = None if by_anyone else time.monotonic()
        if not by_anyone:
            self._settle()

    def aclose(self) -> None:
        """Stop the timer."""
        if self._timer is not None:
            self._timer.cancel()

    def _settle(self) -> None:
        self.aclose()
        granted, asked_back, again_in_seconds = self._slots.decide(time.monotonic())
        for claim in granted:
            self._seats[claim].changed.set()
        for claim in asked_back:
            interrupt = self._seats[claim].interrupt
            if interrupt is not None:
                interrupt()
        if again_in_seconds is not None:
            self._timer = asyncio.get_running_loop().call_later(again_in_seconds, self._settle)
