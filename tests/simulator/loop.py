"""An event loop with virtual time that runs what is ready in an order drawn by chance: one seed, one run."""

import asyncio
import contextlib
import heapq
import random
from collections.abc import Callable, Coroutine
from contextvars import Context, copy_context
from typing import Any


class Stuck(AssertionError):
    """Nothing is ready, and nothing will ever be."""


class _Handle:
    """What asyncio's handle is to a loop without debugging, at half its price."""

    __slots__ = ("args", "callback", "context", "is_cancelled", "loop")

    def __init__(self, loop: "Loop", callback: Callable[..., Any], args: tuple[Any, ...], context: Context | None):
        self.loop, self.callback, self.args = loop, callback, args
        self.context = copy_context() if context is None else context
        self.is_cancelled = False

    def cancel(self) -> None:
        self.is_cancelled = True

    def cancelled(self) -> bool:
        return self.is_cancelled

    def run(self) -> None:
        try:
            self.context.run(self.callback, *self.args)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:
            self.loop.call_exception_handler({"message": f"Exception in {self.callback!r}", "exception": error})


class _Timer(_Handle):
    __slots__ = ("at",)

    def when(self) -> float:
        return self.at


class Loop(asyncio.AbstractEventLoop):
    """As much of an event loop as the store uses. *checked* is called every few steps."""

    def __init__(self, chance: random.Random, now: float = 0.0) -> None:
        self.steps = 0
        self.errors: list[dict[str, Any]] = []
        self.broken: AssertionError | None = None
        self._chance = chance
        self._now = now
        self._ready: list[_Handle] = []
        self._timers: list[tuple[float, int, _Timer]] = []
        self._number = 0
        self._tasks: list[asyncio.Task[Any]] = []

    def run(self, work: Coroutine[Any, Any, Any], checked: Callable[[], None] = lambda: None) -> Any:
        """The result of *work*."""
        asyncio._set_running_loop(self)
        try:
            task = self.create_task(work)
            while not task.done():
                self._step()
                if self.broken is not None:
                    raise self.broken
                if not self.steps % 8:
                    checked()
            return task.result()
        finally:
            asyncio._set_running_loop(None)

    def _step(self) -> None:
        self.steps += 1
        ready = self._ready
        while not ready:
            if not self._timers:
                raise Stuck("nothing will ever be ready")
            when, _, timer = heapq.heappop(self._timers)
            if not timer.is_cancelled:
                self._now = max(self._now, when)
                ready.append(timer)
        chosen = int(self._chance.random() * len(ready))
        ready[chosen], ready[-1] = ready[-1], ready[chosen]
        handle = ready.pop()
        if not handle.is_cancelled:
            handle.run()

    def drop(self) -> None:
        """What is under way ends here and now, not when memory is tidied up: a run has to be the same each time."""
        for task in self._tasks:
            if not task.done():
                with contextlib.suppress(BaseException):
                    task.get_coro().close()  # type: ignore[union-attr]

    def time(self) -> float:
        return self._now

    def call_soon(self, callback, *args, context=None):
        handle = _Handle(self, callback, args, context)
        self._ready.append(handle)
        return handle

    def call_later(self, delay, callback, *args, context=None):
        return self.call_at(self._now + delay, callback, *args, context=context)

    def call_at(self, when, callback, *args, context=None):
        timer = _Timer(self, callback, args, context)
        timer.at = when
        self._number += 1
        heapq.heappush(self._timers, (when, self._number, timer))
        return timer

    def create_future(self):
        return asyncio.Future(loop=self)

    def create_task(self, coro, *, name=None, context=None):
        task = asyncio.Task(coro, loop=self, name=name, context=context)
        task._log_destroy_pending = False
        self._tasks.append(task)
        return task

    def get_debug(self):
        return False

    def is_running(self):
        return True

    def is_closed(self):
        return False

    def call_exception_handler(self, context):
        self.errors.append(context)
        if isinstance(context.get("exception"), AssertionError):
            self.broken = context["exception"]
