"""Wall-clock time that does not jump while the process runs."""

import time


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
