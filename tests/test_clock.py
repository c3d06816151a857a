"""Time inside a run is monotonic, and never before what is written down."""

import time

from registry_cache.model.clock import Clock, is_recent
from registry_cache.model.units import format_since


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


def test_what_a_clock_that_was_set_back_has_yet_to_reach_is_over_and_has_no_age():
    recent = [at for at in (939.0, 941.0, 1000.5, 1002.0, 1e9) if is_recent(at, 1000.0, 60.0)]
    assert recent == [941.0, 1000.5]
    assert [format_since(at, 1000.0) for at in (None, 940.0, 1000.5, 1e9)] == [None, "1 min", "0 s", None]


async def test_tag_from_the_future_is_asked_about(cache, hub):
    await hub.images.image("library/future", "1")
    await cache.manifest("library/future", "1")
    index, repository = cache.proxy.index, next(iter(cache.proxy.index._tags))[0]
    entry = await index.tag(repository, "1")
    await index.put_tag(repository, "1", entry._replace(fetched_at=entry.fetched_at + 1e6))
    assert "revalidated" in (await cache.manifest("library/future", "1")).cache_status
