"""Questions that one replica asks upstream for all: who asks, and what the others hear.

The lease of a question is a hint, renewed while its holder waits for upstream. Who comes later waits as long as that
one lives, and hears the answer or upstream's no from Redis. Any other trouble may be the holder's own: then each asks
for itself, as it does when Redis is away.
"""

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, NamedTuple, Protocol

from registry_cache.fleet import question_scripts as scripts
from registry_cache.fleet.leases import Redis, RedisDown
from registry_cache.fleet.news import NEWS
from registry_cache.fleet.scripts import DROP
from registry_cache.fleet.sealed import Sealed, opened
from registry_cache.fleet.signature import Signer
from registry_cache.model.bus import Events
from registry_cache.model.errors import ManifestUnknown, NameUnknown, RegistryCacheError
from registry_cache.runtime.background import Background

_RENEW_SECONDS = 1.0
# Between two looks for an answer: at first soon, then less often.
_LOOK_SECONDS, _LOOK_MAX_SECONDS = 0.02, 0.2
# Whoever still has no answer then asks for itself: nobody holds a lease for so long but one that is stuck.
_WAIT_MAX_SECONDS = 20.0
_NO_MAX_SECONDS = 5.0
_NO_MAX_CHARACTERS = 300
# Seals that are wrong, leases that nobody has written: so often in a row, and Redis is left out of it.
_ODD_MAX = 3
_NEVER_US = 10**16
# What is a registry's own word on a name, whichever replica asks; other noes may be meant for that one's account.
_TROUBLE = "trouble"
_NOES: dict[str, type[RegistryCacheError]] = {"manifest": ManifestUnknown, "name": NameUnknown}


class Question(NamedTuple):
    """Names in Redis, and times in seconds: an answer counts for ``ttl``, and is kept there for ``kept``."""

    answer: str
    no: str
    lease: str
    ttl_seconds: float
    kept_seconds: int
    answer_max_bytes: int
    no_ttl_seconds: float = _NO_MAX_SECONDS
    since_us: int = 0  # what was asked before that does not count


class Turn:
    """What became of a question: somebody's answer is known, or it is this replica's turn to ask upstream.

    Attributes:
        known: the answer.
        asked_us: when this one was asked; 0 if Redis has not said.
    """

    def __init__(self, asked_us: int, known: Sealed | None = None) -> None:
        self.asked_us = asked_us
        self.known = known
        self.said: Sealed | None = None
        self.no = ("", "")
        self.announced = b""
        self.before: tuple[Question, Sealed] | None = None  # the answer to another one, that is told before

    @property
    def age_seconds(self) -> float:
        """How long before this question the known answer was asked for."""
        return max(0.0, (self.asked_us - self.known.asked_us) / 1e6) if self.known else 0.0

    def say(self, mark: str, payload: bytes, age_seconds: float = 0.0) -> None:
        """What upstream has answered, for the others."""
        if self.asked_us:
            self.said = Sealed(max(0, self.asked_us - int(age_seconds * 1e6)), mark, payload)


class Limits(Protocol):
    """What is needed of :class:`registry_cache.fleet.limits.SharedLimits`."""

    async def settled(self) -> None:
        """What has been met has been told."""

    async def hear(self, *, patiently: bool) -> None:
        """What others have met; raises RedisDown."""


class Questions:
    """See the module.

    Args:
        prefix: of all keys of the fleet.
        address: where the others reach this one; empty while that is not known, and nothing is shared.
    """

    def __init__(
        self,
        redis: Redis,
        signer: Signer,
        *,
        prefix: str,
        address: Callable[[], str],
        limits: Limits,
        events: Events,
    ) -> None:
        self._redis = redis
        self._signer = signer
        self._prefix = prefix
        self._address = address
        self._limits = limits
        self.waits = 0  # of those who wait for another replica's answer, now
        self._held: dict[str, str] = {}  # names of leases, by what is in them
        self._telling: set[asyncio.Task[None]] = set()
        self._renewal = Background("questions", self._renew, interval_seconds=_RENEW_SECONDS, events=events)

    def __repr__(self) -> str:
        return f"<Questions {len(self._held)} asked for all>"

    def start(self) -> None:
        """Renew what is held from now on."""
        self._renewal.start()

    async def settled(self) -> None:
        """What has been answered has been told."""
        await asyncio.gather(*self._telling, return_exceptions=True)

    async def aclose(self) -> None:
        """Tell what is still to be told."""
        await self._renewal.aclose()
        await self.settled()

    @contextlib.asynccontextmanager
    async def turn(self, question: Question) -> AsyncIterator[Turn]:
        """The answer if there is one; else whoever enters asks upstream, and says what it said.

        Raises:
            ManifestUnknown, NameUnknown: upstream has just said so to another replica.
        """
        mine = f"{secrets.token_hex(8)}|{self._address()}"
        turn = await self._taken(question, mine)
        try:
            yield turn
            if turn.said is None:
                turn.no = _TROUBLE, ""
        except RegistryCacheError as error:
            mark = next((mark for mark, kind in _NOES.items() if type(error) is kind), _TROUBLE)
            turn.no = mark, "" if mark == _TROUBLE else str(error)[:_NO_MAX_CHARACTERS]
            raise
        finally:  # who is cancelled has said nothing: another one asks
            if self._held.pop(mine, None) is not None:
                self._in_background(self._told(question, mine, turn))

    async def put(self, question: Question, answer: Sealed) -> None:
        """Tell the answer to a question that was not asked."""
        turn = Turn(answer.asked_us)
        turn.said = answer
        await self._told(question, "-", turn)

    async def kept(self, question: Question) -> Turn:
        """The last answer to it, however old."""
        turn = Turn(0)
        with contextlib.suppress(RedisDown):
            value, now = await self._redis.run(scripts.KEPT, self._keys(question.answer), [question.answer_max_bytes])
            turn = Turn(int(now), opened(self._signer, question.answer, value))
        return turn

    async def _taken(self, question: Question, mine: str) -> Turn:
        try:
            return await self._awaited(question, mine)
        except RedisDown:
            return Turn(0)

    async def _awaited(self, question: Question, mine: str) -> Turn:
        asked_us, since, lost, odd = 0, _NEVER_US, b"", 0
        until, pause = time.monotonic() + _WAIT_MAX_SECONDS, _LOOK_SECONDS
        while time.monotonic() < until and odd < _ODD_MAX and self._address():
            what, value, now_us = await self._ask(question, mine, since, lost)
            asked_us = asked_us or now_us
            if what == b"yours":
                self._held[mine] = self._prefix + question.lease
                return Turn(now_us)
            if what == b"wait":
                began = self._began(value)
                if began is None:
                    lost, odd = value, odd + 1
                    continue
                since = min(since, began)
                await self._pause(pause)
                pause = min(pause * 1.5, _LOOK_MAX_SECONDS)
                continue
            name = question.answer if what == b"known" else question.no
            found = opened(self._signer, name, value)
            if found is None:
                odd += 1
                await self._drop(name)
            elif what == b"known":
                return Turn(asked_us, found)
            elif found.mark in _NOES:
                raise _NOES[found.mark](found.payload.decode(errors="replace"))
            else:  # a limit, maybe: who goes on by itself has to know of it before
                await self._limits.hear(patiently=False)
                break
        return Turn(asked_us)

    async def _ask(self, question: Question, mine: str, since: int, lost: bytes) -> tuple[bytes, bytes, int]:
        ttl_us = int(question.ttl_seconds * 1e6)
        no_ttl_us = int(min(_NO_MAX_SECONDS, question.no_ttl_seconds) * 1e6)
        what, value, now = await self._redis.run(
            scripts.ASK,
            self._keys(question.answer, question.no, question.lease),
            [mine, ttl_us, no_ttl_us, since, question.answer_max_bytes, scripts.LEASE_MS, lost, question.since_us],
        )
        now_us = int(now)
        self._redis.told(now_us // 1_000_000, now_us % 1_000_000)
        return what, value, now_us

    def _began(self, lease: bytes) -> int | None:
        """When its holder began to ask; None if it makes no sense, or is of this replica's earlier life."""
        token, _, rest = lease.decode(errors="replace").partition("|")
        address, _, began = rest.rpartition("|")
        is_gone = address == self._address() and f"{token}|{address}" not in self._held
        return int(began) if began.isascii() and began.isdecimal() and not is_gone else None

    async def _pause(self, seconds: float) -> None:
        self.waits += 1
        try:
            await asyncio.sleep(seconds)
        finally:
            self.waits -= 1

    async def _drop(self, name: str) -> None:
        with contextlib.suppress(RedisDown):
            await self._redis.run(DROP, self._keys(name), [])

    async def _told(self, question: Question, mine: str, turn: Turn) -> None:
        await self._limits.settled()
        if turn.before is not None:
            await self.put(*turn.before)
        answer = no = b""
        if turn.said is not None:
            answer = turn.said.seal(self._signer, question.answer)
            if len(answer) > question.answer_max_bytes:
                answer = b""
        mark, message = turn.no
        if mark:
            no = Sealed(turn.asked_us, mark, message.encode()).seal(self._signer, question.no)
        keys = self._keys(question.answer, question.no, question.lease, "ev", NEWS)
        most = question.answer_max_bytes
        args: list[str | int | bytes] = [mine, answer, question.kept_seconds, no, turn.announced, most]
        with contextlib.suppress(RedisDown):  # the lease ends by itself
            await self._redis.run(scripts.TELL, keys, args, patiently=True)

    async def _renew(self) -> None:
        held = dict(self._held)
        if held:
            with contextlib.suppress(RedisDown):
                await self._redis.run(scripts.RENEW, list(held.values()), [scripts.LEASE_MS, *held], patiently=True)

    def _keys(self, *names: str) -> list[str]:
        return [self._prefix + name for name in names]

    def _in_background(self, telling: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(telling, name="telling the fleet")
        self._telling.add(task)
        task.add_done_callback(self._telling.discard)
