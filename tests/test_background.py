"""Background work goes on whatever one round does, and ends with its owner."""

import asyncio

import pytest

from registry_cache.model import events
from registry_cache.model.bus import Events
from registry_cache.model.errors import StoreError
from registry_cache.runtime.background import Background


class Rounds:
    """Work whose rounds a test counts and holds."""

    def __init__(self, *outcomes):
        self.outcomes = list(outcomes)
        self.begun = 0
        self.reached = asyncio.Event()
        self.held = asyncio.Event()
        self.cancelled = False

    async def __call__(self):
        self.begun += 1
        outcome = self.outcomes.pop(0) if self.outcomes else self
        if isinstance(outcome, Exception):
            raise outcome
        if outcome is self:  # the rounds that the test has told nothing of are held
            self.reached.set()
            try:
                await self.held.wait()
            except asyncio.CancelledError:
                self.cancelled = True
                raise
            return None
        return outcome


def background(work, interval_seconds=0.0):
    bus, emitted = Events(), []
    bus.subscribe(emitted.append)
    return Background("work", work, interval_seconds=interval_seconds, events=bus), emitted


@pytest.mark.parametrize(
    ("error", "event"),
    [
        (StoreError("no"), events.BackgroundFailed),
        (OSError(28, "full"), events.BackgroundFailed),
        (KeyError("bug"), events.Crashed),
    ],
)
async def test_a_round_that_fails_is_told_and_the_next_one_comes(error, event):
    rounds = Rounds(error)
    loop, emitted = background(rounds)
    loop.start()
    await rounds.reached.wait()
    assert rounds.begun == 2
    assert [type(one) for one in emitted] == [event]
    await loop.aclose()


async def test_a_round_under_way_is_cancelled_and_waited_for():
    rounds = Rounds()
    loop, emitted = background(rounds)
    loop.start()
    await rounds.reached.wait()
    await loop.aclose()
    assert rounds.cancelled
    assert emitted == []
    await loop.aclose()


async def test_a_round_says_when_the_next_one_is_due_and_can_be_hurried():
    rounds = Rounds(0.0, 3600.0)
    loop, _ = background(rounds, interval_seconds=3600.0)
    loop.start()
    while rounds.begun < 2:  # the first one wanted the second at once
        await asyncio.sleep(0)
    assert not rounds.reached.is_set()
    loop.wake()
    await rounds.reached.wait()
    assert rounds.begun == 3
    await loop.aclose()


async def test_a_wake_during_a_round_is_not_lost():
    rounds = Rounds()
    loop, _ = background(rounds, interval_seconds=3600.0)
    loop.start()
    await rounds.reached.wait()
    rounds.reached.clear()
    loop.wake()
    rounds.held.set()
    await rounds.reached.wait()
    assert rounds.begun == 2
    await loop.aclose()


async def test_closing_what_was_never_started_is_harmless():
    loop, _ = background(Rounds())
    await loop.aclose()
