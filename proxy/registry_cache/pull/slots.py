"""Who may fetch from upstream: so many at a time, fair to client addresses. Decides only; nothing here waits.

A slot that is free goes to the waiter whose client holds the fewest. While somebody waits, slots are asked back from
those that nobody reads any more, and from a client that holds more than its share.
"""

from collections import Counter
from typing import NamedTuple


class Claim:
    """One wish for a slot.

    Args:
        client: the address that it counts for.
    """

    __slots__ = ("asked_back", "client", "held", "unread_since")

    def __init__(self, client: str) -> None:
        self.client = client
        self.held = False
        self.asked_back = False
        self.unread_since: float | None = None  # monotonic seconds; None while somebody reads

    def __repr__(self) -> str:
        return f"<Claim of {self.client or 'nobody'} {'held' if self.held else 'waits'}>"


class Decision(NamedTuple):
    """What changed hands. ``again_in_seconds``: when something may have to be asked back, None if nothing may."""

    granted: list[Claim]
    asked_back: list[Claim]
    again_in_seconds: float | None


class Slots:
    """See the module.

    Args:
        grace_seconds: how long a slot stays with what nobody reads, while others wait.
    """

    def __init__(self, limit: int, *, grace_seconds: float) -> None:
        self._limit = limit
        self._grace_seconds = grace_seconds
        self._held: dict[Claim, None] = {}  # in the order in which they were granted
        self._waiting: dict[Claim, None] = {}

    def __repr__(self) -> str:
        return f"<Slots {len(self._held)}/{self._limit}, {len(self._waiting)} wait>"

    def ask(self, claim: Claim) -> None:
        """Wait for a slot; :meth:`decide` gives it."""
        self._waiting[claim] = None

    def leave(self, claim: Claim) -> None:
        """Give the slot back, or stop waiting for one."""
        self._held.pop(claim, None)
        self._waiting.pop(claim, None)
        claim.held = claim.asked_back = False

    def decide(self, now: float) -> Decision:
        """Give away what is free, then ask back what others have to wait for. *now*: monotonic seconds."""
        held = Counter(claim.client for claim in self._held)
        granted: list[Claim] = []
        while self._waiting and len(self._held) < self._limit:
            claim = min(self._waiting, key=lambda waiting: held[waiting.client])  # of equals, who came first
            del self._waiting[claim]
            self._held[claim] = None
            claim.held = True
            held[claim.client] += 1
            granted.append(claim)
        if not self._waiting:
            return Decision(granted, [], None)
        asked_back = self._ask_back(now)
        unread = [claim.unread_since for claim in self._held if claim.unread_since is not None and not claim.asked_back]
        again = max(0.0, min(unread) + self._grace_seconds - now) if unread else None
        return Decision(granted, asked_back, again)

    def _ask_back(self, now: float) -> list[Claim]:
        coming = sum(claim.asked_back for claim in self._held)
        unread = [
            claim
            for claim in self._held
            if claim.unread_since is not None
            and not claim.asked_back
            and now - claim.unread_since >= self._grace_seconds
        ]
        asked_back = unread[: max(0, len(self._waiting) - coming)]
        for claim in asked_back:
            claim.asked_back = True
        return asked_back + self._above_share()

    def _above_share(self) -> list[Claim]:
        """What clients hold above their share, as far as others below theirs wait for it."""
        stays = Counter(claim.client for claim in self._held if not claim.asked_back)
        share = max(1, self._limit // len({claim.client for claim in (*self._held, *self._waiting)}))
        coming = sum(claim.asked_back for claim in self._held)
        # Of each client that waits, as many as it may still have.
        wanted = Counter(claim.client for claim in self._waiting)
        deserved = sum(min(number, max(0, share - stays[client])) for client, number in wanted.items())
        asked_back: list[Claim] = []
        for claim in reversed(list(self._held)):  # the youngest has the least to lose
            if coming + len(asked_back) >= deserved:
                break
            if not claim.asked_back and stays[claim.client] > share:
                claim.asked_back = True
                stays[claim.client] -= 1
                asked_back.append(claim)
        return asked_back
