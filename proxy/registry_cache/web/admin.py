"""The admin interface: a Unix socket in the cache directory, for root and the service's own user. Never the pull port.

``GET /about``, ``GET /stats``, ``GET /names``, ``POST /contents/list|purge|pin|unpin``; all answers are JSON. The body
says what is meant, as a form has it: ``pattern``, any number of times, and for purge ``apply=1``. Until 0.2.0 the query
said it: the paths are others, so that a command of another version hears so, and is not told of what it did not ask.
"""

import asyncio
import contextlib
import os
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs

import msgspec
from aiohttp import web

from registry_cache.catalog.curator import Curator, PinAnswer
from registry_cache.model import events
from registry_cache.model.bus import Events
from registry_cache.model.contents import Pattern, familiar
from registry_cache.model.errors import DigestInvalid, NameInvalid, StoreError
from registry_cache.observe.figures import FullStats
from registry_cache.runtime.background import Background
from registry_cache.runtime.unix_sockets import bound, is_free

SOCKET_NAME = "admin.sock"
_BACKLOG = 16
# In one order or question. A name and its tag have 450 bytes at most.
_PATTERNS_MAX = 5_000
_BODY_MAX_BYTES = 4 * 1024 * 1024
_ROOT = 0
_AGAIN_SECONDS = 5.0

AskStats = Callable[[], Awaitable[FullStats]]
About = Callable[[], dict[str, Any]]


class Admin(web.Server):
    """Answers questions that come through the socket.

    Args:
        about: who this cache is, where it listens, its settings without secrets.
    """

    def __init__(self, curator: Curator, stats: AskStats, about: About) -> None:
        super().__init__(self._dispatch, access_log=None)
        self._curator = curator
        self._full_stats = stats
        self._about = about
        self._answers: dict[tuple[str, str], Callable[[web.BaseRequest], Awaitable[object]]] = {
            ("GET", "/about"): self._who,
            ("GET", "/stats"): self._stats,
            ("POST", "/contents/list"): self._list,
            ("GET", "/names"): self._names,
            ("POST", "/contents/purge"): self._purge,
            ("POST", "/contents/pin"): self._pin,
            ("POST", "/contents/unpin"): self._unpin,
        }

    async def _dispatch(self, request: web.BaseRequest) -> web.StreamResponse:
        if not _is_allowed(request):
            return _json(403, {"error": "only root and the user that runs the cache may ask"})
        answer = self._answers.get((request.method, request.rel_url.path))
        if answer is None:
            return _json(404, {"error": "no such question; is the command of another version than the service?"})
        try:
            found = await answer(request)
            # Off the loop: a list of all tags may be long.
            return await asyncio.to_thread(_json, 200, found)
        except (NameInvalid, DigestInvalid) as error:
            return _json(400, {"error": str(error)})
        except StoreError as error:
            return _json(503, {"error": str(error)})

    async def _who(self, _request: web.BaseRequest) -> object:
        return self._about()

    async def _stats(self, _request: web.BaseRequest) -> object:
        return await self._full_stats()

    async def _list(self, request: web.BaseRequest) -> object:
        asked = await _asked(request)
        return (await self._curator.listing(asked.patterns or None))._asdict()

    async def _names(self, _request: web.BaseRequest) -> object:
        return {"names": await self._curator.names()}

    async def _purge(self, request: web.BaseRequest) -> object:
        asked = await _asked(request)
        plan, missing, shared = await self._curator.purge(asked.patterns, apply=asked.apply)
        tags = [familiar(tag.repository, tag.name) for tag in plan.tags]
        return {
            "applied": asked.apply,
            "tags": tags,
            "digests": plan.digests,
            "size_bytes": plan.size_bytes,
            "kept": plan.kept,
            "shared": shared,
            "missing": asked.at(missing),
        }

    async def _pin(self, request: web.BaseRequest) -> object:
        asked = await _asked(request)
        return _pin_answer(asked, await self._curator.pin(asked.patterns))

    async def _unpin(self, request: web.BaseRequest) -> object:
        asked = await _asked(request)
        return _pin_answer(asked, await self._curator.unpin(asked.patterns))


class _Asked(NamedTuple):
    texts: list[str]
    patterns: list[Pattern]
    apply: bool

    def at(self, places: list[int]) -> list[str]:
        """Those of the patterns, as they were written."""
        return [self.texts[place] for place in places]


async def _asked(request: web.BaseRequest) -> _Asked:
    """What the body says.

    Raises:
        NameInvalid, DigestInvalid: a pattern cannot name anything, or there are too many.
    """
    body = bytearray()
    async for piece in request.content.iter_any():
        if len(body) <= _BODY_MAX_BYTES:  # the rest is read and left, so that the answer is heard
            body += piece
    form = parse_qs(body.decode("ascii", "replace"), keep_blank_values=True)
    texts = form.get("pattern", [])
    if len(texts) > _PATTERNS_MAX or len(body) > _BODY_MAX_BYTES:
        most = _PATTERNS_MAX
        raise NameInvalid(f"{len(texts)} names at once, allowed are {most}: xargs -n {most} splits them")
    return _Asked(texts, [Pattern.parse(text) for text in texts], form.get("apply") == ["1"])


def _pin_answer(asked: _Asked, answer: PinAnswer) -> object:
    return answer._asdict() | {"missing": asked.at(answer.missing)}


def _is_allowed(request: web.BaseRequest) -> bool:
    """The mode of the socket says it already; this holds even where somebody changed that."""
    connection = request.transport.get_extra_info("socket") if request.transport is not None else None
    if connection is None:
        return False
    _, uid, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return uid in (_ROOT, os.geteuid())


def _json(status: int, value: object) -> web.Response:
    body = msgspec.json.encode(value, enc_hook=str)
    return web.Response(status=status, body=body, headers={"Content-Type": "application/json"})


class _Place:
    """Where the socket is, and that it is there: a disk may be read-only at the start, a directory be removed."""

    def __init__(self, runner: web.ServerRunner, path: Path) -> None:
        self.path = path
        self._runner = runner
        self._site: web.SockSite | None = None

    async def listen(self) -> None:
        """Listen, in place of whatever is there."""
        site, before = web.SockSite(self._runner, bound(self.path, mode=0o600)), self._site
        await site.start()
        self._site = site
        if before is not None:
            await before.stop()

    def _is_gone(self) -> bool:
        return self._site is None or not os.path.lexists(self.path)

    async def look(self) -> None:
        """Listen again if nobody does."""
        with contextlib.suppress(OSError):  # as it was told at the start; the next round tries again
            if self._is_gone() and is_free(self.path):  # else another cache has the directory by now
                await self.listen()


@contextlib.asynccontextmanager
async def listening(admin: Admin, directory: Path, bus: Events) -> AsyncIterator[None]:
    """Listen in *directory*, which is locked: a socket found there belongs to nobody alive.

    Without a socket (a filesystem that has none, or is read-only) the cache still serves; that is a warning. It is
    made as soon as it can be, also after the directory was removed.
    """
    runner = web.ServerRunner(admin)
    await runner.setup()
    place = _Place(runner, directory / SOCKET_NAME)
    looking = Background("admin socket", place.look, interval_seconds=_AGAIN_SECONDS, events=bus)
    try:
        try:
            await place.listen()
        except OSError as error:
            text = f"{place.path}: {error.strerror}: list, purge, pin and stats do not work until it can be made"
            bus.emit(events.Warned(message=text))
        looking.start()
        yield
    finally:
        await looking.aclose()
        await runner.cleanup()
        with contextlib.suppress(OSError):
            place.path.unlink()
