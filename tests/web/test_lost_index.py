"""The index is lost while upstream is away: what is here is still known by its name."""

import asyncio

import pytest

from registry_cache.store.reconciliation import Reconciler
from tests.cache import run_cache

from .test_hostile_content import NESTED, supply


@pytest.mark.parametrize("loss", ["deleted", "garbage"])
async def test_tags_and_manifests_outlive_the_index_while_upstream_is_away(tmp_path, hub, loss):
    image = await hub.images.image("library/kept", "1")
    async with run_cache(tmp_path / "cache", hub) as cache:
        body = (await cache.manifest("library/kept", "1")).body
        await cache.blob("library/kept", image.layers[0].digest)
        await cache.settled()
    path = tmp_path / "cache" / "index.sqlite3"
    if loss == "deleted":
        path.unlink()
    else:
        path.write_bytes(b"garbage" * 1000)
    await hub.registry.stop()
    async with run_cache(tmp_path / "cache", hub) as cache:
        by_tag = await cache.manifest("library/kept", "1")
        assert (by_tag.status, by_tag.body) == (200, body)
        by_digest = await cache.manifest("library/kept", image.digest)
        assert (by_digest.status, by_digest.body) == (200, body)
        assert by_digest.headers["Content-Type"] == by_tag.headers["Content-Type"]
        assert (await cache.blob("library/kept", image.layers[0].digest)).status == 200


async def test_what_nobody_can_read_is_still_the_manifest_as_which_it_was_served(tmp_path, hub):
    digest = await supply(hub, "org/nested", NESTED.decode())
    async with run_cache(tmp_path / "cache", hub) as cache:
        served = await cache.manifest("org/nested", "1")
        await cache.settled()
    for path in (tmp_path / "cache").glob("index.sqlite3*"):
        path.unlink()
    gets = hub.counters.manifest_gets()
    async with run_cache(tmp_path / "cache", hub) as cache:
        again = await cache.manifest("org/nested", digest)
        assert (again.status, again.body) == (200, NESTED)
        assert again.headers["Content-Type"] == served.headers["Content-Type"]
    assert hub.counters.manifest_gets() == gets


async def test_what_is_looked_for_while_rows_come_back_is_what_its_row_says(tmp_path, hub, monkeypatch):
    """The doubt that let a file be looked for is settled before it is: what kept its media type is gone then."""
    digest = await supply(hub, "org/nested", NESTED.decode())
    async with run_cache(tmp_path / "cache", hub) as cache:
        await cache.manifest("org/nested", "1")
        await cache.settled()
    for path in (tmp_path / "cache").glob("index.sqlite3*"):
        path.unlink()
    gets = hub.counters.manifest_gets()
    looked_for, adopt, reconcile = asyncio.Event(), Reconciler.adopt, Reconciler.reconcile

    async def held(self):
        await looked_for.wait()
        await reconcile(self)

    async def late(self, digest):
        looked_for.set()
        while self._index.doubt:
            await asyncio.sleep(0.01)
        return await adopt(self, digest)

    monkeypatch.setattr(Reconciler, "reconcile", held)
    monkeypatch.setattr(Reconciler, "adopt", late)
    async with run_cache(tmp_path / "cache", hub) as cache:
        again = await cache.manifest("org/nested", digest)
        assert (again.status, again.body) == (200, NESTED)
    assert hub.counters.manifest_gets() == gets


async def test_kept_tag_lists_count_against_the_cap(start_cache, hub):
    await hub.images.image("library/tags", "1")
    cache = await start_cache(max_size="100MB")
    before = cache.proxy.store.total_bytes
    body = (await cache.get("/v2/library/tags/tags/list")).body
    assert cache.proxy.store.total_bytes >= before + len(body)
    assert cache.proxy.index.answers_max_bytes == 5_000_000
