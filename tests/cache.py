"""The cache itself, running in the test's event loop, and a client that speaks to it as dockerd does."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
from aiohttp import web

from registry_cache.assembly.proxy import Proxy, open_proxy
from registry_cache.model import events
from registry_cache.model.bus import Events
from registry_cache.settings.load import load_settings
from tests.hub.hub import Hub

# By then every line has been written, on however busy a machine.
_LOGGED_SECONDS = 1.0


def open_content(root: Path) -> list[str]:
    """The blobs and partials under *root* that this process holds open; other files of it come and go by themselves."""
    paths = []
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed while we looked
            paths.append(str(entry.readlink()))
    return [path for path in paths if path.startswith(str(root)) and "sha256" in path]


@dataclass
class Reply:
    """An answer, read to its end."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def cache_status(self) -> str:
        return self.headers.get("Cache-Status", "")

    @property
    def error_code(self) -> str:
        return msgspec.json.decode(self.body)["errors"][0]["code"]


@dataclass
class Cache:
    """A running cache: its parts, its address, and every event so far."""

    proxy: Proxy
    url: str
    root: Path
    session: aiohttp.ClientSession
    bus: Events
    emitted: list[events.Event] = field(default_factory=list)
    answered: int = 0  # requests to /v2/ by get()

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.url.partition("://")[2].rpartition(":")
        return host, int(port)

    async def get(self, path: str, method: str = "GET", **headers: str) -> Reply:
        async with self.session.request(method, self.url + path, headers=headers) as response:
            reply = Reply(response.status, dict(response.headers), await response.read())
        self.answered += path.startswith("/v2/")
        await self._logged()
        return reply

    async def _logged(self) -> None:
        """Wait for the log lines of what was answered: the client has its last byte before they are written."""
        try:
            async with asyncio.timeout(_LOGGED_SECONDS):
                while len(self.requests()) < self.answered:
                    await asyncio.sleep(0)
        except TimeoutError:  # it was refused before it was read: there is none
            self.answered = len(self.requests())

    async def manifest(self, repository: str, reference: str, method: str = "GET", **headers: str) -> Reply:
        return await self.get(f"/v2/{repository}/manifests/{reference}", method, **headers)

    async def blob(self, repository: str, digest: str, method: str = "GET", **headers: str) -> Reply:
        return await self.get(f"/v2/{repository}/blobs/{digest}", method, **headers)

    async def stats(self) -> dict[str, Any]:
        async with self.session.get(self.url + "/_stats") as response:
            return await response.json()

    async def settled(self) -> None:
        """Wait until nothing is on its way to the disk any more: clients get their last byte before it is."""
        await asyncio.gather(*self.proxy.flights._tasks.values(), *self.proxy.pull_through._source.storing)

    def forget(self) -> None:
        """What has been emitted so far; what is counted from now on is new."""
        self.emitted.clear()
        self.answered = 0

    def seen(self, kind: type[events.Event]) -> list[Any]:
        return [event for event in self.emitted if isinstance(event, kind)]

    def requests(self) -> list[str]:
        return [event.cache for event in self.seen(events.Request)]


@contextlib.asynccontextmanager
async def run_cache(
    root: Path, hub: Hub, *, client_tls: ssl.SSLContext | None = None, **flags: Any
) -> AsyncIterator[Cache]:
    """Run a cache in front of *hub* with the look-alike's account; *flags* are settings by name.

    Args:
        client_tls: of the client, where the cache speaks TLS.
    """
    secret = root.parent / f"{root.name}.pat"
    secret.write_text(hub.account.pat + "\n")
    settings = load_settings(
        None,
        {
            "cache_dir": root,
            "upstream": hub.url,
            "ca_file": hub.ca_file,
            "username": hub.account.username,
            "password_file": secret,
            "min_free": "0",
            "listen": "127.0.0.1:0",
            "shutdown_grace": "2s",
            "prefetch_concurrency": 0,  # what upstream is asked for is what the test asks for
            **flags,
        },
    )
    bus = Events()
    seen: list[events.Event] = []
    bus.subscribe(seen.append)
    async with open_proxy(settings, bus) as proxy:
        runner = web.ServerRunner(proxy.server, shutdown_timeout=settings.shutdown_grace)
        await runner.setup()
        tls = proxy.certificates.context if proxy.certificates else None
        site = web.TCPSite(runner, settings.listen_host, 0, ssl_context=tls)
        await site.start()
        host, port = runner.addresses[0][:2]
        connector = aiohttp.TCPConnector(limit=0, ssl=client_tls or True)
        # As a registry client does: no body is decoded, nothing is retried behind the test's back.
        async with aiohttp.ClientSession(connector=connector, auto_decompress=False) as session:
            session._retry_connection = False
            url = proxy.identity.address = f"{'https' if tls else 'http'}://{host}:{port}"
            try:
                yield Cache(proxy, url, root, session, bus, seen)
            finally:
                await session.close()
                await runner.cleanup()
