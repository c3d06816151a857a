"""The end of ``serve``: polite at the first signal, at once at the second, and over when the grace is over.

What is cut off is safe: files and rows are made so that they survive ``kill -9``, and partials are taken up again.
"""

import asyncio
import os
import signal
import time
from collections.abc import Callable
from types import FrameType

from registry_cache.runtime.threads import start_daemon

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
# Of the grace, what is left for closing files and connections when the transfers have had theirs.
_CLOSING_PART, _CLOSING_SECONDS = 0.2, 3.0
# Closing takes a moment even where there is no grace.
_LEAST_SECONDS = 2.0
_DIED_OF = 128  # plus the signal's number: what a shell says of a program that a signal ended


class Stopping:
    """Waits for the signal to stop, and sees to it that the process ends.

    Args:
        grace_seconds: how long that may take, everything included.
        flush: writes what is left of the log; has to come back within a moment.
    """

    def __init__(self, grace_seconds: float, flush: Callable[[], None]) -> None:
        self._signalled = asyncio.Event()
        self._flush = flush
        self._seconds = max(grace_seconds, _LEAST_SECONDS)
        self.transfers_seconds = max(0.0, grace_seconds - min(grace_seconds * _CLOSING_PART, _CLOSING_SECONDS))

    def listen(self) -> None:
        """Take the signals of this process; in its main thread, in the event loop."""
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.add_signal_handler(number, self._first)

    async def wait(self) -> None:
        """Return after the first signal."""
        await self._signalled.wait()

    def _first(self) -> None:
        loop = asyncio.get_running_loop()
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)  # in between it would end this process as any other
        for number in _SIGNALS:
            loop.remove_signal_handler(number)
            # Not by the event loop: the second one counts even where that waits for something.
            signal.signal(number, _second)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        self._signalled.set()
        start_daemon("stopping", self._see_to_it)

    def _see_to_it(self) -> None:
        """Runs in a thread, until the process is gone.

        Neither a blocked event loop nor a thread that waits for upstream can hold it up. The interpreter waits for such
        threads at its very end, when everything here is over.
        """
        time.sleep(self._seconds)
        self._flush()
        os._exit(0)


def over() -> None:
    """Everything is closed: a signal has nothing left to stop.

    The interpreter takes handlers back before it has ended, and a second signal would make a clean end a violent one.
    """
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _second(number: int, _frame: FrameType | None) -> None:
    os._exit(_DIED_OF + number)
