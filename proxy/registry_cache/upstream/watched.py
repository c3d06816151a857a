"""The step that leaves alone an origin that is down or limits us, and finds out by itself when it is back."""

import asyncio
import contextlib
import math
import time
import traceback
from collections.abc import Callable

from registry_cache.model import events
from registry_cache.model.bus import Events
from registry_cache.model.errors import HeadFailed, HeadRefused, RateLimited, RegistryCacheError, UpstreamError
from registry_cache.upstream.ask import AnswerLost, Ask, NotConnected, Send
from registry_cache.upstream.headers import Headers
from registry_cache.upstream.ratelimit import Gate, parse_retry_after
from registry_cache.upstream.reply import Reply
from registry_cache.upstream.resilience import Breaker
from registry_cache.upstream.urls import origin_of

_BREAKERS_MAX = 1000  # CDN hosts come and go; the healthy ones are forgotten
_FORGOTTEN_AFTER_SECONDS = 600.0
# Whatever a failure names: it may be one server's of many, and clients hang for as long as they are told.
_PAUSE_MAX_SECONDS = 30.0
# An origin is suspect as soon as it has kept one request waiting for so long in vain; and it is down if it keeps the
# probe waiting for as long.
_PATIENCE_SECONDS = 5.0
# What a server says that stumbles over HEAD. A 504 is said of what stands behind it, and took its time.
_HEADS_OWN = frozenset({500, 502, 503})


def pause_after(reply: Reply) -> float:
    """Seconds that a failure wants to be left alone for, by its Retry-After; 0 where it names none."""
    return min(parse_retry_after(reply.headers) or 0.0, _PAUSE_MAX_SECONDS)


class Breakers:
    """A circuit breaker for each origin, and a gate for each but upstream's own, whose limits are kept elsewhere.

    Args:
        base_url: upstream's.
    """

    def __init__(self, base_url: str, events: Events) -> None:
        self._base_url = base_url
        self._own = origin_of(base_url)
        self._events = events
        self._breakers: dict[str, Breaker] = {}
        self._gates: dict[str, Gate] = {}
        self.troubled = asyncio.Event()

    @property
    def down(self) -> list[str]:
        """Origins that are held to be down."""
        return [breaker.origin for breaker in self._breakers.values() if breaker.is_open]

    @property
    def longest_limit(self) -> tuple[float, str]:
        """For how long, in seconds, another origin than upstream's own wants to be left alone at most; and which."""
        limits = ((gate.closed_for_seconds, origin) for origin, gate in self._gates.items())
        return max(limits, default=(0.0, ""))

    def open_ones(self) -> list[Breaker]:
        """Breakers that are open; those of hosts that nobody has asked for a while are forgotten."""
        now = time.monotonic()
        for origin, breaker in list(self._breakers.items()):
            idle = now - breaker.asked_at > _FORGOTTEN_AFTER_SECONDS
            if idle and breaker.is_open and origin != self._own:
                del self._breakers[origin]
        return [breaker for breaker in self._breakers.values() if breaker.is_open]

    def due(self) -> list[Breaker]:
        """Breakers whose origins have to be asked now: those that may be down, or up again."""
        suspects = [breaker for breaker in self._breakers.values() if breaker.is_suspect and not breaker.is_open]
        return suspects + [breaker for breaker in self.open_ones() if not breaker.retry_in_seconds]

    @property
    def due_in_seconds(self) -> float | None:
        """Until an open one is due; None if there is none."""
        waits = [math.ceil(breaker.retry_in_seconds * 10) / 10 for breaker in self.open_ones()]
        return max(0.1, min(waits)) if waits else None

    def of(self, url: str) -> Breaker:
        """The breaker of the origin of *url*."""
        origin = origin_of(url)
        breaker = self._breakers.get(origin)
        if breaker is None:
            if len(self._breakers) >= _BREAKERS_MAX:
                self._breakers = {name: kept for name, kept in self._breakers.items() if kept.is_open}
                self._gates = {name: gate for name, gate in self._gates.items() if gate.closed_for_seconds}
            breaker = self._breakers[origin] = Breaker(origin, self._events)
        return breaker

    def around(self, send: Send) -> Send:
        """*send*, under the breaker and the gate of the origin that is asked."""

        async def watched(ask: Ask) -> Reply:
            breaker = self.of(ask.url)
            gate = self._gates.get(breaker.origin)
            if gate is not None:
                gate.check()
            breaker.asked_at = time.monotonic()
            return await self._sent(send, ask, breaker)

        return watched

    async def probe(self, send: Send, breaker: Breaker) -> None:
        """Ask the origin of *breaker* whether it answers; it is closed, or opened for longer."""
        url = f"{self._base_url}/v2/" if breaker.origin == self._own else f"{breaker.origin}/"
        patience = None if breaker.is_open else _PATIENCE_SECONDS
        try:
            async with asyncio.timeout(patience):
                with contextlib.suppress(RegistryCacheError):
                    reply = await self._sent(send, Ask("GET", url, ""), breaker, is_probe=True)
                    await reply.aclose()
        except TimeoutError:
            breaker.failed(f"it did not answer within {patience:g} s")
            self._note(breaker)

    async def _sent(self, send: Send, ask: Ask, breaker: Breaker, *, is_probe: bool = False) -> Reply:
        began = time.monotonic()
        with breaker.passing() as passage:
            try:
                reply = await send(ask)
            except HeadRefused:
                passage.succeeded()  # it is there, and does not understand HEAD
                raise
            except UpstreamError as error:
                if isinstance(error, AnswerLost) and ask.get_follows and breaker.is_well:
                    raise HeadFailed(str(error)) from error
                if is_probe or isinstance(error, NotConnected):
                    passage.failed(str(error), quiet=is_probe)
                else:
                    passage.doubted(gravely=time.monotonic() - began >= _PATIENCE_SECONDS)
                self._note(breaker)
                raise
            if self.fails_as_head(ask, reply):
                pass  # the GET that follows counts
            elif reply.status >= 500 and reply.status != 501:  # noqa: PLR2004 -- HTTP; 501 is an answer
                if is_probe or pause_after(reply):
                    passage.failed(f"status {reply.status}", quiet=is_probe, pause_seconds=pause_after(reply))
                else:
                    passage.doubted(gravely=time.monotonic() - began >= _PATIENCE_SECONDS)
                self._note(breaker)
            else:
                passage.succeeded()
            return reply

    def fails_as_head(self, ask: Ask, reply: Reply) -> bool:
        """Whether it is trouble that may be HEAD's alone: a GET follows, and nothing has failed since a good answer."""
        is_told = ask.get_follows and reply.status in _HEADS_OWN and not pause_after(reply)
        return is_told and self.of(ask.url).is_well

    def _note(self, breaker: Breaker) -> None:
        if breaker.is_open or breaker.is_suspect:
            self.troubled.set()

    def limited(self, url: str, headers: Headers, message: str) -> RateLimited:
        """Take note that the origin of *url*, another than upstream's own, limits us; the error to raise."""
        origin = origin_of(url)
        gate = self._gates.setdefault(origin, Gate())
        message = message or f"{origin} limits us"
        seconds = gate.close(message, parse_retry_after(headers, message))
        self._events.emit(events.UpstreamLimited(origin=origin, retry_after_seconds=seconds, message=message))
        return gate.refusal()

    def passed(self, url: str) -> None:
        """The origin of *url* gave an answer that is no limit."""
        if (gate := self._gates.get(origin_of(url))) is not None:
            gate.passed()


class Prober:
    """Asks origins that may be down, and those that are while nobody else does: what is said of upstream stays true.

    Its owner starts and closes it.
    """

    def __init__(
        self,
        breakers: Breakers,
        send: Send,
        events: Events,
        *,
        bounded: Callable[[], contextlib.AbstractAsyncContextManager[None]],
    ) -> None:
        self._breakers = breakers
        self._send = send
        self._events = events
        self._bounded = bounded
        self._task: asyncio.Task[None] | None = None
        self._probes: dict[str, asyncio.Task[None]] = {}

    def start(self) -> None:
        """Begin, once; needs a running event loop."""
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="probes of upstream")

    async def aclose(self) -> None:
        """Stop."""
        tasks = [*self._probes.values(), *([self._task] if self._task is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self) -> None:
        troubled = self._breakers.troubled
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._breakers.due_in_seconds):
                    await troubled.wait()
            troubled.clear()
            for breaker in self._breakers.due():
                if breaker.origin not in self._probes:
                    self._probes[breaker.origin] = asyncio.create_task(self._probe(breaker), name="probe of upstream")

    async def _probe(self, breaker: Breaker) -> None:
        try:
            with contextlib.suppress(RegistryCacheError):
                async with self._bounded():
                    await self._breakers.probe(self._send, breaker)
        except Exception:  # noqa: BLE001 -- a bug in a probe must not end all of them
            self._events.emit(events.Crashed(message="probing upstream", traceback=traceback.format_exc()))
        finally:
            del self._probes[breaker.origin]
