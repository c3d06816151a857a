"""The quota over time: how many pulls were left, by quarter of an hour, since the start and for a day at most.

It is kept in memory. Upstream tells it with each manifest, so nothing has to be asked; after a restart it begins anew.
"""

from collections import deque
from typing import NamedTuple

from registry_cache.model import events

STEP_SECONDS = 900
STEPS = 96


class QuotaStep(NamedTuple):
    """The last that upstream said in the quarter of an hour from ``began_at`` (Unix seconds) on."""

    began_at: int
    remaining: int
    limit: int


class QuotaLog:
    """Subscribe this to the events.

    Args:
        registry: whose quota it is.
    """

    def __init__(self, registry: str) -> None:
        self._registry = registry
        self._steps: deque[QuotaStep] = deque(maxlen=STEPS)

    def __call__(self, event: events.Event) -> None:
        if isinstance(event, events.QuotaObserved) and event.registry == self._registry:
            step = QuotaStep(int(event.time // STEP_SECONDS) * STEP_SECONDS, event.remaining, event.limit)
            if self._steps and self._steps[-1].began_at >= step.began_at:  # the same one, or a clock that was set back
                self._steps[-1] = step._replace(began_at=self._steps[-1].began_at)
            else:
                self._steps.append(step)

    def steps(self, now: float) -> list[QuotaStep | None]:
        """The last day, the oldest first; None where upstream said nothing."""
        known = {step.began_at: step for step in self._steps}
        last = int(now // STEP_SECONDS) * STEP_SECONDS
        return [known.get(last - ago * STEP_SECONDS) for ago in range(STEPS - 1, -1, -1)]
