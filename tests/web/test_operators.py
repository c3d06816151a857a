"""Who may read the figures and the page, and where."""

import aiohttp
import pytest
from aiohttp import web

from registry_cache.model import events

PAGES = ("/_stats", "/metrics")
OPEN = ("/_health", "/", "/v2/")


async def statuses(url: str, source: str, *paths: str, **headers: str) -> list[int]:
    """What a client with the address *source* is answered."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(local_addr=(source, 0))) as session:
        found = []
        for path in paths:
            async with session.get(url + path, headers=headers) as response:
                found.append(response.status)
        return found


async def test_everybody_reads_them_by_default(cache):
    assert await statuses(cache.url, "127.0.0.2", *PAGES, *OPEN) == [200] * 5


async def test_other_networks_do_not(start_cache):
    cache = await start_cache(admin_networks="127.0.0.2/32 10.0.0.0/8")
    assert await statuses(cache.url, "127.0.0.2", *PAGES, *OPEN) == [200] * 5
    assert await statuses(cache.url, "127.0.0.3", *PAGES, *OPEN) == [403, 403, 200, 200, 200]
    # Whatever somebody in front claims, and however the page is written.
    claims = {"X-Forwarded-For": "127.0.0.2", "Forwarded": "for=127.0.0.2", "X-Real-IP": "10.0.0.1"}
    assert await statuses(cache.url, "127.0.0.3", *PAGES, **claims) == [403, 403]
    ways = ("/_stats?refresh=1", "//_stats", "/_stats/", "/%5Fstats", "/./_stats", "/_STATS")
    assert 200 not in await statuses(cache.url, "127.0.0.3", *ways, Accept="text/html")
    (told, *_) = cache.seen(events.RequestRefused)
    assert (told.kind, told.client) == ("operator", "127.0.0.3")
    assert "ADMIN_NETWORKS" in told.reason


@pytest.fixture
async def apart(start_cache):
    """A cache whose figures have an address of their own, and that address."""
    cache = await start_cache(ops_listen="127.0.0.1:0")
    runner = web.ServerRunner(cache.proxy.ops_server)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield cache, f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


async def test_an_address_of_their_own(apart):
    cache, ops = apart
    assert await statuses(ops, "127.0.0.3", *PAGES, *OPEN) == [200, 200, 200, 200, 404]
    assert await statuses(cache.url, "127.0.0.1", *PAGES, *OPEN) == [200] * 5  # for doctor and warm


async def test_an_address_of_their_own_has_names_checked_as_it_listens(start_cache):
    cache = await start_cache(listen="0.0.0.0:0", ops_listen="127.0.0.1:0", open_to_all=True)
    runner = web.ServerRunner(cache.proxy.ops_server)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    ops = f"http://127.0.0.1:{runner.addresses[0][1]}"
    assert await statuses(ops, "127.0.0.1", *PAGES, Host="evil.example") == [421, 421]
    assert await statuses(cache.url, "127.0.0.1", "/_health", Host="evil.example") == [200]
    await runner.cleanup()


async def test_health_says_which_cache_it_is(cache):
    async with cache.session.get(cache.url + "/_health") as response:
        assert await response.json() == {"status": "ok", "instance": cache.proxy.identity.instance}
