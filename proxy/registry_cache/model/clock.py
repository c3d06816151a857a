"""Wall-clock time that does not jump while the process runs, and ages by one that may."""

import time

# What is no sign of a clock that was set back: times are rounded, and compared by two processes.
_SLACK_SECONDS = 1.0


def age_seconds(at: float, now: float) -> float | None:
    """How long ago *at* was (both Unix seconds); None for what is yet to come: the clock was set back since."""
    return None if at > now + _SLACK_SECONDS else max(0.0, now - at)


def is_recent(at: float, now: float, seconds: float) -> bool:
    """Whether *at* is less than *seconds* ago. What a clock that was set back has yet to reach is over."""
    age = age_seconds(at, now)
    return age is not None and age < seconds


class Clock:
    """Unix seconds at start plus monotonic time since: a clock set back or forth meanwhile changes no age.

    A machine that starts with its clock behind goes on from the latest time that is written down
    (:meth:`go_on_from`), so that what is used now is younger than what was used before.
    """

    def __init__(self) -> None:
        self._base = time.time() - time.monotonic()

    def go_on_from(self, written: float) -> None:
        """Time does not go back behind *written* (Unix seconds): an index was opened that knows of it."""
        self._base = max(self._base, written - time.monotonic())

    def now(self) -> float:
        """Unix seconds; never decreases within one process."""
        return self._base + time.monotonic()
