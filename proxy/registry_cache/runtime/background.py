"""Work that is done again and again beside the service, until its owner ends it: maintenance, scrub, history, pins."""

import asyncio
import contextlib
import traceback
from collections.abc import Awaitable, Callable

from registry_cache.model import events
from registry_cache.model.bus import Events
from registry_cache.model.errors import RegistryCacheError


class Background:
    """A supervised loop: a round that fails is told and does not end the loop.

    Whoever starts it calls :meth:`aclose`, which cancels a round under way and waits for it.

    Args:
        name: of the task, and in what is told of a failed round.
        work: one round; the seconds until the next one, None for *interval_seconds*.
        interval_seconds: between two rounds, and after a failed one.
    """

    def __init__(
        self,
        name: str,
        work: Callable[[], Awaitable[float | None]],
        *,
        interval_seconds: float,
        events: Events,
    ) -> None:
        self._name = name
        self._work = work
        self._interval_seconds = interval_seconds
        self._events = events
        self._woken = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<Background {self._name} {'running' if self._task is not None else 'idle'}>"

    def start(self) -> None:
        """Begin with a round at once."""
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name=self._name)

    def wake(self) -> None:
        """Do not wait for the interval: there is something to do now."""
        self._woken.set()

    async def aclose(self) -> None:
        """End it; may be called twice, and without :meth:`start`."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            self._woken.clear()
            seconds = await self._round()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._interval_seconds if seconds is None else seconds):
                    await self._woken.wait()

    async def _round(self) -> float | None:
        try:
            return await self._work()
        except (RegistryCacheError, OSError) as error:
            self._events.emit(events.BackgroundFailed(work=self._name, reason=str(error) or repr(error)))
        except Exception:  # noqa: BLE001 -- a bug in one round must not end all later ones
            self._events.emit(events.Crashed(message=self._name, traceback=traceback.format_exc()))
        return None
