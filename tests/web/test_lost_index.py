"""The index is lost while upstream is away: what is here is still known by its name."""

import pytest

from tests.cache import run_cache


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
