"""The client for upstream by itself, in front of the look-alike: no cache decides what is asked."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from registry_cache.assembly.pulls import build_upstream
from registry_cache.model import events
from registry_cache.model.bus import Events
from registry_cache.model.oci import Digest, Reference, Repository
from registry_cache.settings.load import load_settings
from registry_cache.settings.registries import registries
from registry_cache.upstream.client import Upstream
from tests.hub.http import Request
from tests.hub.stand_in import StandIn


@dataclass
class Asked:
    """A client of upstream, and every event it emitted."""

    upstream: Upstream
    emitted: list[events.Event] = field(default_factory=list)

    def seen(self, kind: type[events.Event]) -> list[Any]:
        return [event for event in self.emitted if isinstance(event, kind)]

    async def head(self, name: str, target: str = "1", **options: Any) -> Any:
        return await self.upstream.manifest_head(reference(name, target), **options)

    async def manifest(self, name: str, target: str = "1") -> Any:
        return await self.upstream.manifest(reference(name, target))

    def reference(self, name: str, target: str = "1") -> Reference:
        return reference(name, target)

    async def blob(self, name: str, digest: str, *, start: int = 0, stop: int | None = None) -> bytes:
        """The body of one GET, to its end."""
        async with self.upstream.blob(Repository.parse(name), Digest.parse(digest), start=start, stop=stop) as body:
            return b"".join([bytes(piece) async for piece in pieces(body)])


async def pieces(body):
    while piece := await body.read():
        yield piece


def reference(name: str, target: str = "1") -> Reference:
    return Reference.parse(Repository.parse(name), target)


@pytest.fixture
async def ask(tmp_path, hub):
    """Start a client with the look-alike's account, or other settings."""
    async with contextlib.AsyncExitStack() as stack:

        def start(**flags: Any) -> Asked:
            secret = tmp_path / "pat"
            secret.write_text(hub.account.pat)
            account = {"username": hub.account.username, "password_file": secret}
            given = {"upstream": hub.url, "ca_file": hub.ca_file, "cache_dir": tmp_path, **account, **flags}
            bus = Events()
            registry = next(iter(registries(load_settings(None, given)).values()))
            asked = Asked(build_upstream(registry, 0, bus))
            bus.subscribe(asked.emitted.append)
            stack.push_async_callback(asked.upstream.aclose)
            return asked

        yield start


@pytest.fixture
async def stand_in():
    """A registry that says what a test wants, for a cache in front of it."""
    server = StandIn(lambda _: b"")
    await server.start()
    yield server
    await server.close()


@pytest.fixture
async def registry(ask):
    """Start a client of a plain registry that says what a test wants; several in one test are several registries."""
    async with contextlib.AsyncExitStack() as stack:

        async def start(says: Callable[[Request], bytes], path: str = "", **flags: Any) -> tuple[Asked, StandIn]:
            server = StandIn(says)
            stack.push_async_callback(server.close)
            await server.start()
            anonymous = {"username": None, "password_file": None}
            return ask(upstream=server.url + path, **{**anonymous, **flags}), server

        yield start
