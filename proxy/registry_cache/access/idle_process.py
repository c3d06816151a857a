"""A process that compares passwords with what others leave of the machine: hits do not wait for bcrypt.

A thread of low priority would make them wait: put off while it has Python's lock, it keeps the lock.
"""

import asyncio
import contextlib
import os
import sys
import time
from asyncio.subprocess import DEVNULL, PIPE, Process

from registry_cache.access import comparing
from registry_cache.access.comparing import Comparison, Outcome

# Of a cost of 10, which takes a twentieth of a second of a core. More costs as much more.
_PATIENCE_SECONDS = 0.5
_PATIENCE_COST = 10
# One that cannot be started, or dies, is not started again and again.
_AGAIN_SECONDS = 60.0
_END_SECONDS = 5.0


class IdleProcess:
    """See the module. It is started by the first comparison; whoever makes it closes it."""

    def __init__(self) -> None:
        self._process: Process | None = None
        self._reading: asyncio.Task[bytes] | None = None
        self._started_at = -_AGAIN_SECONDS

    async def compare(self, comparison: Comparison) -> Outcome | None:
        """What comes of it; None if that does not come soon, since others take the machine, or if there is no process.

        One after the other: whoever asks waits for the answer.
        """
        if self._reading is not None and not self._reading.done():
            return None  # it still has one that nobody waits for any more
        with contextlib.suppress(OSError, ValueError):
            process = await self._running()
            if process is None or process.stdin is None or process.stdout is None:
                return None
            process.stdin.write(comparing.as_question(comparison))
            self._reading = asyncio.ensure_future(process.stdout.readline())
            patience = _PATIENCE_SECONDS * 2 ** max(0, comparison.cost - _PATIENCE_COST)
            done, _ = await asyncio.wait([self._reading], timeout=patience)
            return comparing.as_outcome(self._reading.result()) if done else None
        return None

    async def _running(self) -> Process | None:
        if self._process is None or self._process.returncode is not None:
            if time.monotonic() < self._started_at + _AGAIN_SECONDS:
                return None
            self._started_at = time.monotonic()
            # -P: not whatever is called bcrypt in the working directory.
            program = [sys.executable, "-P", "-m", comparing.__name__]
            self._process = await asyncio.create_subprocess_exec(*program, stdin=PIPE, stdout=PIPE, stderr=DEVNULL)
        return self._process

    async def aclose(self) -> None:
        """End it."""
        process, self._process = self._process, None
        if process is not None and process.returncode is None:
            with contextlib.suppress(OSError):  # of the idle class, it dies only when others leave it time
                os.sched_setscheduler(process.pid, os.SCHED_OTHER, os.sched_param(0))
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), _END_SECONDS)
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)
