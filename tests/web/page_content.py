"""A cache with something to show: real pulls, real failures, and as many repositories as a test wants."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from registry_cache.model import events
from registry_cache.model.contents import Pin
from registry_cache.model.oci import DOCKER_HUB, Repository
from registry_cache.observe.history import DAY, KEPT, Counts
from tests.cache import Cache
from tests.hub.hub import Hub

HOSTILE = """<script>fetch('http://evil.example/')</script><img src=//evil.example onerror=alert(1)>'"{{ 7*7 }}"""

LONG_NAME = "a-team-with-a-long-name/" + "service-with-a-very-long-name/" * 4 + "x"


async def pull(
    cache: Cache,
    hub: Hub,
    name: str,
    sizes: tuple[int, ...] = (20_000, 200_000),
    *,
    user_agent: str = f"docker/27.1 {HOSTILE}",
) -> None:
    """An image, twice: a miss and a hit."""
    image = await hub.images.image(name, "1.0", list(sizes))
    for _ in range(2):
        await cache.manifest(name, "1.0", **{"User-Agent": user_agent})
        for blob in image.blobs:
            await cache.blob(name, blob.digest)


async def remember(cache: Cache) -> None:
    """A past: two months of it, busy by day and quiet by night."""
    now = cache.proxy.index.clock.now()
    for step in sorted(KEPT, reverse=True):
        for place in range(KEPT[step] - 1, 0, -1):
            busy = (place * 7) % 10 + (20 if place % 7 else 0)
            if place % 11 == 0:
                continue
            counts = Counts(busy * 9, busy if place % 3 else 1, place % 2, busy * 90_000_000, 0, busy * 9_000_000, 0)
            await cache.proxy.index.add_history(now - place * step, counts, {step: KEPT[step]})
    assert await cache.proxy.index.history(DAY, 0)


def tell(running: Cache, repository: str, **fields) -> None:
    """A request as web/v2.py tells of it."""
    values = {
        "cache": "hit", "kind": "blob", "registry": DOCKER_HUB, "repository": repository, "reference": "1.0",
        "digest": f"sha256:{'ab' * 32}", "method": "GET", "status": 200, "bytes": 1000, "duration_ms": 1.0,
        "upstream_ms": 0.0, "client": "192.0.2.1", "user_agent": HOSTILE,
    }  # fmt: skip
    running.bus.emit(events.Request(**values | fields))


async def fill(cache: Cache, hub: Hub, repositories: int) -> None:
    """So many repositories: up to ten are really pulled, the others only told of."""
    for number in range(min(repositories, 10)):
        await pull(cache, hub, f"library/page-{number}" if number else LONG_NAME)
    for number in range(10, repositories):
        name = f"organisation-{number:05}/{'deeply/nested/' * 14}repository-{number:05}"
        tell(cache, name, cache="miss" if number % 5 else "hit", bytes=number * 1000, detail="new tag")
    if repositories:
        assert (await cache.manifest("library/not-there", "1.0")).status == 404
        await remember(cache)
        pins = [Pin(Repository(DOCKER_HUB, f"library/page-{number}"), "1.0") for number in range(1, 10)]
        await cache.proxy.index.change_pins(add=pins)
        cache.proxy.index.pins_changed.set()
    if repositories > 10:
        tell(cache, "library/hostile", cache="error", status=502, error=HOSTILE)
        cache.bus.emit(events.UpstreamFailed(origin="https://registry.example", reason=HOSTILE))
        cache.bus.emit(events.Quarantined(digest=f"sha256:{'cd' * 32}", reason="its content has another digest"))


@contextlib.asynccontextmanager
async def slow_transfer(cache: Cache, hub: Hub) -> AsyncIterator[None]:
    """A large blob on its way from upstream, half of it here."""
    image = await hub.images.image("library/slow", "1.0", [4_000_000])
    hub.behaviour.bandwidth_bytes_per_second = 500_000
    transfer = asyncio.create_task(cache.blob("library/slow", image.layers[0].digest))
    try:
        while not any(flight.available for flight in cache.proxy.flights):
            await asyncio.sleep(0.01)
        yield
    finally:
        hub.behaviour.bandwidth_bytes_per_second = 0
        transfer.cancel()
        await asyncio.gather(transfer, return_exceptions=True)
