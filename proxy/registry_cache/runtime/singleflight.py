"""Do a thing once for all who ask for it at the same time."""

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")


class Shared(NamedTuple, Generic[T]):
    """The result, and whether the caller joined work that another had begun."""

    value: T
    joined: bool


class SingleFlight(Generic[T]):
    """Concurrent calls with one key share one task, which outlives any caller that is cancelled.

    The owner closes it: :meth:`aclose` cancels what still runs and waits for it.
    """

    def __init__(self) -> None:
        self._tasks: dict[Hashable, asyncio.Task[T]] = {}

    def __repr__(self) -> str:
        return f"<SingleFlight {len(self._tasks)} running>"

    async def do(self, key: Hashable, work: Callable[[], Awaitable[T]]) -> Shared[T]:
        """The result of *work*, or of the call for *key* that is already under way."""
        task = self._tasks.get(key)
        joined = task is not None
        if task is None:
            task = asyncio.ensure_future(_run(work))
            self._tasks[key] = task
            task.add_done_callback(lambda done: self._forget(key, done))
        return Shared(await asyncio.shield(task), joined)

    def _forget(self, key: Hashable, task: asyncio.Task[T]) -> None:
        del self._tasks[key]
        if not task.cancelled():
            task.exception()  # mark it as seen: every waiter may have left

    async def aclose(self) -> None:
        """Cancel what runs and wait until it has ended."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _run(work: Callable[[], Awaitable[T]]) -> T:
    return await work()
