"""Time inside a run is monotonic, and never before what is written down."""

import time

from registry_cache.model.clock import Clock


def test_wall_clock_that_jumps_changes_nothing(monkeypatch):
    clock = Clock()
    before = clock.now()
    for wall in (0.0, 4e9):
        monkeypatch.setattr(time, "time", lambda wall=wall: wall)
        assert 0 <= clock.now() - before < 60


def test_clock_behind_what_is_written_down_goes_on_from_there():
    future = time.time() + 1e6
    clock = Clock()
    clock.go_on_from(future)
    assert clock.now() >= future


def test_clock_ahead_of_what_is_written_down_stays_where_it_is():
    clock = Clock()
    before = clock.now()
    clock.go_on_from(before - 1e6)
    assert 0 <= clock.now() - before < 60


async def test_tag_from_the_future_is_asked_about(cache, hub):
    await hub.images.image("library/future", "1")
    await cache.manifest("library/future", "1")
    index, repository = cache.proxy.index, next(iter(cache.proxy.index._tags))[0]
    entry = await index.tag(repository, "1")
    await index.put_tag(repository, "1", entry._replace(fetched_at=entry.fetched_at + 1e6))
    assert "revalidated" in (await cache.manifest("library/future", "1")).cache_status
