"""The page in each of its states, as Chromium shows it. The figures are made up; the pulls behind them are real."""

import contextlib
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

from playwright.async_api import Browser, async_playwright

from registry_cache.assembly.reports import Reports
from registry_cache.model import events
from tests.cache import Cache, run_cache
from tests.figures import fleet, members
from tests.hub.hub import Hub
from tests.hub.origin import OriginRegistry
from tests.web.page_content import fill, pull, remember, slow_transfer, tell
from tests.web.test_page_browser import CHROMIUM, FLAGS

STATES = ("empty", "busy", "trouble", "many", "fleet")
SCHEMES = ("light", "dark")
IMAGES = {"node": [30_000_000, 8_000_000], "postgres": [25_000_000], "nginx": [12_000_000], "alpine": [3_400_000]}
CLIENTS = {"192.0.2.11": 4, "192.0.2.12": 3, "192.0.2.27": 1}


@dataclass(frozen=True)
class Shot:
    """One picture: *height* cuts it off there, None takes the whole page."""

    state: str
    scheme: str
    width: int
    height: int | None = None

    @property
    def name(self) -> str:
        return f"{self.state}-{self.scheme}-{self.width}.png"


async def take(shots: list[Shot], folder: Path) -> None:
    """Save each of *shots* in *folder*, under its name."""
    async with async_playwright() as playwright, _upstream() as hub:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        for state in dict.fromkeys(shot.state for shot in shots):
            with tempfile.TemporaryDirectory() as root:
                async with run_cache(Path(root) / "cache", hub) as cache, _in(state, cache, hub):
                    for shot in shots:
                        if shot.state == state:
                            await _save(browser, cache, shot, folder)
        await browser.close()


async def _save(browser: Browser, cache: Cache, shot: Shot, folder: Path) -> None:
    size = {"width": shot.width, "height": shot.height or 900}
    page = await browser.new_page(viewport=size, color_scheme=shot.scheme)
    await page.goto(f"{cache.url}/_stats")
    await page.screenshot(path=folder / shot.name, full_page=shot.height is None)
    await page.close()


@contextlib.asynccontextmanager
async def _upstream() -> AsyncIterator[Hub]:
    with tempfile.TemporaryDirectory() as root:
        async with OriginRegistry(Path(root)) as origin, Hub.start(origin) as hub:
            yield hub


@contextlib.asynccontextmanager
async def _in(state: str, cache: Cache, hub: Hub) -> AsyncIterator[None]:
    """*cache*, brought into *state* as far as a picture shows it."""
    async with contextlib.AsyncExitStack() as stack:
        if state == "many":
            await fill(cache, hub, 10_000)
        elif state != "empty":
            await _work(cache, hub)
            await stack.enter_async_context(slow_transfer(cache, hub))
        if state == "fleet":
            own, told = Reports._stats, fleet(redis_trouble="Connection refused", members=members(4))
            stack.enter_context(patch.object(Reports, "_stats", lambda reports: own(reports) | {"fleet": told}))
        if state == "trouble":
            await _break(cache, hub)
            stack.push_async_callback(hub.registry.start)
        yield


async def _work(cache: Cache, hub: Hub) -> None:
    for name, sizes in IMAGES.items():
        await pull(cache, hub, f"library/{name}", tuple(sizes), user_agent="docker/28.5.2")
        for client, times in CLIENTS.items():
            for _ in range(times):
                tell(cache, f"library/{name}", client=client, bytes=sum(sizes), user_agent="docker/28.5.2")
    await remember(cache)


async def _break(cache: Cache, hub: Hub) -> None:
    """Upstream goes away, and what came last could not be kept."""
    for number in range(3):
        reason = "the filesystem is too full, even with nothing cached on it (MIN_FREE)"
        cache.bus.emit(events.NotStored(digest=f"sha256:{number:064x}", reason=reason))
    await hub.registry.stop()
    for number in range(5):
        await cache.manifest(f"library/app-{number}", "1.0", **{"User-Agent": "docker/28.5.2"})
    await cache.manifest("library/nginx", "nosuch")
