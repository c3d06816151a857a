"""Wall-clock time that does not jump while the process runs."""

import time


class Clock:
    """Unix seconds at start plus monotonic time since: a clock set back or forth meanwhile changes no age.

    Args:
        not_before: the latest time already written down (Unix seconds). A machine that starts with its clock behind
            goes on from there, so that what is used now is younger than what was used before.
    """

    def __init__(self, not_before: float = 0.0) -> None:
        self._base = max(time.time(), not_before) - time.monotonic()

    def now(self) -> float:
        """Unix seconds; never decreases within one process."""
        return self._base + time.monotonic()
