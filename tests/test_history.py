"""The roll-up of what is counted: pure, and kept in a real index."""

import asyncio
import sqlite3

from hypothesis import given
from hypothesis import strategies as st

from registry_cache.model.bus import Events
from registry_cache.observe.history import (
    DAY,
    HOUR_SPAN,
    KEPT,
    MINUTE,
    MONTH_SPAN,
    QUARTER,
    SPANS,
    Counts,
    History,
    total,
)
from registry_cache.store.index import SqliteIndex, schema

NOON = 1_764_158_400 + 12 * 3600  # 2025-11-26T12:00:00Z
PULL = Counts(hits=3, misses=1, cached_bytes=300, served_bytes=400, received_bytes=100)


class Meter:
    """Counts and a clock that a test turns."""

    def __init__(self, now: float = NOON) -> None:
        self.now = now
        self.counts = Counts()

    def count(self, more: Counts) -> None:
        self.counts = self.counts.plus(more)

    def history(self, ledger) -> History:
        return History(ledger, lambda: self.counts, lambda: self.now, Events())


async def opened(path) -> SqliteIndex:
    index = SqliteIndex(path, events=Events())
    await index.start()
    return index


# --- spans --------------------------------------------------------------------------------------------------------


def test_a_span_ends_with_the_step_that_is_going_on():
    steps = HOUR_SPAN.filled([(NOON, *PULL)], NOON + 59.9)
    assert (len(steps), steps[-1]) == (60, (NOON, PULL))
    assert HOUR_SPAN.filled([(NOON, *PULL)], NOON + 60)[-2:] == [(NOON, PULL), (NOON + 60, Counts())]


def test_rows_outside_the_span_are_left_out():
    rows = [(NOON - 3600, *PULL), (NOON + 60, *PULL)]
    assert total(HOUR_SPAN.filled(rows, NOON)) == Counts()


def test_days_begin_at_midnight_utc():
    assert [step.began_at % DAY for step in MONTH_SPAN.filled([], NOON + 5)] == [0] * 30


def test_every_span_can_be_filled_from_what_is_kept():
    assert all(span.steps < KEPT[span.step_seconds] for span in SPANS)


@given(st.floats(0, 4e9), st.sampled_from(SPANS))
def test_now_is_always_in_the_last_step(now, span):
    steps = span.filled([], now)
    assert len(steps) == span.steps
    assert steps[-1].began_at <= now < steps[-1].began_at + span.step_seconds


def test_no_ratio_without_a_pull():
    assert (Counts(errors=2).hit_ratio, PULL.hit_ratio) == (None, 0.75)


# --- in the index -------------------------------------------------------------------------------------------------


async def test_counts_are_added_to_each_length_of_a_step(tmp_path):
    meter, index = Meter(), await opened(tmp_path / "index.sqlite3")
    history = meter.history(index)
    for _ in range(3):
        meter.count(PULL)
        await history.record()
        meter.now += 60
    spans = await history.spans()
    assert [step.counts.hits for step in spans["hour"][-4:]] == [3, 3, 3, 0]
    assert spans["day"][-1] == (NOON, Counts(9, 3, 0, 900, 1200, 300, 0))
    assert total(spans["month"]) == Counts(9, 3, 0, 900, 1200, 300, 0)
    await index.aclose()


async def test_history_outlives_a_restart_and_counts_nothing_twice(tmp_path):
    meter, index = Meter(), await opened(tmp_path / "index.sqlite3")
    history = meter.history(index)
    history.start()
    meter.count(PULL)
    await history.aclose()
    await index.aclose()
    again, index = Meter(NOON + 120), await opened(tmp_path / "index.sqlite3")
    history = again.history(index)
    assert total((await history.spans())["hour"]) == PULL
    again.count(PULL)
    await history.record()
    assert total((await history.spans())["hour"]) == PULL.plus(PULL)
    await index.aclose()


async def test_readers_at_the_same_time_count_nothing_twice(tmp_path):
    meter, index = Meter(), await opened(tmp_path / "index.sqlite3")
    history = meter.history(index)
    meter.count(PULL)
    await asyncio.gather(*(history.spans() for _ in range(10)))
    assert total((await history.spans())["hour"]) == PULL
    await index.aclose()


async def test_so_many_steps_are_kept_and_no_more(tmp_path):
    meter, path = Meter(), tmp_path / "index.sqlite3"
    index = await opened(path)
    history = meter.history(index)
    for _ in range(500):
        meter.count(PULL)
        meter.now += 7 * MINUTE
        await history.record()
    meter.now += 100 * DAY
    for _ in range(100):
        meter.count(PULL)
        meter.now += DAY
        await history.record()
    await index.aclose()
    with sqlite3.connect(path) as db:
        kept = dict(db.execute("SELECT step_seconds, COUNT(*) FROM history GROUP BY step_seconds"))
    db.close()
    assert kept == {MINUTE: 1, QUARTER: 2, DAY: KEPT[DAY]}


async def test_steps_from_a_clock_that_was_ahead_do_not_stay(tmp_path):
    meter, index = Meter(NOON + 10 * DAY), await opened(tmp_path / "index.sqlite3")
    history = meter.history(index)
    meter.count(PULL)
    await history.record()
    meter.now = NOON
    meter.count(PULL)
    await history.record()
    assert await index.history(DAY, 0) == [(NOON // DAY * DAY, *PULL)]
    await index.aclose()


async def test_what_cannot_be_written_is_written_later(tmp_path):
    class Full:
        full = True

        async def add_history(self, at, counts, kept):
            return not self.full and await index.add_history(at, counts, kept)

        async def history(self, step_seconds, since):
            return await index.history(step_seconds, since)

    meter, index, ledger = Meter(), await opened(tmp_path / "index.sqlite3"), Full()
    history = meter.history(ledger)
    meter.count(PULL)
    await history.record()
    ledger.full = False
    meter.count(PULL)
    assert total((await history.spans())["hour"]) == PULL.plus(PULL)
    await index.aclose()


async def test_an_index_that_had_no_evicted_bytes_keeps_its_history(tmp_path):
    path = tmp_path / "index.sqlite3"
    with sqlite3.connect(path) as db:
        db.executescript(schema.SCHEMA_1 + schema.SCHEMA_2 + "PRAGMA user_version = 2;")
        db.execute("INSERT INTO meta VALUES ('ended', '')")
        db.execute("INSERT INTO history VALUES (?, ?, 1, 2, 3, 4, 5, 6)", (QUARTER, NOON))
    db.close()
    index = await opened(path)
    assert index.doubt == "", "extended in place, not rebuilt"
    assert await index.history(QUARTER, 0) == [(NOON, 1, 2, 3, 4, 5, 6, 0)]
    meter = Meter()
    history = meter.history(index)
    meter.count(PULL._replace(evicted_bytes=7))
    assert (await history.spans())["day"][-1].counts == Counts(4, 3, 3, 304, 405, 106, 7)
    await index.aclose()
