"""Another program holds the lock of the index while clients pull."""

import contextlib
import sqlite3

from registry_cache.model import events
from tests.cache import run_cache


@contextlib.contextmanager
def lock_held(root):
    with contextlib.closing(sqlite3.connect(root / "index.sqlite3", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        yield


async def test_pulls_go_on_and_nothing_is_lost_or_unknown(tmp_path, hub):
    warm, cold = await hub.images.image("library/warm", "1"), await hub.images.image("library/cold", "1")
    async with run_cache(tmp_path / "cache", hub) as cache:
        index, store = cache.proxy.index, cache.proxy.store
        await cache.manifest("library/warm", "1")
        await cache.blob("library/warm", warm.layers[0].digest)
        await cache.settled()
        await index.flush()
        gets = hub.counters.manifest_gets()
        with lock_held(cache.root):
            for known in (index._tags, index._blobs):
                known.clear()  # reads have to go to the file
            assert (await cache.manifest("library/warm", "1")).cache_status == "registry-cache; hit"
            assert (await cache.blob("library/warm", warm.layers[0].digest)).status == 200
            assert (await cache.manifest("library/cold", "1")).status == 200
            assert (await cache.blob("library/cold", cold.layers[0].digest)).status == 200
            await cache.settled()
            assert cache.seen(events.NotStored), "no file comes without its row"
            assert store.read_only
        await store.maintain()
        assert not store.read_only
        assert (await cache.manifest("library/cold", "1")).status == 200
        assert (await cache.blob("library/cold", cold.layers[0].digest)).status == 200
        await cache.settled()
        assert hub.counters.manifest_gets() <= gets + 2
        tags = {tag.repository.name for tag in (await index.inventory()).tags}
        assert tags == {"library/warm", "library/cold"}
        files = {f"sha256:{path.name}" for path in (cache.root / "blobs").rglob("*") if path.is_file()}
        assert set(await index.stored([*files])) == files
        assert cold.layers[0].digest in files
