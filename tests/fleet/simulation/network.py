"""An event loop with virtual time, and a network on it: links with a rate, and a Redis with one thread."""

import asyncio
import contextlib
import heapq
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any

from registry_cache.fleet import scripts
from tests.fleet.simulation.stand_in import StandIn
from tests.simulator.loop import Loop, Stuck

_NAMES = {scripts.CLAIM: "claim", scripts.RENEW: "renew", scripts.RELEASE: "release", scripts.DROP: "drop"}


class VirtualLoop(Loop):
    """One of the store's simulator that runs things in the order in which they became ready, threads' work included."""

    def __init__(self) -> None:
        super().__init__(chance=None)
        self._ready = deque()

    def _step(self) -> None:
        self.steps += 1
        while not self._ready:
            if not self._timers:
                raise Stuck("nothing will ever be ready")
            when, _, timer = heapq.heappop(self._timers)
            if not timer.is_cancelled:
                self._now = max(self._now, when)
                self._ready.append(timer)
        handle = self._ready.popleft()
        if not handle.is_cancelled:
            handle.run()

    def create_task(self, coro, *, name=None, context=None):
        return asyncio.Task(coro, loop=self, context=context)

    def call_soon_threadsafe(self, callback, *args, context=None):
        return self.call_soon(callback, *args, context=context)

    def run_in_executor(self, executor, work, *args):
        done = self.create_future()
        try:
            done.set_result(work(*args))
        except Exception as error:  # noqa: BLE001 -- whoever waits for it gets it
            done.set_exception(error)
        return done

    def finish(self) -> None:
        """End what is still under way."""
        while left := asyncio.all_tasks(self):
            for task in left:
                task.cancel()
            for _ in range(len(self._ready)):
                self._step()


# Of those who share a link, each has had its turn after so long at most: far less than a peer may be silent.
_ROUND_SECONDS = 1.0


class Link:
    """One direction of a connection to the network, in bytes a second; pieces go one after the other."""

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self.free_at = 0.0
        self.users = 0

    @contextlib.contextmanager
    def used(self) -> Iterator[None]:
        """While it is entered, one more shares it."""
        self.users += 1
        try:
            yield
        finally:
            self.users -= 1

    @property
    def turn_bytes(self) -> int:
        """How much each may send in its turn."""
        return max(1, int(self.rate * _ROUND_SECONDS / max(1, self.users)))


class Network:
    """See the module.

    Args:
        latency_seconds: from one machine to another.
        piece_bytes: the most that goes at a time.
    """

    def __init__(self, latency_seconds: float, piece_bytes: int) -> None:
        self.latency_seconds = latency_seconds
        self._piece_bytes = piece_bytes

    async def carry(self, up: Link, down: Link, left: int) -> int:
        """Some of *left* bytes from one machine to another; how many.

        A link that several use is shared by turns, since each of them waits for its piece to arrive.
        """
        count = min(left, self._piece_bytes, up.turn_bytes, down.turn_bytes)
        now = asyncio.get_running_loop().time()
        begins = max(now, up.free_at)
        up.free_at = begins + count / up.rate
        reaches = max(begins + self.latency_seconds, down.free_at) + count / down.rate
        down.free_at = max(reaches, up.free_at + self.latency_seconds)
        await asyncio.sleep(down.free_at - now)
        return count

    async def cross(self) -> None:
        """A few bytes."""
        await asyncio.sleep(self.latency_seconds)


class RedisServer:
    """One thread that runs scripts, *service_seconds* each.

    Args:
        busy: the part of its time (0 to 1) that goes to what is not simulated.
    """

    def __init__(self, network: Network, *, epoch: float, service_seconds: float, busy: float) -> None:
        self.calls: Counter[str] = Counter()
        self.longest_wait = 0.0
        self._network = network
        self._epoch = epoch
        self._stand_in = StandIn()
        # Of a server that never gets to the end of it nobody hears in time.
        self._service_seconds = service_seconds / (1 - busy) if busy < 1 else float("inf")
        self._free_at = 0.0

    def ask(self, script: str, keys: Sequence[str], args: Sequence[Any]) -> "asyncio.Future[Any]":
        """The answer in a while; what nobody waits for any more is done all the same."""
        loop = asyncio.get_running_loop()
        self.calls[_NAMES[script]] += 1
        arrives = loop.time() + self._network.latency_seconds
        self._free_at = max(arrives, self._free_at) + self._service_seconds
        self.longest_wait = max(self.longest_wait, self._free_at - arrives)
        answer = loop.create_future()

        def do() -> None:
            self._stand_in.now = self._epoch + loop.time()
            said = self._stand_in.run(script, keys, args)
            if not answer.done():
                answer.set_result(said)

        if self._free_at != float("inf"):
            loop.call_at(self._free_at + self._network.latency_seconds, do)
        return answer

    def client(self, is_alive: Callable[[], bool]) -> "RedisClient":
        """Of one replica."""
        return RedisClient(self, is_alive)


class RedisClient:
    """See :class:`registry_cache.fleet.connection.Client`."""

    def __init__(self, server: RedisServer, is_alive: Callable[[], bool]) -> None:
        self._server = server
        self._is_alive = is_alive

    def register_script(self, script: str) -> Callable[..., Awaitable[Any]]:
        async def ask(*, keys: Sequence[str], args: Sequence[Any]) -> Any:
            if not self._is_alive():
                await asyncio.get_running_loop().create_future()
            return await self._server.ask(script, keys, args)

        return ask

    async def aclose(self) -> None:
        """There is nothing to close."""
