"""The connection to Redis or Valkey, and when it is left alone: no pull waits for it longer than a quarter of a second.

One that fails is not asked again for two seconds; then one question tries, while all others go on without it.
It works again when it answers as soon as a pull needs it, and takes writes where it has refused one.
A script that fails by what somebody else has written there is no failure of Redis: only its own question has no answer.
"""

import asyncio
import contextlib
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from redis.asyncio import BlockingConnectionPool, Connection, Redis, SSLConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.credentials import CredentialProvider
from redis.exceptions import RedisError, ResponseError

from registry_cache.fleet.leases import RedisDown
from registry_cache.fleet.sentinels import behind_sentinels
from registry_cache.model import events
from registry_cache.model.bus import Events
from registry_cache.model.redis_url import RedisUrl, redis_url

WAIT_SECONDS = 0.25
RETRY_SECONDS = 2.0
# Of these the last are for what has arrived while the event loop was busy: its timers come before its sockets.
_WAITS_SECONDS = (WAIT_SECONDS - 0.05, 0.05)
_PATIENT_SECONDS = (0.95, 0.05)
_CLOSE_SECONDS = 0.05
# No answer is later than that: a clock that is so far back has been set.
_LATE_SECONDS = 1.0
_TOLD_SECONDS = 60.0
# A question takes less than a millisecond; to open a connection takes longer than to wait for one.
_CONNECTIONS = 4
# The last is uvloop's word for what is written to a connection that has been closed meanwhile.
_TROUBLE = (RedisError, OSError, TimeoutError, RuntimeError)
# What a script says that has met something of another kind. All else may be Redis's own: OOM, READONLY, BUSY, rights.
_FOREIGN = re.compile(r"WRONGTYPE |is not an integer|is not a valid float|would overflow|user_script:\d+: attempt to ")
# Changes nothing, and is refused as each write is: by a copy, without memory, without its disk. Of another type there
# is no writing to KEYS[1], but that is found out after all those.
_TAKES_WRITES = """
local answer = redis.pcall('SETRANGE', KEYS[1], 0, '')
if type(answer) == 'table' and not string.find(answer.err, '^WRONGTYPE') then return answer end
return 1
"""


class _Credentials(CredentialProvider):
    """The password is read again for each connection: a new one needs no restart."""

    def __init__(self, username: str, password_file: Path | None) -> None:
        self._username = username
        self._password_file = password_file

    def get_credentials(self) -> tuple[str] | tuple[str, str]:
        try:
            password = self._password_file.read_text().strip() if self._password_file else ""
        except UnicodeDecodeError:
            # Not the error's own words: they quote the password.
            raise RedisError(f"{self._password_file}: it is no text") from None
        return (self._username, password) if self._username else (password,)


class Pool(Protocol):
    """What is needed of :class:`redis.asyncio.ConnectionPool`."""

    async def disconnect(self, inuse_connections: bool = True) -> None:
        """Close connections: all, or those that nobody uses."""


class Client(Protocol):
    """What is needed of :class:`redis.asyncio.Redis`."""

    connection_pool: Pool

    def register_script(self, script: str) -> Any:
        """What is called with *keys* and *args*, and gives the answer."""

    async def aclose(self) -> None:
        """Close its connections."""


def connect(url: str, password_file: Path | None) -> Redis:
    """A client that gives up soon; it connects when it is asked something.

    Args:
        url: see :mod:`registry_cache.model.redis_url`.
    """
    told = redis_url(url)
    options: dict[str, Any] = {
        "max_connections": _CONNECTIONS,
        "db": told.database,
        "credential_provider": _credentials(told, password_file),
        "socket_timeout": 1.0,  # for what nobody waits for any more
        "socket_connect_timeout": 1.0,
        # The library's own patience is ten tries: a dead Redis took 3.4 to 4.6 seconds to be one.
        "retry": Retry(NoBackoff(), 0),
        "protocol": 2,
    }
    if told.service:
        return Redis.from_pool(behind_sentinels(told, options))
    [(host, port)] = told.addresses
    kind = SSLConnection if told.is_encrypted else Connection
    return Redis.from_pool(BlockingConnectionPool(connection_class=kind, host=host, port=port, **options))


def _credentials(told: RedisUrl, password_file: Path | None) -> CredentialProvider | None:
    return _Credentials(told.user, password_file) if told.user or password_file else None


async def info(url: str, password_file: Path | None) -> dict[str, Any]:
    """What Redis says of itself (``INFO``), for an operator who looks; no pull asks for that.

    Raises:
        RedisDown: it does not answer, or does not tell this user.
    """
    client = connect(url, password_file)
    try:
        async with asyncio.timeout(sum(_PATIENT_SECONDS)):
            return dict(await client.info())
    except _TROUBLE as error:
        raise RedisDown(str(error)[:200] or "it did not answer in time") from error
    finally:
        await client.aclose()


class FleetRedis:
    """See the module.

    Args:
        url: see :func:`connect`.
        client: what to ask instead of connecting to *url*.
        clock: our own time, Unix seconds.
    """

    def __init__(
        self,
        url: str,
        *,
        password_file: Path | None,
        events: Events,
        client: Client | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.host, self.port = redis_url(url).addresses[0]
        self._client = client or connect(url, password_file)
        self._clock = clock
        self._scripts: dict[str, Any] = {}
        self._warned: set[str] = set()  # scripts whose failure has been told
        self._events = events
        self.ahead_seconds = 0.0  # of its clock, before ours
        self._told_at = float("-inf")  # when that was found, by our clock
        self._is_probing = False
        self._has_refused = False  # since it worked last; reading may go on meanwhile
        self._retry_at = 0.0  # monotonic seconds, by the loop's clock
        self.trouble = ""  # why it is left alone; empty while it works
        self.barred = ""  # why this replica has no part in the fleet; empty while it has

    def __repr__(self) -> str:
        return f"<FleetRedis {self.host}:{self.port} {self.trouble or 'works'}>"

    def now(self) -> float:
        """The fleet's clock, Unix seconds: Redis's, as far as it has told."""
        return self._clock() + self.ahead_seconds

    def told(self, seconds: int, microseconds: int) -> None:
        """What its clock has said just now.

        An answer that was late makes it look behind, never ahead: what it was furthest ahead in the last minute counts.
        """
        now = self._clock()
        ahead = seconds + microseconds / 1e6 - now
        is_late = self.ahead_seconds - _LATE_SECONDS < ahead <= self.ahead_seconds
        if not is_late or not 0 <= now - self._told_at < _TOLD_SECONDS:
            self.ahead_seconds, self._told_at = ahead, now

    async def run(
        self,
        script: str,
        keys: Sequence[str],
        args: Sequence[str | int | bytes],
        *,
        patiently: bool = False,
        joins: bool = False,
    ) -> Any:
        """The answer of *script*.

        Args:
            joins: asks for a part in the fleet; all else needs one.
            patiently: no client waits for it: a busy machine is no reason to leave Redis alone.

        Raises:
            RedisDown: there is none, or Redis is left alone for now.
        """
        if self.barred and not joins:
            raise RedisDown(self.barred)
        is_probe = bool(self.trouble)
        if is_probe and (self._is_probing or asyncio.get_running_loop().time() < self._retry_at):
            raise RedisDown(self.trouble)
        self._is_probing = is_probe
        began = asyncio.get_running_loop().time()
        try:
            answer = await self._bounded(script, keys, args, _PATIENT_SECONDS if patiently else _WAITS_SECONDS)
        except _TROUBLE as error:
            if not (isinstance(error, ResponseError) and _FOREIGN.search(str(error))):
                self._failed(error)
                if isinstance(error, ResponseError):
                    self._has_refused = True
                    await self._leave()
                raise RedisDown(self.trouble) from error
            self._answered(began)
            self._warn(script, str(error)[:200])
            raise RedisDown(str(error)[:200]) from error
        finally:
            if is_probe:
                self._is_probing = False
        self._answered(began)
        return answer

    def _answered(self, began: float) -> None:
        """It works; but one that pulls do not wait for is left alone on."""
        now = asyncio.get_running_loop().time()
        if not self.trouble:
            return
        if now - began > sum(_WAITS_SECONDS):
            self._retry_at = now + RETRY_SECONDS
            return
        self.trouble, self._has_refused = "", False
        self._events.emit(events.FleetRedisUp())

    async def _leave(self) -> None:
        """Whoever refuses may be the master no more, and the address lead to another one by now."""
        with contextlib.suppress(*_TROUBLE):
            async with asyncio.timeout(_CLOSE_SECONDS):
                await self._client.connection_pool.disconnect(inuse_connections=False)

    def _warn(self, script: str, reason: str) -> None:
        if script not in self._warned:
            self._warned.add(script)
            self._events.emit(events.Warned(message=f"what is in Redis is not of this fleet: {reason}"))

    async def _bounded(
        self, script: str, keys: Sequence[str], args: Sequence[str | int | bytes], waits: Sequence[float]
    ) -> Any:
        asking = asyncio.ensure_future(self._asked(script, keys, args))
        try:
            for seconds in waits:
                await asyncio.wait({asking}, timeout=seconds)
            if not asking.done():
                raise TimeoutError
            return asking.result()
        finally:
            if not asking.done():
                asking.cancel()
                asking.add_done_callback(_forget)

    async def _asked(self, script: str, keys: Sequence[str], args: Sequence[str | int | bytes]) -> Any:
        if self._has_refused:
            await self._script(_TAKES_WRITES)(keys=keys[:1], args=[])
        return await self._script(script)(keys=keys, args=args)

    def _script(self, script: str) -> Any:
        if script not in self._scripts:
            self._scripts[script] = self._client.register_script(script)
        return self._scripts[script]

    def _failed(self, error: Exception) -> None:
        was_up = not self.trouble
        self.trouble = str(error)[:200] or "it did not answer in time"
        self._retry_at = asyncio.get_running_loop().time() + RETRY_SECONDS
        if was_up:
            self._events.emit(events.FleetRedisDown(reason=self.trouble))

    async def aclose(self) -> None:
        """Close its connections."""
        await self._client.aclose()


def _forget(asked: "asyncio.Future[Any]") -> None:
    """Whatever became of it."""
    if not asked.cancelled():
        asked.exception()
