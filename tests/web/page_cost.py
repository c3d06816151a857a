"""What the page costs the event loop, with 10 000 repositories and images: ``python -m tests.web.page_cost``."""

import asyncio
import tempfile
import time
from pathlib import Path

from registry_cache.assembly.proxy import open_proxy
from registry_cache.catalog import listings
from registry_cache.model.bus import Events
from registry_cache.model.oci import DOCKER_HUB, Digest, Repository
from registry_cache.ports.names import TagEntry
from registry_cache.ports.rows import BlobEntry
from registry_cache.settings.load import load_settings
from registry_cache.store.index import SqliteIndex
from registry_cache.web.tables import Asked
from tests.cache import Cache
from tests.web.page_content import remember, tell

_PAGES = 50
_IMAGES = 10_000


async def _longest_pause(done: asyncio.Event) -> float:
    """How long the loop was busy with one thing at most: seconds of its thread's CPU time, whatever else runs."""
    longest = 0.0
    while not done.is_set():
        began = time.thread_time()
        await asyncio.sleep(0)
        longest = max(longest, time.thread_time() - began)
    return longest


async def _cached(index: SqliteIndex) -> None:
    """Rows as of so many images."""
    now = index.clock.now()
    for number in range(_IMAGES):
        digest = Digest(f"sha256:{number:064x}")
        await index.add_blob(BlobEntry(digest, 1000 + number, None, now))
        await index.put_tag(
            Repository(DOCKER_HUB, f"organisation/{number}"), "1.0", TagEntry(digest, "application/json", 1000, now)
        )
    await index.flush()


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        bus = Events()
        settings = load_settings(None, {"cache_dir": Path(folder), "upstream": "http://127.0.0.1:1", "min_free": "0"})
        async with open_proxy(settings, bus) as proxy:
            cache = Cache(proxy, "", Path(folder), None, bus)
            for number in range(20_000):
                tell(cache, f"organisation/{number % 10_000}", cache="miss" if number % 3 else "hit")
            await remember(cache)
            await _cached(proxy.index)
            page = proxy.server._ops._page
            await page.html(Asked())  # compiled once a process
            listings._FRESH_SECONDS, listings._FRESH_TIMES = 0.0, 0  # each look makes the list of images anew
            done = asyncio.Event()
            watch = asyncio.create_task(_longest_pause(done))
            began = time.perf_counter()
            for _ in range(_PAGES):
                text = await page.html(Asked())
            seconds = (time.perf_counter() - began) / _PAGES
            done.set()
            print(
                f"{len(text) / 1000:.0f} kB, {seconds * 1000:.1f} ms a page on average, "
                f"the loop's longest turn {await watch * 1000:.1f} ms"
            )


if __name__ == "__main__":
    asyncio.run(main())
