"""Blocking work off the event loop, without losing track of it."""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class Threads:
    """A bounded pool of threads for one purpose.

    A cancelled caller waits until its call has come back: no file or socket is closed under a thread that uses it.
    """

    def __init__(self, name: str, count: int) -> None:
        self._pool = ThreadPoolExecutor(count, thread_name_prefix=name)

    async def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The result of *work*, done in a thread."""
        return await self.run_interruptible(lambda: work(*args, **kwargs))

    async def run_interruptible(
        self,
        work: Callable[[], T],
        *,
        interrupt: Callable[[], None] | None = None,
        dispose: Callable[[T], None] | None = None,
    ) -> T:
        """As :meth:`run`; when the caller is cancelled, *interrupt* makes *work* come back soon.

        What it came back with is then handed to *dispose*, before the caller goes on.
        """
        future = asyncio.get_running_loop().run_in_executor(self._pool, work)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            if interrupt is not None:
                interrupt()
            await _until_done(future)
            if dispose is not None:
                _dispose(future, dispose)
            raise

    async def run_or_abandon(
        self, work: Callable[[], T], *, interrupt: Callable[[], None], dispose: Callable[[T], None]
    ) -> T:
        """As :meth:`run_interruptible` for what has parts that nothing interrupts (a name lookup, a connect).

        A cancelled caller does not wait; what *work* gives later is handed to *dispose*.
        """
        future = asyncio.get_running_loop().run_in_executor(self._pool, work)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            interrupt()
            future.add_done_callback(lambda done: _dispose(done, dispose))
            raise

    def close(self) -> None:
        """Take no more work; whoever had work under way has waited for it."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def _dispose(future: "asyncio.Future[T]", dispose: Callable[[T], None]) -> None:
    if not future.cancelled() and future.exception() is None:
        dispose(future.result())


async def _until_done(future: "asyncio.Future[T]") -> None:
    """Wait for *future* whatever happens to the caller; its outcome is of no interest any more."""
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError:
            continue  # cancelled once more: the thread still runs
    if not future.cancelled():
        future.exception()


async def finish(work: Coroutine[Any, Any, T]) -> T:
    """Run *work* to its end even if the caller is cancelled meanwhile: files and their accounting change together."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await _until_done(task)
        raise


def start_daemon(name: str, work: Callable[[], None]) -> threading.Thread:
    """A thread that does not keep the process alive."""
    thread = threading.Thread(target=work, name=name, daemon=True)
    thread.start()
    return thread
